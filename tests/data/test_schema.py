import io
import pickle

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, load_dataset, load_from_disk
from PIL import Image

from rfdetr_hf.data.errors import DetectionDataError, Problems
from rfdetr_hf.data.images import ImageFolder
from rfdetr_hf.data.pipeline.pixels import Picture, check_image, image_size, open_image
from rfdetr_hf.data.schema import (
    category_ids,
    class_names,
    decode_image,
    detection_features,
    label_table,
    undecoded,
)

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


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.pad([[65535]], (0, 3), constant_values=513).astype(np.uint16), (2, 2, 2)),
        (np.full((4, 4), 7, dtype=np.uint8), (7, 7, 7)),
        (np.full((4, 4, 4), 9, dtype=np.uint8), (9, 9, 9)),
    ],
    ids=["16-bit grey", "grey", "alpha"],
)
def test_every_mode_becomes_rgb(array, expected, tmp_path):
    Image.fromarray(array).save(tmp_path / "x.png")
    image = decode_image({"image": tmp_path / "x.png"})
    assert image.mode == "RGB" and image.getpixel((1, 1)) == expected


def tagged(path, orientation, size=(8, 6)):
    """An image whose stored top left quarter is white, with an EXIF orientation."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return {"image": str(path)}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
def test_the_annotated_size_decides_whether_exif_is_obeyed(tmp_path, suffix):
    row = tagged(tmp_path / f"x{suffix}", orientation=6)
    turned = decode_image({**row, "width": 6, "height": 8})
    assert turned.size == (6, 8) == image_size(row["image"], row)
    assert (
        turned.getpixel((5, 0))[0] > 200 and turned.getpixel((0, 0))[0] < 60
    )  # turned clockwise: white at the top right
    assert decode_image(row).size == (6, 8)
    check_image({**row, "width": 6, "height": 8}, decode=True)
    if suffix == ".tiff":  # Pillow itself turns these
        return
    kept = decode_image({**row, "width": 8, "height": 6})
    assert kept.size == (8, 6) and kept.getpixel((0, 0))[0] > 200
    assert decode_image({"image": kept}).size == (8, 6), "an image that was left as stored must not be turned later"
    check_image({**row, "width": 8, "height": 6}, decode=True)


def test_half_turn_is_obeyed_and_another_size_is_an_error(tmp_path):
    row = tagged(tmp_path / "x.jpg", orientation=3)
    assert decode_image({**row, "width": 8, "height": 6}).getpixel((7, 5))[0] > 200
    for check in (decode_image, lambda example: check_image(example, decode=False)):
        with pytest.raises(DetectionDataError, match=r"x\.jpg: the image is 8x6 pixels .* say 9x6"):
            check({**row, "width": 9, "height": 6})


def test_open_image_leaves_plain_jpegs_undecoded_and_names_their_faults(tmp_path, write_image):
    path = write_image(tmp_path / "x.jpg", (64, 48))
    with open_image({"image": str(path), "width": 64, "height": 48}) as image:
        assert isinstance(image, Picture) and image.decode(4).to_tensor().shape[:2] == (12, 16)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DetectionDataError, match=r"x\.jpg: the image cannot be decoded"):
        with open_image({"image": str(path)}) as image:
            image.load()
    with pytest.raises(ZeroDivisionError):
        with open_image({"image": str(path)}):
            raise ZeroDivisionError


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_is_noticed_as_by_a_full_decode(tmp_path, write_image, suffix):
    data = write_image(tmp_path / f"x{suffix}", (40, 32)).read_bytes()
    noticed = 0
    for length in range(0, len(data), 37):
        row = {"image": {"bytes": data[:length], "path": "cut"}, "width": 40, "height": 32}
        try:
            decode_image(row)
            full = True
        except DetectionDataError as error:
            assert str(error).startswith("cut: ")
            full = False
        try:
            check_image(row, decode=True)
            fast = True
        except DetectionDataError:
            fast = False
        assert fast == full, f"cut at {length}"
        noticed += not fast
    assert noticed >= len(range(0, len(data) - 40, 37))


def test_missing_file_and_missing_image_say_so(tmp_path):
    with pytest.raises(DetectionDataError, match=r"gone\.jpg: the image file is missing"):
        decode_image({"image": str(tmp_path / "gone.jpg")})
    with pytest.raises(DetectionDataError, match="image_id 7: no image"):
        decode_image({"image": {"path": None, "bytes": None}, "image_id": 7})


def test_image_folder_finds_names_of_any_style(tmp_path, write_image):
    for name in ("train/a.jpg", "train/b.PNG", "val/b.PNG", "sub/deep/é c.webp"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    folder = ImageFolder(tmp_path)
    assert len(folder.paths) == 4
    for name in (
        "train/a.jpg",
        "./train/a.jpg",
        str(tmp_path / "train/a.jpg"),
    ):
        assert folder.find(name) == str(tmp_path / "train/a.jpg"), name
    assert folder.resolve(["train\\a.jpg", "train/b.png"]).missing == 0
    assert folder.resolve(["/elsewhere/data/train/a.jpg", "/elsewhere/data/val/b.PNG"]).missing == 0
    for name in ("a.jpg", "é c.webp", "b.PNG", "/elsewhere/data/a.jpg"):
        assert folder.find(name) is None and folder.resolve([name, "train/b.PNG"]).missing == 1, name
    assert ImageFolder(tmp_path / "val").find("../train/a.jpg") is not None
    assert folder.unlisted([folder.find("train/a.jpg")]) == ["sub/deep/é c.webp", "train/b.PNG", "val/b.PNG"]


def test_problems_lists_ten_and_counts_all():
    problems = Problems("file.json")
    problems.raise_if_any()
    problems.add_all((f"fault {i}" for i in range(12)), "mend it")
    with pytest.raises(DetectionDataError) as error:
        problems.raise_if_any()
    text = str(error.value)
    assert text.startswith("file.json: 12 problems") and "fault 9" in text and "fault 10" not in text
    assert "2 more" in text and text.count("mend it") == 1
