"""Several data sets as one, and how often images are drawn."""

import json

import numpy as np
import pytest
from datasets import DatasetDict

from rfdetr_hf import DataArguments, class_names, load_detection_dataset
from rfdetr_hf.choices import counted
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.data.keypoints import COCO_KEYPOINTS
from rfdetr_hf.data.pipeline.loader import DetectionDataset, LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.order import EpochBatchSampler, weighted_rows
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import keypoint_schema, sample_weights

MAP = {"person": ["pedestrian", "rider"]}


def sources(street, **more):
    return [{"name_or_path": street / "a", "classes": MAP, **more}, {"name_or_path": street / "b"}]


def test_a_file_in_two_sources_says_the_same_of_classes_that_both_label(street, caplog):
    a = street / "a"
    one = load_detection_dataset(sources=[{"name_or_path": a, "classes": {"human": ["pedestrian"]}}, a])["train"]
    assert len(one) == 8 and "train split: 4 images are there several times, such as" in caplog.text
    content = json.loads((file := a / "train/_annotations.coco.json").read_text())
    content["annotations"][0]["bbox"][2] = 11
    other = street / "c/train/_annotations.coco.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(content))
    for picture in file.parent.glob("*.jpg"):
        (other.parent / picture.name).symlink_to(picture)
    with pytest.raises(
        DetectionDataError, match=r"0.jpg is there 2 times, with different boxes of the classes \['pede"
    ):
        load_detection_dataset(sources=[a, street / "c"])
    load_detection_dataset(sources=[{"name_or_path": a, "prefix": "a "}, street / "c"])


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_classes_images_and_labels(street, task):
    splits = load_detection_dataset(sources=sources(street), task=task)
    train = splits["train"]
    assert class_names(train) == ["person", "car", "dog"] and list(splits) == ["train", "validation"]
    assert train["image_id"] == list(range(6)) and train["file_name"] == [f"{i}.jpg" for i in (0, 1, 2, 3, 0, 1)]
    assert [row["category"] for row in train["objects"]] == [[0, 0], [1], [0], [], [0], [2, 0]]
    # A source's images are labelled with the classes that it has.
    assert train["labelled_classes"] == [[0, 1]] * 4 + [[0, 2]] * 2
    assert [i for row in train["objects"] for i in row["id"]] == list(range(1, 8))
    alone = [load_detection_dataset(street / name, task=task)["train"] for name in "ab"]
    for field in ("bbox", "area", "iscrowd", *(["segmentation"] if task == "segmentation" else [])):
        assert [row[field] for row in train["objects"]] == [row[field] for part in alone for row in part["objects"]]
    assert [row["path"] for row in train["image"]] == [row["path"] for part in alone for row in part["image"]]


def test_prefixes_splits_and_mappings(street, tmp_path):
    by_name = {str(street / "a"): {"prefix": "a/", "splits": ["train"]}, "second": {"name_or_path": street / "b"}}
    splits = load_detection_dataset(sources=by_name)
    assert class_names(splits) == ["a/pedestrian", "a/rider", "a/car", "person", "dog"]
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 2}
    args = DataArguments(sources=f"{{{street / 'a'}: {{share: 1}}, {street / 'b'}: {{share: 1}}}}")
    assert len(load_detection_dataset(**args.load_options())["train"]) == 6
    with pytest.raises(ValueError, match="sources is given, and dataset_name='x' too"):
        DataArguments(sources={"a": None}, dataset_name="x")


def test_sources_with_the_same_classes_need_no_column(street):
    splits = load_detection_dataset(sources=[street / "a", street / "a"], class_names=["car", "rider", "pedestrian"])
    assert "labelled_classes" not in splits["train"].column_names
    assert [row["category"] for row in splits["train"]["objects"]][:2] == [[2, 1], [0]]


def test_classes_of_which_a_part_is_labelled(street, tmp_path):
    # Where one of the classes that a class stands for is not labelled, it is not either.
    part = load_detection_dataset(street / "a")
    own = {name: split.add_column("labelled_classes", [[0, 2], [0, 1], None, []]) for name, split in part.items()}
    for name, split in own.items():
        split.to_parquet(tmp_path / "c" / f"{name}.parquet")
    train = load_detection_dataset(sources=[{"name_or_path": tmp_path / "c", "classes": MAP}])["train"]
    assert class_names(train) == ["person", "car"] and train["labelled_classes"] == [[1], [0], [0, 1], []]


