import pickle

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.row_reader import RowReader
from rfdetr_hf.data.schema import detection_features

COUNTS = [2, 0, 1, 3, 1, 2]


def make_dataset(counts=COUNTS, first=0, **options):
    rng = np.random.default_rng(first)
    rows = [
        {
            "image": {"bytes": bytes([number]), "path": None},
            "image_id": first + number,
            "width": 80,
            "height": 60,
            "file_name": None if number == 1 else f"{number}.jpg",
            "labelled_classes": None if number % 2 else [0],
            "objects": {
                "id": list(range(count)),
                "bbox": rng.uniform(1, 20, (count, 4)).tolist(),
                "category": rng.integers(0, 2, count).tolist(),
                "area": [None if i else 7.25 for i in range(count)],
                "iscrowd": [bool(i % 2) for i in range(count)],
                "segmentation": [{"polygons": [[1.0, 2, 3, 4, 5, 7]], "size": None, "counts": None}] * count,
            },
        }
        for number, count in enumerate(counts)
    ]
    features = detection_features(["a", "b"], masks=True, labelled_classes=True)
    return Dataset.from_list(rows, features=features)


def as_read(row):
    """A row of `datasets` with the numbers of its objects as flat arrays, as a reader gives them."""
    objects = {name: values for name, values in row["objects"].items() if name != "id"}
    for name in ("bbox", "category", "area", "iscrowd"):
        objects[name] = np.asarray(objects[name], bool if name == "iscrowd" else np.float64).reshape(-1)
    return {**row, "objects": objects}


def assert_reads_like_datasets(reader, dataset):
    for index in range(len(dataset)):
        row, expected = reader[index], as_read(dataset[index])
        assert row.keys() == expected.keys()
        for name, values in row.pop("objects").items():
            given = expected["objects"][name]
            if name == "segmentation":
                assert values == given
            else:
                np.testing.assert_array_equal(values, given)
        labelled = row.pop("labelled_classes", None)
        assert (labelled if labelled is None else list(labelled)) == expected.pop("labelled_classes", None)
        expected.pop("objects")
        assert row == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d,
        lambda d: d.select(range(2, 5)),
        lambda d: d.shuffle(seed=3),
        lambda d: concatenate_datasets([d, make_dataset([0, 2], 100), d.select([4, 1])]),
        lambda d: d.select([1, 3]).select([1]),
        lambda d: d.filter(lambda row: row["image_id"] % 2 == 1, load_from_cache_file=False),
    ],
    ids=["all", "part", "shuffled", "joined", "twice", "filtered"],
)
def test_rows_are_those_of_datasets(change):
    dataset = change(make_dataset())
    assert_reads_like_datasets(RowReader(dataset), dataset)


def test_rows_of_a_file_and_of_shards(tmp_path):
    dataset = make_dataset()
    dataset.save_to_disk(str(tmp_path / "saved"))
    stored = Dataset.load_from_disk(str(tmp_path / "saved"))
    assert_reads_like_datasets(RowReader(stored), dataset)
    plain = load_detection_dataset(_picture_shards(tmp_path))["train"]
    assert_reads_like_datasets(RowReader(plain), plain)


def _picture_shards(folder):
    from rfdetr_hf import make_shapes_dataset

    convert_dataset({"train": make_shapes_dataset(5, image_size=64)}, folder / "shards", "parquet", 2)
    return str(folder / "shards")


def test_a_format_of_the_users_gives_the_rows():
    dataset = make_dataset()
    dataset.set_transform(lambda rows: {"image_id": [0 for _ in rows["image_id"]]})
    assert RowReader(dataset)[3] == {"image_id": 0}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bbox", [float("nan")] * 4, "objects.bbox, row 3: nan, not four finite numbers"),
        ("bbox", [30.0, 30.0, -5.0, 5.0], r"objects.bbox, row 3: \[30.0, 30.0, -5.0, 5.0\] has a negative width"),
        ("bbox", [1.0, 2.0], "objects.bbox, row 3: a box has not four numbers"),
        ("category", 99, "objects.category, row 3: 99, not a label from 0 to"),
        ("category", "car", "objects.category holds string"),
        ("area", float("inf"), "objects.area, row 3: inf"),
        ("iscrowd", 2, "objects.iscrowd, row 3: 2, not true or false"),
    ],
)
def test_objects_that_a_transform_spoils_are_named(field, value, message):
    def spoil(rows):
        return {**rows, "objects": [{**each, field: [value for _ in each["bbox"]]} for each in rows["objects"]]}

    reader = RowReader(make_dataset().with_transform(spoil))
    assert reader[1]["objects"]["bbox"] == []
    with pytest.raises(DetectionDataError, match=f"image_id 3, as the transform of the data set .*{message}"):
        reader[3]


def test_a_reader_can_be_handed_to_a_process():
    reader = RowReader(make_dataset())
    first = reader[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[0]["objects"]["bbox"], first["objects"]["bbox"])


def test_there_is_no_row_behind_the_last():
    with pytest.raises(IndexError, match="row 6 is not among 6"):
        RowReader(make_dataset())[6]
