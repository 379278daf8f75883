import io
import pickle

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, load_dataset, load_from_disk
from PIL import Image

from rfdetr_hf import category_ids, class_names, label_table
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image, detection_features, undecoded

NAMES, IDS = ["cat", "dog"], [3, 90]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (250, 0, 0)).save(buffer, "PNG")
    objects = {"id": [1], "bbox": [[1, 2, 3, 4]], "category": [1], "area": [12], "iscrowd": [False]}
    row = {"image_id": 5, "width": 8, "height": 6, "file_name": "a.png", "objects": objects}
    rows = [{**row, "image": {"bytes": buffer.getvalue(), "path": None}, "image_id": i} for i in range(4)]
    return Dataset.from_list(rows, features=detection_features(NAMES, IDS))


def saved(dataset, path):
    dataset.save_to_disk(path)
    return load_from_disk(path)


def saved_dict(dataset, path):
    DatasetDict(train=dataset).save_to_disk(path)
    return load_from_disk(path)


def parquet(dataset, path):
    dataset.to_parquet(path / "data.parquet")
    return load_dataset("parquet", data_files=str(path / "data.parquet"), split="train", cache_dir=str(path / "cache"))


def card(dataset, path):
    features = Features._from_yaml_list(dataset.features._to_yaml_list())
    return Dataset.from_dict({name: [] for name in features}, features=features)


OPERATIONS = {
    "select": lambda d, path: d.select([2, 0]),
    "shuffle": lambda d, path: d.shuffle(seed=0),
    "map": lambda d, path: d.map(lambda row: {"image_id": row["image_id"] + 1}),
    "filter": lambda d, path: d.filter(lambda row: row["image_id"] > 1),
    "with_transform": lambda d, path: d.with_transform(lambda rows: rows),
    "with_format": lambda d, path: d.with_format("numpy"),
    "train_test_split": lambda d, path: d.train_test_split(0.5)["test"],
    "concatenate": lambda d, path: datasets.concatenate_datasets([d, d]),
    "cast_column": lambda d, path: d.cast_column("image", datasets.Image()),
    "pickle": lambda d, path: pickle.loads(pickle.dumps(d)),
    "save_to_disk": saved,
    "save_dict_to_disk": saved_dict,
    "parquet": parquet,
    "hub_card": card,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_names_and_original_ids_survive(dataset, tmp_path, operation):
    result = OPERATIONS[operation](dataset, tmp_path)
    assert class_names(result) == NAMES
    assert category_ids(result) == IDS


def test_ids_default_to_labels_and_lengths_must_match(dataset):
    assert category_ids(Dataset.from_dict({n: [] for n in dataset.features}, features=detection_features(NAMES))) == [
        0,
        1,
    ]
    with pytest.raises(ValueError, match="2 names but 1 category_ids"):
        detection_features(NAMES, [4])


def test_label_table_shows_label_id_and_name(dataset):
    rows = [line.split() for line in label_table(dataset).splitlines()[1:]]
    assert rows == [["0", "3", "cat"], ["1", "90", "dog"]]


def test_a_data_set_without_labels_is_refused():
    with pytest.raises(DetectionDataError, match=r"\['x'\].*load_detection_dataset"):
        class_names(Dataset.from_dict({"x": [1]}))


def test_undecoded_gives_bytes_and_keeps_rows(dataset):
    decoded = dataset.cast_column("image", datasets.Image())
    assert isinstance(decoded[0]["image"], Image.Image)
    assert set(undecoded(decoded)[0]["image"]) == {"bytes", "path"}
    assert undecoded(dataset) is dataset


def test_decode_image_takes_rows_bytes_paths_and_pil(dataset, write_image, tmp_path):
    row = dataset[0]
    assert decode_image(row).getpixel((0, 0)) == (250, 0, 0)
    path = write_image(tmp_path / "p.png", (8, 6))
    for value in (path, str(path), {"path": str(path), "bytes": None}, Image.open(path)):
        assert decode_image({**row, "image": value}).size == (8, 6)