def test_keypoints_of_sources_are_padded(tmp_path, data_root, write_coco):
    points = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "keypoints": [3, 4, 2, 9, 9, 1]}]
    bird = {"id": 1, "name": "bird", "keypoints": ["beak", "tail"], "skeleton": []}
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    write_coco(tmp_path / "train" / "_annotations.coco.json",
               {"images": images, "annotations": points, "categories": [bird]})  # fmt: skip
    people = {"name_or_path": data_root / "coco_person", "splits": ["train"]}
    train = load_detection_dataset(sources=[people, tmp_path], task="keypoints")["train"]
    assert [each.names for each in keypoint_schema(train).classes] == [COCO_KEYPOINTS, ("beak", "tail")]
    assert train[-1]["objects"]["keypoints"] == [[3, 4, 2, 9, 9, 1, *[0] * 45]]


@pytest.mark.parametrize(("change", "message"), [
    ({"share": 1}, "some have a share and some have none"),
    ({"share": -1}, "share=-1; give a positive number"),
    ({"classes": {"person": ["walker"]}}, r"classes names 'walker', which is none of its classes"),
    ({"classes": {"person": ["rider"], "x": "rider"}}, "classes names 'rider', twice"),
    ({"classes": ["rider"]}, "give classes as"),
    ({"splits": ["trian"]}, r"splits has \['trian'\]"),
    ({"splits": 5}, "splits=5; give a list"),
    ({"splits": "train"}, "splits='train'; give a list"),
    ({"classes": {"person": 0}}, "give classes as"),
    ({"classes": {"person": None}}, "give classes as"),
    ({"classes": {"person": ["rider", 1]}}, "give classes as"),
    ({"splits": ["test"]}, r"has none of the splits \['test'\]"),
])  # fmt: skip
def test_faulty_sources(street, change, message):
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(sources=sources(street, **change))


def test_what_does_not_go_with_sources(street):
    with pytest.raises(TypeError, match="image_dir: belongs to one data set"):
        load_detection_dataset(sources=[street / "a"], image_dir="x")
    with pytest.raises(TypeError, match="shard_window: belongs to one data set"):
        load_detection_dataset(sources=[street / "a"], shard_window=3)
    with pytest.raises(TypeError, match="name_or_path: belongs to one data set"):
        load_detection_dataset(street / "b", sources=[street / "a"])
    with pytest.raises(DetectionDataError, match="sources: .*no name_or_path"):
        load_detection_dataset(sources=[{"share": 1}])
    with pytest.raises(DetectionDataError, match=r"classes \['car', 'pedestrian', 'rider'\] are not in the table"):
        load_detection_dataset(sources=[street / "a"], class_names=["dog"])
    with pytest.raises(ValueError, match="sampling='rare'"):
        load_detection_dataset(street / "a", sampling="rare")


def test_shares_and_their_epochs(street):
    mixed = [{"name_or_path": street / "a", "share": 1}, {"name_or_path": street / "b", "share": 3}]
    train = load_detection_dataset(sources=mixed)["train"]
    weights = sample_weights(train)
    assert weights == pytest.approx([6 / 16] * 4 + [6 * 3 / 8] * 2) and weights.mean() == pytest.approx(1)
    assert data_hash({"train": train}) != data_hash({"train": load_detection_dataset(sources=sources(street))["train"]})
    transform = build_train_transform(64, multi_scale="off")
    loader = build_train_dataloader(train, transform, LoaderOptions(batch_size=2, num_workers=0))
    counts = np.zeros(6)
    for epoch in range(60):
        loader.batch_sampler.set_epoch(epoch)
        rows = [row for batch in loader.batch_sampler for _, _, row in batch]
        counts += np.bincount(rows, minlength=6)
    assert counts[4:].sum() / counts.sum() == pytest.approx(0.75, abs=0.05)
    held = load_detection_dataset(sources=mixed, validation_split=0.3)
    assert "sample_weight" not in held["validation"].column_names


