"""Damage to pictures, annotation files and shards: each kind ends in its clear error or in a repair that is counted."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from rfdetr_hf import audit_data, convert_dataset, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.dataset import ShardedDataset
from rfdetr_hf.data.shards.index import INDEX, KEY

W, H, PICTURES = 64, 48, "abcd"
BOX = [8.0, 6.0, 24.0, 18.0]
SHARD = "data/train-00001-of-00002"


class Damage(NamedTuple):
    """One kind of damage.

    Attributes:
        kind: what it changes.
        source: the sound data set that is spoilt.
        spoil: changes its folder.
        expected: in the text of the error; of a counted repair, in the log or the findings of the audit.
        counted: whether it is a counted repair.
    """

    kind: str
    source: str
    spoil: Callable[[Path], Any]
    expected: str
    counted: bool = False


# ----------------------------------------------------------------------------------------------------- sound data sets


def write_pictures(folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(PICTURES):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC)
        picture.save(folder / f"{name}.{suffix}", **({"quality": 90} if suffix == "jpg" else {}))


def coco_content(**parts: Any) -> dict[str, Any]:
    """Four pictures with a cat and a dog each."""
    x, y, w, h = BOX
    annotations = [
        {"id": 2 * i + k + 1, "image_id": i, "category_id": k + 1, "bbox": [x + 20 * k, y + k, w, h], "area": w * h,
         "iscrowd": 0, "segmentation": [[x + 20 * k, y, x + 20 * k + w, y, x + 20 * k + w, y + h, x + 20 * k, y + h]],
         "keypoints": [x + 20 * k + 2, y + 3, 2, x + 20 * k + 9, y + 9, 1]}
        for i in range(len(PICTURES)) for k in range(2)
    ]  # fmt: skip
    points = {"keypoints": ["left", "right"], "skeleton": [[1, 2]]}
    return {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": W, "height": H} for i, n in enumerate(PICTURES)],
        "annotations": annotations,
        "categories": [{"id": i, "name": n, **points} for i, n in ((1, "cat"), (2, "dog"))],
        **parts,
    }


def write_coco(root: Path) -> None:
    write_pictures(root, "jpg")
    (root / "train.json").write_text(json.dumps(coco_content()))


def write_png(root: Path) -> None:
    write_pictures(root, "png")
    images = [{"id": i, "file_name": f"{name}.png", "width": W, "height": H} for i, name in enumerate(PICTURES)]
    (root / "train.json").write_text(json.dumps(coco_content(images=images)))


def write_lvis(root: Path) -> None:
    write_pictures(root / "train2017", "jpg")
    content = coco_content()
    for image in content["images"]:
        image |= {"coco_url": f"http://images.cocodataset.org/train2017/{image.pop('file_name')}",
                  "neg_category_ids": [3], "not_exhaustive_category_ids": [1]}  # fmt: skip
    content["categories"].append({"id": 3, "name": "owl"})
    (root / "train.json").write_text(json.dumps(content))


def write_yolo(root: Path) -> None:
    write_pictures(root / "images/train", "jpg")
    (root / "labels/train").mkdir(parents=True)
    for name in PICTURES:
        (root / f"labels/train/{name}.txt").write_text("0 0.3 0.3 0.3 0.3\n1 0.6 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames: [cat, dog]\n")


def write_voc(root: Path) -> None:
    write_pictures(root / "JPEGImages", "jpg")
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(PICTURES) + "\n")
    for name in PICTURES:
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>7</ymin>"
            f"<xmax>{x + 20}</xmax><ymax>40</ymax></bndbox></object>"
            for label, x in (("cat", 5), ("dog", 30))
        )
        size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(text)


def write_cvat(root: Path) -> None:
    write_pictures(root / "images", "jpg")
    shapes = "".join(
        f'<box label="{label}" occluded="0" xtl="{x}" ytl="6.5" xbr="{x + 20}" ybr="40.0" z_order="0"/>'
        for label, x in (("cat", 4.0), ("dog", 30.0))
    )
    images = "".join(
        f'<image id="{i}" name="{name}.jpg" width="{W}" height="{H}">{shapes}</image>'
        for i, name in enumerate(PICTURES)
    )
    labels = "<label><name>cat</name></label><label><name>dog</name></label>"
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{images}</annotations>")


def write_studio(root: Path) -> None:
    write_pictures(root / "images", "jpg")
    frame = {"original_width": W, "original_height": H, "image_rotation": 0}
    tasks = [
        {"id": i, "data": {"image": f"/data/local-files/?d=images/{name}.jpg"}, "annotations": [{"id": i, "result": [
            {"id": f"{i}{label}", "type": "rectanglelabels", **frame,
             "value": {"x": x, "y": 25, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": [label]}}
            for label, x in (("cat", 10), ("dog", 55))]}]}
        for i, name in enumerate(PICTURES)
    ]  # fmt: skip
    (root / "export.json").write_text(json.dumps(tasks))


def write_columns(root: Path) -> None:
    write_pictures(root / "pictures", "jpg")
    rows = [
        {"image": {"bytes": (root / f"pictures/{name}.jpg").read_bytes(), "path": f"{name}.jpg"}, "image_id": i,
         "width": W, "height": H, "bbox": [BOX, [30.0, 8.0, 20.0, 30.0]], "category": [0, 1], "iscrowd": [0, 0]}
        for i, name in enumerate(PICTURES)
    ]  # fmt: skip
    shutil.rmtree(root / "pictures")
    features = Features(
        {"image": ImageFeature(decode=False), "image_id": Value("int64"), "width": Value("int64"),
         "height": Value("int64"), "bbox": List(List(Value("float64"))),
         "category": List(ClassLabel(names=["cat", "dog"])), "iscrowd": List(Value("int64"))}
    )  # fmt: skip
    Dataset.from_list(rows, features).save_to_disk(str(root / "train"))


def write_shards(format: str) -> Callable[[Path], None]:
    """Two shards of two rows; a second data set of the same form lies in `other`."""

    def write(root: Path) -> None:
        source = root / "source"
        write_coco(source)
        splits = load_detection_dataset(source)
        shutil.rmtree(source / "x", ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "MAX_ROWS", 2)
            convert_dataset(splits, root / "shards", format, 1)
            (source / "a.jpg").write_bytes((source / "b.jpg").read_bytes())
            content = coco_content(categories=[{"id": 1, "name": "fish"}, {"id": 2, "name": "owl"}])
            (source / "train.json").write_text(json.dumps(content))
            convert_dataset(load_detection_dataset(source), root / "other", format, 1)
        shutil.rmtree(source)

    return write


SOUND: dict[str, Callable[[Path], None]] = {
    "coco": write_coco, "png": write_png, "masks": write_coco, "keypoints": write_coco, "lvis": write_lvis,
    "yolo": write_yolo, "voc": write_voc, "cvat": write_cvat, "studio": write_studio, "columns": write_columns,
    "parquet": write_shards("parquet"), "webdataset": write_shards("webdataset"),
}  # fmt: skip
TASKS = {"masks": "segmentation", "keypoints": "keypoints"}


# -------------------------------------------------------------------------------------------------------------- damage


def write(name: str, content: bytes | str) -> Callable[[Path], Any]:
    """Other content in the place of a file."""
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, share: float = 0.5) -> Callable[[Path], Any]:
    """The beginning of a file alone."""
    return lambda root: os.truncate(root / name, int((root / name).stat().st_size * share))


def remove(name: str) -> Callable[[Path], Any]:
    return lambda root: os.remove(root / name)


def rename(name: str, to: str) -> Callable[[Path], Any]:
    return lambda root: os.rename(root / name, root / to)


def copy(name: str, to: str) -> Callable[[Path], Any]:
    return lambda root: shutil.copy(root / name, root / to)


def text(name: str, old: str, new: str) -> Callable[[Path], Any]:
    """Another text at its first place in a file."""

    def spoil(root: Path) -> None:
        content = (root / name).read_text()
        assert old in content, (name, old)
        (root / name).write_text(content.replace(old, new, 1))

    return spoil


def flip(name: str, place: float | int, count: int = 1) -> Callable[[Path], Any]:
    """Other bytes at a share of a file, or so many bytes from its end."""

    def spoil(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        start = len(content) + place if isinstance(place, int) else int(len(content) * place)
        for index in range(start, start + count):
            content[index] ^= 0x5A
        (root / name).write_bytes(content)

    return spoil


def edit(change: Callable[[Any], Any], name: str = "train.json") -> Callable[[Path], Any]:
    """Another content of a JSON file; the change works in place, or returns another content."""

    def spoil(root: Path) -> None:
        content = json.loads((root / name).read_text())
        changed = change(content)
        (root / name).write_text(json.dumps(content if changed is None else changed))

    return spoil


def field(part: str, index: int, **values: Any) -> Callable[[Path], Any]:
    """Other values of a record of a COCO file; `...` takes the field away."""

    def change(content: dict[str, Any]) -> None:
        record = content[part][index]
        record |= values
        for name in [name for name, value in values.items() if value is ...]:
            del record[name]

    return edit(change)


def every(**make: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Other values in all annotations of a COCO file."""

    def change(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            record |= {name: value(record) for name, value in make.items()}

    return edit(change)


def studio(**values: Any) -> Callable[[Path], Any]:
    """Other values of the first region of Label Studio's file."""

    def change(tasks: list[Any]) -> None:
        region = tasks[0]["annotations"][0]["result"][0]
        for name, value in values.items():
            place = region if name in region else region["value"]
            place[name] = value
            if value is ...:
                del place[name]

    return edit(change, "export.json")


def column(name: str, values: list[Any], kind: Any = None) -> Callable[[Path], Any]:
    """Other values of a column of a table."""

    def spoil(root: Path) -> None:
        table = Dataset.load_from_disk(str(root / "train"))
        feature = table.features[name] if kind is None else kind
        features = Features({**table.features, name: feature})
        rows = [{**row, name: value} for row, value in zip(table, values, strict=True)]
        shutil.rmtree(root / "train")
        Dataset.from_list(rows, features).save_to_disk(str(root / "train"))

    return spoil


def inline(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """Other bytes of the second picture of a table."""

    def spoil(root: Path) -> None:
        images = [row["image"] for row in Dataset.load_from_disk(str(root / "train"))]
        images[1] = {**images[1], "bytes": change(images[1]["bytes"])}
        column("image", images)(root)

    return spoil


def parquet(
    change: Callable[[pa.Table], pa.Table], name: str = f"{SHARD}.parquet", sealed: bool = False
) -> Callable[[Path], Any]:
    """A Parquet file written anew with another table; an index without its checksum, unless it is `sealed`."""

    def spoil(root: Path) -> None:
        table = change(pq.read_table(root / name))
        metadata = dict(table.schema.metadata)
        if KEY in metadata and not sealed:
            about = json.loads(metadata[KEY])
            del about["checksum"]
            metadata[KEY] = json.dumps(about).encode()
        pq.write_table(table.replace_schema_metadata(metadata), root / name)

    return spoil


def same_size(spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """The damage, and an index that knows the new sizes: what is left is the content."""

    def spoilt(root: Path) -> None:
        spoil(root)

        def sizes(table: pa.Table) -> pa.Table:
            sizes = [(root / file).stat().st_size for file in table["file"].to_pylist()]
            return table.set_column(table.column_names.index("size"), "size", pa.array(sizes, pa.int64()))

        parquet(sizes, INDEX)(root)

    return spoilt


def index(name: str, values: list[Any], sealed: bool = False) -> Callable[[Path], Any]:
    """Other values of a column of the index."""

    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values, table.schema.field(name).type))

    return parquet(change, INDEX, sealed)


def about(change: Callable[[dict[str, Any]], Any], sealed: bool = False) -> Callable[[Path], Any]:
    """Other metadata of the index."""

    def changed(table: pa.Table) -> pa.Table:
        metadata = dict(table.schema.metadata)
        values = json.loads(metadata[KEY])
        change(values)
        return table.replace_schema_metadata({**metadata, KEY: json.dumps(values).encode()})

    return parquet(changed, INDEX, sealed)


def members(change: Callable[[list[tuple[str, bytes]]], Any]) -> Callable[[Path], Any]:
    """A tar file with other members; the index knows its new size."""

    def spoil(root: Path) -> None:
        path = root / f"{SHARD}.tar"
        with tarfile.open(path) as file:
            found = [(member.name, file.extractfile(member).read()) for member in file]
        change(found)
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
            for name, content in found:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))

    return same_size(spoil)