def test_weighted_rows_are_a_function_of_seed_and_epoch():
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.1, 5, 1000)
    expected = weights / weights.mean()
    total = np.zeros(1000)
    for epoch in range(200):
        counts = np.bincount(weighted_rows(weights, 7, epoch), minlength=1000)
        assert counts.sum() == 1000 and (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
        total += counts
    # A row's number is Bernoulli above its floor: five standard deviations of the mean of 200 epochs.
    assert (np.abs(total / 200 - expected) < 5 * 0.5 / np.sqrt(200)).all()
    assert (weighted_rows(weights, 7, 4) == weighted_rows(7 * weights, 7, 4)).all()
    assert (weighted_rows(weights, 7, 4) != weighted_rows(weights, 7, 5)).any()
    assert (weighted_rows(weights, 7, 4) != weighted_rows(weights, 8, 4)).any()
    assert sorted(weighted_rows(np.full(50, 0.3), 1, 0)) == list(range(50))


@pytest.mark.parametrize(("batch_size", "accumulation", "world_size"), [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_the_drawn_order_depends_on_the_window_alone(batch_size, accumulation, world_size):
    weights = np.arange(1, 101.0)
    options = {"seed": 1, "epoch": 3, "weights": weights}
    ranks = [
        EpochBatchSampler(100, batch_size, accumulation=accumulation, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]
    found = {position: row for rank in ranks for batch in rank for _, position, row in batch}
    whole = [key for batch in EpochBatchSampler(100, 8, **options) for key in batch]
    assert [found[position] for _, position, _ in whole] == [row for *_, row in whole]
    ranks[0].set_epoch(3, 4)
    assert next(iter(ranks[0]))[0] == next((3, position, found[position]) for position in [4 * batch_size * world_size])
    with pytest.raises(ValueError, match="weights must be 100 positive numbers"):
        EpochBatchSampler(100, 8, weights=weights - 1)


def test_sampling_of_a_source_is_kept_in_the_mixture(street, caplog):
    rare = {"name_or_path": street / "a", "sampling": "class_balanced"}
    alone = sample_weights(load_detection_dataset(street / "a", sampling="class_balanced")["train"])
    train = load_detection_dataset(sources=[rare, street / "b"])["train"]
    assert sample_weights(train) == pytest.approx([*alone, 1, 1])
    shares = load_detection_dataset(sources=[rare | {"share": 1}, {"name_or_path": street / "b", "share": 1}])["train"]
    assert sample_weights(shares) == pytest.approx([*(alone * 6 / 8), 1.5, 1.5])
    both = load_detection_dataset(sources=[rare, street / "b"], sampling="repeat_factor")["train"]
    assert sample_weights(both) == pytest.approx(np.ones(6)) and "takes the place of that in" in caplog.text


@pytest.mark.parametrize("how", ["memory", "disk"])
def test_weights_of_a_data_set_are_those_of_its_rows(street, tmp_path, how, caplog):
    splits = load_detection_dataset(sources=[{"name_or_path": street / "a", "share": 1},
                                             {"name_or_path": street / "b", "share": 3}])  # fmt: skip
    if how == "disk":
        splits.save_to_disk(str(tmp_path / "saved"))
    again = load_detection_dataset(splits if how == "memory" else tmp_path / "saved")
    assert sample_weights(again["train"]) == pytest.approx(sample_weights(splits["train"]))
    assert data_hash(again) == data_hash(splits)
    other = load_detection_dataset(splits, sampling="repeat_factor")["train"]
    assert sample_weights(other) == pytest.approx(np.ones(6)) and "takes the place of the column" in caplog.text
    broken = splits["train"].remove_columns("sample_weight").add_column("sample_weight", [1.0, 2.0, -1.0, 1, 1, 1])
    with pytest.raises(DetectionDataError, match="row 2: column sample_weight is -1.0, no positive number"):
        load_detection_dataset(DatasetDict(train=broken))


def test_a_held_out_share_takes_the_place_of_the_sources_validation(street, caplog):
    load_detection_dataset(sources=[street / "a", street / "b"], validation_split=0.3)
    assert "sources: their validation splits, 6 images, are not used" in caplog.text


def test_the_seed_of_splits_reaches_each_source(street):
    def held(seed):
        options = {"name_or_path": street / "a", "validation_split": 0.5}
        return load_detection_dataset(sources=[options], split_seed=seed)["validation"]["file_name"]

    assert len({tuple(held(seed)) for seed in range(6)}) > 1


def test_an_object_of_two_merged_classes_is_one(tmp_path, write_coco, caplog):
    boxes = [(0, 0, 2), (0, 1, 2), (0, 1, 30), (1, 0, 5), (1, 2, 5)]
    write_coco(tmp_path / "train" / "_annotations.coco.json", {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(2)],
        "annotations": [{"id": n, "image_id": image, "category_id": category, "bbox": [x, 2, 10, 12]}
                        for n, (image, category, x) in enumerate(boxes)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("car", "vehicle", "dog"))],
    })  # fmt: skip
    merged = {"name_or_path": tmp_path, "classes": {"vehicle": ["car", "vehicle"]}}
    objects = load_detection_dataset(sources=[merged])["train"]["objects"]
    assert [row["category"] for row in objects] == [[0, 0], [0, 1]]
    assert [[box[0] for box in row["bbox"]] for row in objects] == [[2, 30], [5, 5]]
    assert [row["id"] for row in objects] == [[1, 2], [3, 4]] and "dropped 1 object" in caplog.text


def test_sources_in_memory(street):
    splits = load_detection_dataset(street / "a")
    train = load_detection_dataset(sources=[splits, street / "b"])["train"]
    assert len(train) == 6 and class_names(train) == ["pedestrian", "rider", "car", "person", "dog"]


def test_a_source_of_background_alone_goes_with_keypoints(tmp_path, data_root, write_coco):
    person = {"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS), "skeleton": [[1, 2]]}
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    write_coco(tmp_path / "train" / "_annotations.coco.json",
               {"images": images, "annotations": [], "categories": [person]})  # fmt: skip
    people = {"name_or_path": data_root / "coco_person", "splits": ["train"]}
    train = load_detection_dataset(sources=[people, tmp_path], task="keypoints")["train"]
    assert train[-1]["objects"]["keypoints"] == []


def test_a_split_of_background_alone_goes_with_keypoints_in_yolo_folders(tmp_path, write_image):
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "a.jpg")
        (tmp_path / "labels" / split).mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 .5 .5 .2 .2 .5 .5 2")
    (tmp_path / "labels/val/a.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dog]\nkpt_shape: [1, 3]\n")
    splits = load_detection_dataset(tmp_path, task="keypoints")
    assert splits["validation"][0]["objects"]["keypoints"] == []


def test_what_sources_say_of_the_same_keypoints_is_compared(tmp_path, data_root, write_coco, caplog):
    person = {"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS), "skeleton": [[1, 2]]}
    points = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "keypoints": [3, 4, 2] * 17}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    write_coco(tmp_path / "train" / "_annotations.coco.json",
               {"images": images, "annotations": points, "categories": [person]})  # fmt: skip
    people = {"name_or_path": data_root / "coco_person", "splits": ["train"]}
    load_detection_dataset(sources=[people, tmp_path], task="keypoints")
    assert "class 'person' has skeleton ((0, 1),) here" in caplog.text


def test_images_that_are_joined_are_drawn_by_their_shares(street):
    sources = [{"name_or_path": street / "a", "share": 1, "splits": ["train"]},
               {"name_or_path": street / "b", "share": 9, "splits": ["train"]}]  # fmt: skip
    drawn = []

    class Joins:
        needs_others = True

        def __call__(self, sample, rng, others):
            drawn.append([others.draw(rng) for _ in range(200)])
            return sample

    train = load_detection_dataset(sources=sources)["train"]
    samples = DetectionDataset(train, Joins(), seed=3, train=True)
    for _ in range(2):
        for row in range(4):
            samples[0, row, row]
    assert drawn[:4] == drawn[4:]  # a function of seed, epoch and position
    assert np.mean(np.array(drawn) >= 4) == pytest.approx(0.9, abs=0.05)
    alike = DetectionDataset(load_detection_dataset(street / "a")["train"], Joins(), seed=3, train=True)
    alike[0, 0, 0]
    assert np.bincount(drawn[-1], minlength=4).min() > 30
    mosaic = {"mosaic": {"probability": 1.0}}
    joined = [
        DetectionDataset(train, build_train_transform(64, multi_scale="off", preset=mosaic), train=True)[0, i, 1]
        for i in range(60)
    ]
    dogs = sum(int((each.target["class_labels"] == class_names(train).index("dog")).sum()) for each in joined)
    assert dogs > 40  # of three images joined to one, of which every second has a dog


def test_a_picture_that_stands_twice_in_training_is_still_a_leak(street, caplog):
    rows = load_detection_dataset(street / "a")["train"]
    one = {"name_or_path": DatasetDict(train=rows)}
    load_detection_dataset(sources=[one, one, {"name_or_path": DatasetDict(validation=rows.select([1])),
                                               "class_names": class_names(rows)}])  # fmt: skip
    assert "1 image is in the splits train and validation, such as " in caplog.text
    caplog.clear()
    held = load_detection_dataset(sources=[one, one], validation_split=0.4, split_seed=1)
    train, validation = (set(held[name]["file_name"]) for name in ("train", "validation"))
    assert train & validation
    shared = counted(len(train & validation), "image", "is")
    assert f"{shared} in the splits train and validation, such as " in caplog.text
    caplog.clear()
    load_detection_dataset(sources=[one], validation_split=0.5)
    assert "are in the splits" not in caplog.text