def in_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Another JSON of the first row of a tar file, of a writer who knows no checksums."""

    def changed(found: list[tuple[str, bytes]]) -> None:
        row = json.loads(found[1][1])
        del row["crc32"]
        change(row)
        found[1] = found[1][0], json.dumps(row).encode()

    return members(changed)


def big_header(root: Path) -> None:
    """A PNG that says to be 60,000 x 60,000."""
    import struct
    import zlib

    content = bytearray((root / "b.png").read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (root / "b.png").write_bytes(content)


def save(name: str, pixels: np.ndarray) -> Callable[[Path], Any]:
    return lambda root: Image.fromarray(pixels).save(root / name)


PNG = "b.png"
DAMAGES = [
    # pictures
    Damage(
        "a JPEG cut in half",
        "coco",
        cut("b.jpg"),
        "b.jpg: the image cannot be decoded (image file is truncated (74 bytes not proc",
    ),
    Damage("a PNG cut in half", "png", cut(PNG), "b.png: the image cannot be decoded (image file is truncated)"),
    Damage(
        "an empty picture",
        "coco",
        write("b.jpg", b""),
        "b.jpg: the image cannot be decoded (cannot identify image file);",
    ),
    Damage(
        "zeros in the place of a picture",
        "coco",
        write("b.jpg", bytes(2000)),
        "b.jpg: the image cannot be decoded (cannot identify image file",
    ),
    Damage(
        "a page of HTML in the place of a picture",
        "coco",
        write("b.jpg", "<html>404</html>"),
        "b.jpg: the image cannot be decoded (cannot identify image file",
    ),
    Damage("a picture that is gone", "coco", remove("b.jpg"), "image id 1: file_name 'b.jpg' is missing in"),
    Damage(
        "a link to nowhere",
        "coco",
        lambda r: (remove("b.jpg")(r), os.symlink("gone.jpg", r / "b.jpg")),
        "image id 1: file_name 'b.jpg' is missing in",
    ),
    Damage(
        "a folder in the place of a picture",
        "coco",
        lambda r: (remove("b.jpg")(r), (r / "b.jpg").mkdir()),
        "image id 1: file_name 'b.jpg' is missing in",
    ),
    Damage(
        "a picture of another size",
        "coco",
        save("b.jpg", np.zeros((30, 40, 3), np.uint8)),
        "b.jpg: the image is 40x30 pixels (EXIF orientation 1) but fields width and hei",
    ),
    Damage(
        "compressed pixels of a PNG",
        "png",
        flip(PNG, 0.6, 8),
        "b.png: the image cannot be decoded (unrecognized data stream contents when rea",
    ),
    Damage(
        "the header of a PNG",
        "png",
        flip(PNG, 0.0, 4),
        "b.png: the image cannot be decoded (cannot identify image file",
    ),
    Damage("a PNG that says to be huge", "png", big_header, "b.png: the image has too many pixels (Image size"),
    Damage(
        "floats that are no numbers",
        "coco",
        lambda r: Image.fromarray(np.full((H, W), np.nan, np.float32)).save(r / "b.jpg", "TIFF"),
        "b.jpg: the image cannot be decoded (it holds values that are not finite)",
    ),
    Damage(
        "one picture of 16 bits",
        "png",
        save(PNG, np.full((H, W), 4000, np.uint16)),
        "1 picture has more than 8 bits; values 0 to 4095 become 0 to 255",
        True,
    ),
    Damage("one picture twice", "coco", copy("a.jpg", "b.jpg"), "1 picture has the same bytes as another one", True),
    Damage(
        "a picture that nobody lists",
        "coco",
        copy("a.jpg", "z.jpg"),
        "1 image file is in no annotation file and left out, such as z.jpg",
        True,
    ),
    Damage(
        "a suffix in another case",
        "coco",
        rename("b.jpg", "b.JPG"),
        "found 1 image with its suffix in another case",
        True,
    ),
    # COCO files
    Damage(
        "a COCO file cut in half",
        "coco",
        cut("train.json"),
        "train.json: cannot be read as JSON (Expecting ',' delimiter: line 1 column",
    ),
    Damage("an empty COCO file", "coco", write("train.json", ""), "train.json: is empty"),
    Damage(
        "Latin-1 in a COCO file",
        "coco",
        write("train.json", json.dumps(coco_content(), ensure_ascii=False).replace("cat", "kät").encode("latin-1")),
        "train.json: cannot be read as JSON ('utf-8' codec can't decode byte 0xe4 in po",
    ),
    Damage(
        "a list for the object of a COCO file",
        "coco",
        edit(lambda c: [c]),
        "train.json: field 'images' is missing or no list of objects",
    ),
    Damage(
        "images that are no list",
        "coco",
        edit(lambda c: c | {"images": {}}),
        "data: no data set is recognised there",
    ),
    Damage(
        "annotations gone",
        "coco",
        edit(lambda c: c | {"annotations": []}),
        "there is no object in 4 images, so there is nothing to learn",
        True,
    ),
    Damage(
        "categories gone",
        "coco",
        edit(lambda c: c | {"categories": []}),
        "train.json: field categories: there are no categories",
    ),
    Damage(
        "an annotation of no image",
        "coco",
        field("annotations", 3, image_id=99),
        "annotation id 4: field image_id is 99, which no image has",
    ),
    Damage(
        "an annotation of no category",
        "coco",
        field("annotations", 3, category_id=99),
        "annotation id 4 (image id 1): field category_id is 99, not in the label table",
    ),
    Damage(
        "a category of null",
        "coco",
        field("annotations", 3, category_id=None),
        "annotation id 4: field category_id is None, not an integer of 64 bits",
    ),
    Damage(
        "an image id twice",
        "coco",
        field("images", 1, id=0),
        "annotation id 3: field image_id is 1, which no image has",
    ),
    Damage(
        "an image without a name", "coco", field("images", 1, file_name=...), "image id 1: field file_name is missing"
    ),
    Damage(
        "one file under two ids",
        "coco",
        field("images", 1, file_name="a.jpg"),
        "dropped 1 entry of files that are listed twice with the same boxes: a.jpg",
        True,
    ),
    Damage(
        "one file under two ids with other boxes",
        "coco",
        lambda r: (field("images", 1, file_name="a.jpg")(r), field("annotations", 2, bbox=[1, 1, 9, 9])(r)),
        "a.jpg is listed as image id 0 and as image id 1, with different boxes",
    ),
    Damage(
        "width and height exchanged",
        "coco",
        field("images", 1, width=H, height=W),
        "b.jpg: the image is 64x48 pixels (EXIF orientation 1) but fields width and hei",
    ),
    Damage("a width of 0", "coco", field("images", 1, width=0), "image id 1: fields width and height are [0, 48]"),
    Damage(
        "a width of text",
        "coco",
        field("images", 1, width="wide"),
        "image id 1: field width is 'wide', not an integer of 64 bits",
    ),
    Damage(
        "a box of three numbers",
        "coco",
        field("annotations", 3, bbox=[1, 2, 3]),
        "annotation id 4: field bbox is [1, 2, 3], not four numbers",
    ),
    Damage(
        "a box of text",
        "coco",
        field("annotations", 3, bbox=["x", 1, 2, 3]),
        "annotation id 4: field bbox is ['x', 1, 2, 3], not four numbers",
    ),
    Damage(
        "a box that is no number",
        "coco",
        field("annotations", 3, bbox=[float("nan"), 1, 2, 3]),
        "annotation id 4 (image id 1): field bbox is [nan, 1.0, 2.0, 3.0], not finite",
    ),
    Damage(
        "a box beyond all numbers",
        "coco",
        field("annotations", 3, bbox=[1e308, 1, 2, 3]),
        "annotation id 4 (image id 1): field bbox is [1e+308, 1.0, 2.0, 3.0], not finit",
    ),
    Damage(
        "a box gone", "coco", field("annotations", 3, bbox=...), "annotation id 4: field bbox is None, not four numbers"
    ),
    Damage(
        "a box of negative width",
        "coco",
        field("annotations", 3, bbox=[9, 9, -4, 5]),
        "dropped 1 box (a negative width or height): annotation id 4 (image id 1)",
        True,
    ),
    Damage(
        "a box beside its image",
        "coco",
        field("annotations", 3, bbox=[200, 9, 4, 5]),
        "dropped 1 box (lie outside their image): annotation id 4",
        True,
    ),
    Damage(
        "a box beyond the edge",
        "coco",
        field("annotations", 3, bbox=[50, 9, 40, 5]),
        "clamped 1 box (reach beyond their image): annotation id 4",
        True,
    ),
    Damage(
        "corners for sizes",
        "coco",
        every(bbox=lambda a: [40, 30, 60, 47]),
        "field bbox: 8 of 8 boxes make sense only as 'xyxy' (left, top, right, bottom",
    ),
    Damage(
        "shares for pixels",
        "coco",
        every(bbox=lambda a: [0.1, 0.1, 0.3, 0.4]),
        "field bbox: 8 of 8 boxes make sense only as 'xywhn' (left, top, width, height",
    ),
    Damage(
        "an annotation twice",
        "coco",
        edit(lambda c: c["annotations"].append(c["annotations"][3] | {"id": 99})),
        "dropped 1 box (written twice): annotation id 99",
        True,
    ),
    Damage(
        "an annotation id twice",
        "coco",
        field("annotations", 3, id=1),
        "annotation ids are not distinct; numbered from 1",
        True,
    ),
    Damage(
        "an area below 0", "coco", field("annotations", 3, area=-5), "annotation id 4 (image id 1): field area is -5.0"
    ),
    Damage(
        "a crowd of maybe",
        "coco",
        field("annotations", 3, iscrowd="maybe"),
        "annotation id 4: field iscrowd is 'maybe', neither yes nor no",
    ),
    Damage("an id beyond 64 bits", "coco", field("annotations", 3, id=2**70), "annotation id"),
    Damage(
        "a category name twice",
        "coco",
        field("categories", 1, name="cat"),
        "train.json: field categories: the name 'cat' belongs to several categories",
    ),
    Damage(
        "a category id twice",
        "coco",
        field("categories", 1, id=1),
        "category id 1: field name: has two names, 'cat' and 'dog'",
    ),
    Damage(
        "a polygon of five numbers",
        "masks",
        field("annotations", 3, segmentation=[[1, 2, 3, 4, 5]]),
        "annotation id 4 (image id 1): field segmentation has a polygon of shape (5,)",
    ),
    Damage(
        "a polygon of text",
        "masks",
        field("annotations", 3, segmentation=[["a"] * 6]),
        "annotation id 4 (image id 1): field segmentation has a polygon that holds more",
    ),
    Damage(
        "run lengths of another size",
        "masks",
        field("annotations", 3, segmentation={"size": [9, 9], "counts": [81]}),
        "annotation id 4 (image id 1): field segmentation is a run-length encoding of s",
    ),
    Damage(
        "run lengths that are too short",
        "masks",
        field("annotations", 3, segmentation={"size": [H, W], "counts": [5]}),
        "annotation id 4 (image id 1): field segmentation is a run-length encoding of 5",
    ),
    Damage(
        "a mask gone",
        "masks",
        field("annotations", 3, segmentation=...),
        "annotation id 4 (image id 1): field segmentation is missing or empty",
    ),
    Damage(
        "masks of other objects",
        "masks",
        every(segmentation=lambda a: [[0, 0, 3, 0, 3, 3]]),
        "annotation id 1 (image id 0): field segmentation lies elsewhere than the box",
    ),
    Damage(
        "masks in shares",
        "masks",
        every(segmentation=lambda a: [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
        "annotation id 1 (image id 0): field segmentation of 8 objects is between 0 and",
    ),
    Damage(
        "keypoints of another number",
        "keypoints",
        field("annotations", 3, keypoints=[1, 2, 2]),
        "annotation id 4: field keypoints has 3 numbers, but the category has 2 keypoin",
    ),
    Damage(
        "a keypoint of visibility 7",
        "keypoints",
        field("annotations", 3, keypoints=[1, 2, 7, 1, 2, 0]),
        "annotation id 4: field keypoints has the visibility 7",
    ),
    Damage(
        "keypoints in shares",
        "keypoints",
        every(keypoints=lambda a: [0.2, 0.3, 2, 0.4, 0.5, 2]),
        "annotation id 1 (image id 0): field keypoints: 16 of 16 keypoints are between",
    ),
    Damage(
        "a keypoint beside the image",
        "keypoints",
        field("annotations", 3, keypoints=[900, 2, 2, 30, 12, 2]),
        "took as not labelled the keypoints of 1 object (they lie outside their image)",
        True,
    ),
    # LVIS
    Damage(
        "a negative class that does not exist",
        "lvis",
        field("images", 1, neg_category_ids=[99]),
        "image id 1: field neg_category_ids is [99], no list of ids of categories",
    ),
    Damage(
        "negative classes that are no list",
        "lvis",
        field("images", 1, neg_category_ids=3),
        "image id 1: field neg_category_ids is 3, no list of ids of categories",
    ),
    Damage(
        "a negative class with a box",
        "lvis",
        field("images", 1, neg_category_ids=[1]),
        "image id 1: field neg_category_ids has [1], of which there are annotations",
    ),
    Damage(
        "incomplete classes of text",
        "lvis",
        field("images", 1, not_exhaustive_category_ids=["x"]),
        "image id 1: field not_exhaustive_category_ids is ['x'], no list of ids of cate",
    ),
    Damage(
        "one field of LVIS gone",
        "lvis",
        field("images", 1, neg_category_ids=...),
        "1 of 4 images have no field neg_category_ids",
        True,
    ),
    Damage("an address gone", "lvis", field("images", 1, coco_url=...), "image id 1: field file_name is missing"),
    # YOLO
    Damage(
        "a row of four numbers",
        "yolo",
        write("labels/train/b.txt", "0 0.5 0.5 0.2\n"),
        "labels/train/b.txt:1: 4 numbers",
    ),
    Damage(
        "a row of text",
        "yolo",
        write("labels/train/b.txt", "0 a b c d\n"),
        "labels/train/b.txt:1: could not convert string to float: 'a'",
    ),
    Damage(
        "a class beyond the names",
        "yolo",
        write("labels/train/b.txt", "7 0.5 0.5 0.2 0.2\n"),
        "labels/train/b.txt:1: class 7 is not among the names of data.yaml",
    ),
    Damage(
        "a class of 0.5",
        "yolo",
        write("labels/train/b.txt", "0.5 0.5 0.5 0.2 0.2\n"),
        "labels/train/b.txt:1: class 0.5 is not among the names of data.yaml",
    ),
    Damage(
        "rows in pixels",
        "yolo",
        write("labels/train/b.txt", "0 20 20 12 12\n"),
        "labels/train/b.txt:1: coordinates from 12 to 20",
    ),
    Damage(
        "a row of negative width",
        "yolo",
        write("labels/train/b.txt", "0 0.5 0.5 -0.2 0.2\n"),
        "labels/train/b.txt:1: coordinates from -0.2 to 0.5",
    ),
    Damage(
        "a row that is no number",
        "yolo",
        write("labels/train/b.txt", "0 nan 0.5 0.2 0.2\n"),
        "labels/train/b.txt:1: a number is not finite",
    ),
    Damage(
        "a row twice",
        "yolo",
        write("labels/train/b.txt", "0 0.5 0.5 0.2 0.2\n" * 2),
        "dropped 1 box (written twice)",
        True,
    ),
    Damage(
        "a label file of bytes",
        "yolo",
        write("labels/train/b.txt", bytes(range(128, 256))),
        "labels/train/b.txt: cannot be read ('utf-8' codec can't decode byte 0x80 in po",
    ),
    Damage("a label file cut in a row", "yolo", cut("labels/train/b.txt", 0.8), "labels/train/b.txt:2: 4 numbers"),
    Damage(
        "a label file gone",
        "yolo",
        remove("labels/train/b.txt"),
        "4 images, 1 of them background: 1 without a label file",
        True,
    ),
    Damage(
        "a label file without a picture",
        "yolo",
        write("labels/train/z.txt", "0 0.5 0.5 0.2 0.2\n"),
        "1 label file is left out, without an image, such as",
        True,
    ),
    Damage(
        "a label suffix in capitals",
        "yolo",
        rename("labels/train/b.txt", "labels/train/b.TXT"),
        "found 1 label file under a name in another case",
        True,
    ),
    Damage(
        "one label file for two pictures",
        "yolo",
        copy("images/train/c.jpg", "images/train/b.png"),
        "labels/train/b.txt: belongs to ",
    ),
    Damage(
        "a data.yaml that is no YAML",
        "yolo",
        write("data.yaml", "names: [cat, dog\ntrain: {"),
        "data.yaml: cannot be read as YAML (while parsing a flow sequence",
    ),
    Damage(
        "a key of data.yaml twice",
        "yolo",
        text("data.yaml", "nc: 2", "train: images/val"),
        "data.yaml: cannot be read as YAML (field 'train' stands twice, line 1",
    ),
    Damage(
        "names and nc that differ",
        "yolo",
        text("data.yaml", "nc: 2", "nc: 3"),
        "data.yaml: field nc is 3, but there are 2 names",
    ),
    Damage(
        "a name twice",
        "yolo",
        text("data.yaml", "[cat, dog]", "[cat, cat]"),
        "data.yaml: field names: the name 'cat' belongs to several categories",
    ),
    Damage(
        "a folder of pictures gone",
        "yolo",
        text("data.yaml", "images/train", "images/gone"),
        "data.yaml: field train: 'images/gone' is neither a folder of images nor a .txt",
    ),
    Damage(
        "the only picture that is cut",
        "yolo",
        cut("images/train/b.jpg", 0.02),
        "images/train/b.jpg: the image cannot be decoded (Truncated File Read)",
    ),
    # Pascal VOC
    Damage(
        "an XML file cut in half",
        "voc",
        cut("Annotations/b.xml"),
        "Annotations/b.xml: cannot be read as XML (unclosed token: line 1, column 187)",
    ),
    Damage(
        "an empty XML file",
        "voc",
        write("Annotations/b.xml", ""),
        "Annotations/b.xml: cannot be read as XML (no element found: line 1, column 0)",
    ),
    Damage(
        "entities in an XML file",
        "voc",
        text("Annotations/b.xml", "<annotation>", '<!DOCTYPE a [<!ENTITY x "y">]><annotation>'),
        "Annotations/b.xml: cannot be read as XML (it declares the document type 'a', w",
    ),
    Damage(
        "an XML file gone",
        "voc",
        remove("Annotations/b.xml"),
        "ImageSets/Main/train.txt: 'b' has no ",
    ),
    Damage(
        "corners exchanged",
        "voc",
        text("Annotations/b.xml", "<xmin>5</xmin>", "<xmin>45</xmin>"),
        "dropped 1 box (a negative width or height)",
        True,
    ),
    Damage(
        "a corner gone",
        "voc",
        text("Annotations/b.xml", "<xmin>5</xmin>", ""),
        "Annotations/b.xml: object 1: field bndbox/xmin is missing or empty",
    ),
    Damage(
        "a corner of text",
        "voc",
        text("Annotations/b.xml", "<xmin>5</xmin>", "<xmin>left</xmin>"),
        "Annotations/b.xml: object 1: field bndbox/xmin is 'left', no number",
    ),
    Damage(
        "a class without a name",
        "voc",
        text("Annotations/b.xml", "<name>cat</name>", "<name></name>"),
        "Annotations/b.xml: object 1: field name is missing or empty",
    ),
    Damage(
        "difficult of maybe",
        "voc",
        text("Annotations/b.xml", "<difficult>0", "<difficult>maybe"),
        "Annotations/b.xml: object 1: field difficult is 'maybe'",
    ),
    Damage(
        "a size of another picture",
        "voc",
        text("Annotations/b.xml", f"<width>{W}", "<width>32"),
        "JPEGImages/b.jpg: the image is 64x48 pixels (EXIF orientation 1) but fields wi",
    ),
    Damage(
        "a picture gone",
        "voc",
        remove("JPEGImages/b.jpg"),
        "Annotations/b.xml: its picture is missing in ",
    ),
    Damage(
        "a list that names no file",
        "voc",
        text("ImageSets/Main/train.txt", "b\n", "q\n"),
        "ImageSets/Main/train.txt: 'q' has no ",
    ),
    # CVAT
    Damage(
        "an export of CVAT cut in half",
        "cvat",
        cut("annotations.xml"),
        "annotations.xml: cannot be read as XML (unclosed token: line 1, column 504)",
    ),
    Damage(
        "a box without its left side",
        "cvat",
        text("annotations.xml", ' xtl="4.0"', ""),
        "annotations.xml: image 'a.jpg', shape 1 (box): field xtl is missing or empty",
    ),
    Damage(
        "a side that is no number",
        "cvat",
        text("annotations.xml", 'xtl="4.0"', 'xtl="nan"'),
        "annotations.xml: image 'a.jpg', shape 1 (box): field xtl is 'nan', no number",
    ),
    Damage(
        "sides exchanged",
        "cvat",
        text("annotations.xml", 'xtl="4.0"', 'xtl="44.0"'),
        "dropped 1 box (a negative width or height)",
        True,
    ),
    Damage(
        "a label of a blank",
        "cvat",
        text("annotations.xml", 'box label="cat"', 'box label=" "'),
        "annotations.xml: image 'a.jpg', shape 1 (box): field label is missing or empty",
    ),
    Damage(
        "a label that is not in the list",
        "cvat",
        text("annotations.xml", 'box label="cat"', 'box label="cow"'),
        "annotations.xml: image 'a.jpg', shape 1 (box): the class 'cow' is not in the l",
    ),
    Damage(
        "an image of CVAT without a name",
        "cvat",
        text("annotations.xml", ' name="b.jpg"', ""),
        "annotations.xml: image number 1: field name is missing or empty",
    ),
    Damage("an image that is gone", "cvat", remove("images/b.jpg"), "'b.jpg' is missing in"),
    Damage(
        "a height of another picture",
        "cvat",
        text("annotations.xml", 'height="48"', 'height="40"'),
        "images/a.jpg: the image is 64x48 pixels (EXIF orientation 1) but fields width",
    ),
    Damage(
        "a polygon of one point",
        "cvat",
        text(
            "annotations.xml",
            '<box label="cat" occluded="0" xtl="4.0" ytl="6.5" xbr="24.0" ybr="40.0" z_order="0"/>',
            '<polygon label="cat" points="1,2"/>',
        ),
        "annotations.xml: image 'a.jpg', shape 1 (polygon): field points is '1,2', not",
    ),
    # Label Studio
    Damage(
        "an export of Label Studio cut in half",
        "studio",
        cut("export.json"),
        "export.json: cannot be read as JSON (Expecting value: line 1 column",
    ),
    Damage(
        "a region without its width",
        "studio",
        studio(width=...),
        "left out 1 results of the type 'rectanglelabels'",
        True,
    ),
    Damage(
        "a region of text",
        "studio",
        studio(x="left"),
        "export.json: task 0, region 0cat: fields x, y, width, height, rotation are ['l",
    ),
    Damage(
        "a region in shares of 1",
        "studio",
        edit(
            lambda tasks: (
                [
                    r["value"].update({k: r["value"][k] / 100 for k in ("x", "y", "width", "height")})
                    for t in tasks
                    for r in t["annotations"][0]["result"]
                ]
                and None
            ),
            "export.json",
        ),
        "export.json: task 0, region 0cat: 8 of 8 boxes are smaller than a pixel",
    ),
    Damage("a region beyond the edge", "studio", studio(x=80), "clamped 1 box (reach beyond their image)", True),
    Damage(
        "a region of no label", "studio", studio(rectanglelabels=[]), "export.json: task 0, region 0cat: has no label"
    ),
    Damage(
        "a frame of another picture",
        "studio",
        studio(original_width=640),
        "export.json: task 0: fields original_width and original_height are [(64, 48)",
    ),
    Damage("a picture of a task gone", "studio", remove("images/b.jpg"), "'images/b.jpg' is missing in"),
    Damage(
        "a task without a picture",
        "studio",
        edit(lambda tasks: tasks[1]["data"].clear(), "export.json"),
        "export.json: task 1: field data: is {}, without a picture",
    ),
    Damage(
        "a task of two annotations",
        "studio",
        edit(
            lambda tasks: tasks[1]["annotations"].append({"id": 9, "result": tasks[0]["annotations"][0]["result"][:1]}),
            "export.json",
        ),
        "export.json: task 1: has 2 annotations that differ (by None, None)",
    ),
    Damage(
        "a task not annotated",
        "studio",
        edit(lambda tasks: tasks[1]["annotations"].clear(), "export.json"),
        "left out 1 tasks that nobody has annotated",
        True,
    ),
    # tables
    Damage(
        "lists of other lengths",
        "columns",
        column("category", [[0, 1], [0], [0, 1], [0, 1]]),
        "data, split train: row 1 has 2 boxes but 1 values in category",
    ),
    Damage(
        "a box of a table with three numbers",
        "columns",
        column("bbox", [[BOX, BOX[:3]]] + [[BOX, BOX]] * 3),
        "box 1 of the split (image id 0): field bbox has 3 numbers, not four",
    ),
    Damage(
        "a box of a table that is no number",
        "columns",
        column("bbox", [[BOX, [float("inf")] * 4]] + [[BOX, BOX]] * 3),
        "annotation id 2 (image id 0): field bbox is [inf, inf, inf, inf], not finite",
    ),
    Damage(
        "boxes of a table as corners",
        "columns",
        column("bbox", [[[40.0, 30, 60, 47], [30.0, 30, 60, 44]]] * 4),
        "field bbox: 8 of 8 boxes make sense only as 'xyxy' (left, top, right, bottom",
    ),
    Damage(
        "a label of null",
        "columns",
        column("category", [[0, None]] + [[0, 1]] * 3),
        "annotation id 2 (image id 0): field category is -1 (or null), no category",
    ),
    Damage(
        "crowds of 2",
        "columns",
        column("iscrowd", [[0, 2]] + [[0, 0]] * 3),
        "data, split train: row 0: column iscrowd holds 2, neither yes nor no",
    ),
    Damage("an image id of a table twice", "columns", column("image_id", [0, 1, 1, 3]), "image id 1: used by 2 images"),
    Damage(
        "a width of a table that is another",
        "columns",
        column("width", [W, 32, W, W]),
        "b.jpg: the image is 64x48 pixels (EXIF orientation 1) but fields width and hei",
    ),
    Damage(
        "a picture in a table cut",
        "columns",
        inline(lambda b: b[:400]),
        "b.jpg: the image cannot be decoded (Truncated File Read)",
    ),
    Damage(
        "a picture in a table gone",
        "columns",
        inline(lambda b: b""),
        "b.jpg: the image cannot be decoded (cannot identify image file",
    ),
    Damage(
        "a table cut in half",
        "columns",
        lambda r: cut(next((r / "train").glob("*.arrow")).relative_to(r))(r),
        "data: cannot be loaded (OSError: Expected to be able to read",
    ),
    # Parquet shards
    Damage("a shard cut in half", "parquet", cut(f"{SHARD}.parquet"), "train-"),
    Damage("a shard cut in half that the index knows", "parquet", same_size(cut(f"{SHARD}.parquet")), "train-"),
    Damage("the length of the footer", "parquet", flip(f"{SHARD}.parquet", -8, 4), "train-"),
    Damage("bytes of the footer", "parquet", flip(f"{SHARD}.parquet", -400, 40), "train-"),
    Damage("the mark at the end", "parquet", flip(f"{SHARD}.parquet", -4, 4), "train-"),
    Damage("bytes of a page", "parquet", flip(f"{SHARD}.parquet", 0.4, 4), "train-"),
    Damage("a shard gone", "parquet", remove(f"{SHARD}.parquet"), "train-"),
    Damage("an empty shard", "parquet", write(f"{SHARD}.parquet", b""), "train-"),
    Damage("a shard with a row less", "parquet", same_size(parquet(lambda t: t.slice(1))), "train-"),
    Damage(
        "a shard with a row twice", "parquet", same_size(parquet(lambda t: pa.concat_tables([t, t.slice(1)]))), "train-"
    ),
    Damage("a shard without a column", "parquet", same_size(parquet(lambda t: t.drop_columns(["width"]))), "train-"),
    Damage(
        "a column of another type",
        "parquet",
        same_size(parquet(lambda t: t.set_column(t.column_names.index("width"), "width", pa.array(["x"] * len(t))))),
        "train-",
    ),
    Damage("a shard of another data set", "parquet", copy(f"../other/{SHARD}.parquet", f"{SHARD}.parquet"), "train-"),
    Damage(
        "a shard of other classes that the index knows",
        "parquet",
        same_size(copy(f"../other/{SHARD}.parquet", f"{SHARD}.parquet")),
        "train-",
    ),
    Damage(
        "two shards exchanged",
        "parquet",
        lambda r: (
            rename("data/train-00000-of-00002.parquet", "data/x")(r),
            rename(f"{SHARD}.parquet", "data/train-00000-of-00002.parquet")(r),
            rename("data/x", f"{SHARD}.parquet")(r),
        ),
        "train-",
    ),
    Damage(
        "a shard that the index does not know",
        "parquet",
        copy(f"{SHARD}.parquet", "data/train-00002-of-00003.parquet"),
        "1 shard is not in _index.parquet and left out",
        True,
    ),
    Damage(
        "an index cut in half",
        "parquet",
        cut(INDEX),
        "_index.parquet: is no index of shards (ArrowInvalid: Parquet magic bytes not f",
    ),
    Damage(
        "an empty index",
        "parquet",
        write(INDEX, b""),
        "_index.parquet: is no index of shards (ArrowInvalid: Parquet file size is 0 by",
    ),
    Damage("an index of another data set", "parquet", copy(f"../other/{INDEX}", INDEX), "train-"),
    Damage(
        "an index of a later version",
        "parquet",
        about(lambda v: v.update(version=99)),
        "_index.parquet: has version 99, and this package reads 1; update it",
    ),
    Damage(
        "an index without features",
        "parquet",
        about(lambda v: v.pop("features")),
        "_index.parquet: is no index of shards (KeyError: 'features')",
    ),
    Damage("an index of another format", "parquet", about(lambda v: v.update(format="webdataset")), "train-"),
    Damage(
        "an index of an unknown format",
        "parquet",
        about(lambda v: v.update(format="zip")),
        "_index.parquet: field format is 'zip', none of parquet, webdataset",
    ),
    Damage(
        "rows of the index that lie",
        "parquet",
        index("rows", [2, 3]),
        "_index.parquet: is no index of shards (ValueError: rows of split 'train': 5 in",
    ),
    Damage("rows of the index that lie in sum alike", "parquet", index("rows", [1, 3]), "train-"),
    Damage(
        "rows below 0",
        "parquet",
        index("rows", [5, -1]),
        "_index.parquet: is no index of shards (ValueError: rows of split 'train': 4 in",
    ),
    Damage("sizes of the index that lie", "parquet", index("size", [10, 20]), "train-"),
    Damage(
        "counts of the index that lie",
        "parquet",
        about(lambda v: v["counts"]["train"].update(objects=[100, 1]), True),
        "_index.parquet: is no index of shards (ValueError: its checksum is another one",
    ),
    Damage(
        "a row more in the index",
        "parquet",
        index("rows", [3, 2], True),
        "_index.parquet: is no index of shards (ValueError: its checksum is another one",
    ),
    Damage(
        "names of the index that lead nowhere",
        "parquet",
        index("file", ["data/x", "data/y"]),
        "x: the shard is missing",
    ),
    Damage(
        "names of the index that lead out",
        "parquet",
        index("file", ["../other/data/train-00000-of-00002.parquet"] * 2),
        "_index.parquet: is no index of shards (ValueError: a file of split 'train' sta",
    ),
    Damage(
        "a shard named twice",
        "parquet",
        index("file", [f"{SHARD}.parquet"] * 2),
        "_index.parquet: is no index of shards (ValueError: a file of split 'train' sta",
    ),
    Damage(
        "a picture in a shard cut",
        "parquet",
        same_size(
            parquet(
                lambda t: t.set_column(
                    t.column_names.index("image"),
                    t.field("image"),
                    pa.array(
                        [{"bytes": r["bytes"][:300], "path": r["path"]} for r in t["image"].to_pylist()],
                        t.field("image").type,
                    ),
                )
            )
        ),
        "c.jpg: the image cannot be decoded (Truncated File Read)",
    ),
    Damage(
        "labels beyond the classes in a shard",
        "parquet",
        same_size(
            parquet(
                lambda t: t.set_column(
                    t.column_names.index("objects"),
                    t.field("objects"),
                    pa.array([r | {"category": [9, 9]} for r in t["objects"].to_pylist()], t.field("objects").type),
                )
            )
        ),
        "train-",
    ),
    # WebDataset shards
    Damage("a tar cut in half", "webdataset", cut(f"{SHARD}.tar"), "train-"),
    Damage("a tar cut in half that the index knows", "webdataset", same_size(cut(f"{SHARD}.tar")), "train-"),
    Damage("a tar cut between rows", "webdataset", members(lambda m: m.__delitem__(slice(2, None))), "train-"),
    Damage("a tar without one JSON", "webdataset", members(lambda m: m.pop(1)), "train-"),
    Damage("a tar without one picture", "webdataset", members(lambda m: m.pop(0)), "train-"),
    Damage("two members exchanged", "webdataset", members(lambda m: m.__setitem__(slice(0, 2), m[1::-1])), "train-"),
    Damage("a JSON of another row", "webdataset", members(lambda m: m.__setitem__(1, (m[1][0], m[3][1]))), "train-"),
    Damage(
        "a member of another name", "webdataset", members(lambda m: m.__setitem__(1, ("x.json", m[1][1]))), "train-"
    ),
    Damage(
        "a row more", "webdataset", members(lambda m: m.extend([("z.jpg", m[0][1]), ("z.json", m[1][1])])), "train-"
    ),
    Damage("a JSON cut in half", "webdataset", members(lambda m: m.__setitem__(1, (m[1][0], m[1][1][:90]))), "train-"),
    Damage("a JSON without a field", "webdataset", in_json(lambda row: row.pop("width")), "train-"),
    Damage("a JSON without boxes", "webdataset", in_json(lambda row: row["objects"].pop("bbox")), "train-"),
    Damage(
        "a JSON with lists of other lengths",
        "webdataset",
        in_json(lambda row: row["objects"]["category"].pop()),
        "train-",
    ),
    Damage("a JSON with a width of text", "webdataset", in_json(lambda row: row.update(width="wide")), "train-"),
    Damage(
        "a JSON with a label beyond the classes",
        "webdataset",
        in_json(lambda row: row["objects"].update(category=[0, 9])),
        "train-",
    ),
    Damage("the checksum of a header", "webdataset", flip(f"{SHARD}.tar", 150 / 10240, 4), "train-"),
    Damage(
        "a digit of a JSON",
        "webdataset",
        members(lambda m: m.__setitem__(1, (m[1][0], m[1][1].replace(b"8.0", b"3.0", 1)))),
        "train-",
    ),
    Damage(
        "pixels of a picture in a tar",
        "webdataset",
        members(lambda m: m.__setitem__(0, (m[0][0], m[0][1][:-90] + bytes(60) + m[0][1][-30:]))),
        "train-",
    ),
    Damage(
        "a tar of another data set", "webdataset", same_size(copy(f"../other/{SHARD}.tar", f"{SHARD}.tar")), "train-"
    ),
    Damage(
        "a picture in a tar cut", "webdataset", members(lambda m: m.__setitem__(0, (m[0][0], m[0][1][:300]))), "train-"
    ),
    Damage("a tar gone", "webdataset", remove(f"{SHARD}.tar"), "train-"),
    Damage("an empty tar", "webdataset", same_size(write(f"{SHARD}.tar", b"")), "train-"),
    Damage("a tar without its index", "webdataset", remove(INDEX), "shards: no data set is recognised there"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a sound data set, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            SOUND[name](made[name])
        return made[name]

    return of


@pytest.fixture
def look(tmp_path, monkeypatch, caplog):
    """Loads a data set, reads everything in it, and says what came of it: the error, or what was logged and found."""

    def seen(folder: Path, source: str) -> tuple[str | None, str]:
        caplog.clear()
        caplog.set_level("INFO")
        try:
            splits = load_detection_dataset(folder, task=TASKS.get(source, "detection"))
            found = audit_data(splits, cache_dir="")
            faults = [each for each in found.findings if each.kind == "unreadable pictures"]
            if faults:
                raise DetectionDataError(faults[0].text)
            for split in splits.values():
                if isinstance(split, ShardedDataset):
                    for row in split:
                        decode_image(row)
        except DetectionDataError as error:
            return str(error), ""
        return None, "\n".join([caplog.text, *(f"{each.kind}: {each.text}" for each in found.findings)])

    return seen


@pytest.mark.parametrize("source", SOUND)
def test_sound_data_sets_pass(source, sound, look):
    folder = sound(source)
    error, said = look(folder / "shards" if (folder / "shards").is_dir() else folder, source)
    assert error is None and "WARNING" not in said.replace("WARNING  rfdetr_hf.data.sense", "")


@pytest.mark.parametrize("damage", DAMAGES, ids=[each.kind.replace(" ", "-") for each in DAMAGES])
def test_damage_is_an_error_or_a_counted_repair(damage, sound, look, tmp_path):
    shutil.copytree(sound(damage.source), tmp_path / "data", symlinks=True)
    folder = tmp_path / "data"
    folder = folder / "shards" if (folder / "shards").is_dir() else folder
    damage.spoil(folder)
    error, said = look(folder, damage.source)
    if damage.counted:
        assert error is None and damage.expected in said
        return
    assert error is not None, "it passes in silence"
    assert damage.expected in error
    assert "; " in error or "To repair: " in error, "what to do about it"
    assert len(error) < 3000


def test_there_are_enough_kinds_of_damage():
    assert len({damage.kind for damage in DAMAGES}) == len(DAMAGES) >= 60
    assert {damage.source for damage in DAMAGES} == set(SOUND)
