"""Spoil COCO files, YOLO folders and image bytes, load them, and say what became of each mutation.

Each mutation changes one thing of a small sound data set. It counts as effective when a reader that checks nothing
would load something else than before (or fail). The loader must refuse it in an error that names file and field, repair
it and say so in the log, or let it pass; what passes in silence is printed by kind, with the reason why that is right.
Each worker has a limit of memory, each mutation one of processor time; a busy machine makes every process wait, so what
waits is stopped much later.

    python tools/fuzz_data.py --count 300 --seed 0
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SECONDS, GIGABYTES = 20, 2
WAITING = 300
IMAGES, BOXES = 4, 3
SIZE = (64, 48)

# Why mutations of a kind may pass in silence.
REASONS = {
    "area": "the area of the file is kept: 0 or another number is what the annotator says",
    "bbox": "the box is another one, inside its image: nothing contradicts it",
    "bbox digits": "the box is another one, inside its image: nothing contradicts it",
    "category_id": "another class of the table: nothing contradicts it",
    "class": "another class of the table: nothing contradicts it",
    "drop field": "the field may be left out",
    "extra": "fields that the loader does not read are left alone",
    "id": "ids of annotations may be any distinct integers",
    "image_id": "the box goes to another image that has room for it",
    "iscrowd": "another spelling of yes or no",
    "key order": "the order of fields says nothing",
    "name": "a class may have any name",
    "nc": "another spelling of the same number",
    "bytes": "another digit of a number, or another letter of a name: nothing contradicts it",
    "bytes removed": "bytes that the decoder accepts give other pixels, or none",
    "categories keypoints": "a keypoint may have any name",
    "categories skeleton": "another line between keypoints that there are: nothing contradicts it",
    "record twice": "a category that is listed twice under one name is one category",
    "pixels": "bytes that the decoder accepts give other pixels, or none",
    "record order": "the order of records says nothing",
    "row digits": "the box is another one, inside its image",
    "row dropped": "an image may have any number of objects",
    "row order": "the order of rows says nothing",
    "segmentation": "the outline is another one near its box",
    "size": "a size that the image does not have is refused when it is decoded (audit)",
    "spaces": "blanks between numbers say nothing",
    "supercategory": "the group of a category says nothing here",
    "header": "parts of a file that decoders skip (comments, profiles)",
    "yaml extra": "fields that the loader does not read are left alone",
    "label removed": "an image without a label file is background, which is counted",
    "record dropped": "an image may have any number of objects",
    "keypoints": "the keypoint is another one, inside its image",
}


class Result(NamedTuple):
    """What became of one mutation."""

    target: str
    kind: str
    effective: bool
    outcome: str  # refused, repaired, passed, bare error, slow, memory, crash
    detail: str


# --------------------------------------------------------------------------------------------------- sound data sets


def coco_content(task: str) -> dict[str, Any]:
    """A sound COCO file of four images with three objects each."""
    rng = np.random.default_rng(7)
    annotations = []
    for index in range(IMAGES * BOXES):
        w, h = (int(v) for v in rng.integers(8, 24, 2))
        x, y = int(rng.integers(0, SIZE[0] - w)), int(rng.integers(0, SIZE[1] - h))
        record: dict[str, Any] = {
            "id": index + 1,
            "image_id": index // BOXES + 1,
            "category_id": 1 + index % 2,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
        }
        if task == "segmentation":
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if task == "keypoints":
            record["keypoints"] = [x + 2, y + 2, 2, x + w - 2, y + h - 2, 1]
        annotations.append(record)
    points = {"keypoints": ["left", "right"], "skeleton": [[1, 2]]} if task == "keypoints" else {}
    return {
        "info": {"year": 2026},
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(IMAGES)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "x", **points} for i, name in ((1, "cat"), (2, "dog"))],
    }


def png(seed: int) -> bytes:
    """A noisy picture."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


# --------------------------------------------------------------------------------------------------------- mutations

WEIRD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    1.5,
    -0.0,
    1e300,
    -1e300,
    2**31,
    2**53 + 1,
    2**63,
    10**400,
    math.nan,
    math.inf,
    "",
    "0",
    "1",
    "false",
    "null",
    "x",
    "\u0000",
    "é" * 50,
    [],
    {},
    [[]],
    [None],
    [1],
    {"a": 1},
    [[[[1]]]],
    "1e5",
    "-1",
    ["x"] * 4,
    0.5,
    63,
    999,
]


def mutate_coco(rng: random.Random, root: Path) -> tuple[str, str, bool]:
    """Write a spoiled COCO data set; kind, task, and whether what it says has changed."""
    task = rng.choice(["detection", "detection", "segmentation", "keypoints"])
    content = coco_content(task)
    for i in range(IMAGES):
        (root / f"{i}.png").write_bytes(png(i))
    before = _essence(content, task)
    text, kind = None, ""
    choice = rng.random()
    part = rng.choice(["images", "annotations", "annotations", "annotations", "categories"])
    records = content[part]
    record = rng.choice(records)
    if choice < 0.45:
        field = rng.choice(list(record))
        record[field] = rng.choice(WEIRD)
        kind = _field_kind(part, field)
    elif choice < 0.6:
        field = rng.choice([name for name in record if isinstance(record[name], list)] or ["id"])
        value = record.get(field)
        if isinstance(value, list) and value:
            _spoil_list(rng, value)
        else:
            record[field] = rng.choice([record[field], -record[field], record[field] + rng.choice([1, 2, 1000])])
        kind = _field_kind(part, field)
    elif choice < 0.66:
        field = rng.choice(list(record))
        del record[field]
        kind = "drop field"
    elif choice < 0.72:
        records.append(copy.deepcopy(record))
        kind = "record twice"
    elif choice < 0.77:
        records.remove(record)
        kind = "record dropped"
    elif choice < 0.8:
        rng.shuffle(records)
        kind = "record order"
    elif choice < 0.83:
        content[part] = rng.choice([None, {}, [], "x", [[]], [None], 5])
        kind = "part"
    elif choice < 0.86:
        name = rng.choice(["0.png", "1.png"])
        content["images"][2]["file_name"] = rng.choice(
            [f"../{name}", name, f"sub/{name}", "2.PNG", "./2.png", "2.png ", "a%20b.png", "2.jpg", str(root / name)]
        )
        kind = "file_name"
    elif choice < 0.88:
        for each in content["annotations"]:
            x, y, w, h = each["bbox"]
            each["bbox"] = rng.choice(
                [[x, y, x + w, y + h], [x / 64, y / 48, w / 64, h / 48], [x + w / 2, y + h / 2, w, h]]
            )
        kind = "convention"
    else:
        text = json.dumps(content)
        at = rng.randrange(len(text))
        kind, text = rng.choice(
            [
                ("bytes", text[:at]),
                ("bytes", text[:at] + rng.choice('{}[],:"0\\x') + text[at + 1 :]),
                ("bytes", text[:at] + rng.choice("0123456789-.eE") + text[at:]),
                ("bytes", text[:at] + text[at + rng.randrange(1, 9) :]),
                ("nesting", text.replace('"info": {"year": 2026}', '"info": ' + "[" * 50_000 + "]" * 50_000)),
                ("twice", text[:-1] + ', "annotations": []}'),
            ]
        )
    try:
        after = _essence(json.loads(text) if text is not None else content, task)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        after = "unreadable"
    (root / "train.json").write_text(text if text is not None else json.dumps(content), encoding="utf-8")
    return kind, task, after != before


def _essence(content: dict[str, Any], task: str) -> str:
    """What a reader that checks nothing takes from a COCO file."""
    fields = ["id", "image_id", "category_id", "bbox", "area", "iscrowd"]
    fields += [{"segmentation": "segmentation"}.get(task, "keypoints")] if task != "detection" else []
    names = {
        "images": ["id", "file_name", "width", "height"],
        "annotations": fields,
        "categories": ["id", "name", "keypoints", "skeleton"],
    }
    parts = {
        part: sorted(json.dumps({k: r.get(k) for k in keep}, sort_keys=True) for r in content[part])
        for part, keep in names.items()
    }
    return json.dumps(parts)


def _field_kind(part: str, field: str) -> str:
    if part == "annotations":
        return field
    return {"width": "size", "height": "size"}.get(field, "name" if field == "name" else f"{part} {field}")


def _spoil_list(rng: random.Random, value: list) -> None:
    if isinstance(value[0], list) and value[0]:
        _spoil_list(rng, value[0])
        return
    at = rng.randrange(len(value))
    action = rng.random()
    if action < 0.3:
        value[at] = rng.choice(WEIRD)
    elif action < 0.5:
        del value[at]
    elif action < 0.6:
        value.append(rng.choice([0, 5, None]))
    elif isinstance(value[at], (int, float)):
        value[at] = rng.choice([-value[at], value[at] * 1000, value[at] + 0.25, value[at] / 64, 1e12, value[at] + 40])
    else:
        value[at] = rng.choice(WEIRD)


def mutate_yolo(rng: random.Random, root: Path) -> tuple[str, str, bool]:
    """Write a spoiled YOLO data set; kind, task, and whether a reader that checks nothing loads something else."""
    task = rng.choice(["detection", "detection", "segmentation"])
    draw = np.random.default_rng(7)
    rows: dict[str, list[str]] = {}
    for i in range(IMAGES):
        (root / "images/train").mkdir(parents=True, exist_ok=True)
        (root / f"images/train/{i}.png").write_bytes(png(i))
        rows[f"{i}.txt"] = []
        for b in range(BOXES):
            x, y = draw.uniform(0.05, 0.5, 2).round(3)
            w, h = draw.uniform(0.15, 0.4, 2).round(3)
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            numbers = corners if task == "segmentation" else [x + w / 2, y + h / 2, w, h]
            rows[f"{i}.txt"].append(f"{b % 2} " + " ".join(f"{v:.4f}" for v in numbers))
    yaml_text = "path: .\ntrain: images/train\nnc: 2\nnames: [cat, dog]\n"
    name = rng.choice(list(rows))
    choice, effective = rng.random(), True
    labels = root / "labels/train"
    labels.mkdir(parents=True)
    after: Callable[[], None] | None = None
    if choice < 0.35:
        at = rng.randrange(BOXES)
        parts = rows[name][at].split()
        k = rng.randrange(len(parts))
        old = parts[k]
        parts[k] = rng.choice(
            [
                "nan",
                "inf",
                "-1",
                "2",
                "x",
                "",
                "0.5_0",
                "1e9",
                "0",
                "1",
                "0,5",
                "٠",
                "1.0",
                "-0.2",
                "1.2",
                "0.5",
                "9" * 400,
                "0x1",
                "+0.5",
                ".5",
            ]
        )
        kind = "class" if k == 0 else "row digits"
        rows[name][at] = " ".join(parts)
        effective = parts[k] != old
    elif choice < 0.42:
        rows[name] += [rng.choice(rows[name])]
        kind = "row twice"
    elif choice < 0.48:
        rows[name][0] = rng.choice(
            [rows[name][0] + " 0.9", rows[name][0] + " # cat", rows[name][0].replace(" ", ","), "0", "cat 1"]
        )
        kind = "row length"
    elif choice < 0.52:
        rows[name] = rows[name][:-1]
        kind = "row dropped"
    elif choice < 0.56:
        rows[name][0] = rows[name][0].replace(" ", rng.choice(["  ", "\t", " \t "]))
        kind, effective = "spaces", False
    elif choice < 0.72:
        kind = "yaml"
        yaml_text = rng.choice(
            [
                yaml_text.replace("nc: 2", rng.choice(["nc: 3", "nc: '3'", "nc: 1"])),
                yaml_text.replace(
                    "cat, dog", rng.choice(["cat, cat", "cat", "[cat], dog", "cat, ", "", "{a: 1}, dog"])
                ),
                yaml_text.replace(
                    "names: [cat, dog]",
                    rng.choice(
                        [
                            "names: {1: cat, 2: dog}",
                            "names: {0: cat, 0: dog}",
                            "names: cat",
                            "names: 5",
                            "names: null",
                            "",
                            "names: {a: cat}",
                            "names: {-1: cat, 0: dog}",
                            "names: {0.5: cat}",
                            "names: [cat, dog]\nnames: [dog, cat]",
                        ]
                    ),
                ),
                yaml_text.replace(
                    "images/train",
                    rng.choice(
                        [
                            "images/none",
                            "../x",
                            "5",
                            "[]",
                            "{a: 1}",
                            "[images/train, images/none]",
                            "/etc/hostname",
                            "\u0001",
                            "*",
                        ]
                    ),
                ),
                yaml_text[: rng.randrange(5, len(yaml_text))]
                + rng.choice(["\t", "[", "'", "{", "\x00", "&a *a", "!!python/x"]),
                "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"
                + yaml_text.replace("cat, dog", "*c, dog"),
                yaml_text.replace("names: [cat, dog]", "names: " + "[" * 20_000),
            ]
        )
    elif choice < 0.8:
        kind = "label removed"
        rows[name] = []

        def after() -> None:
            (labels / name).unlink()
    elif choice < 0.9:
        kind = "layout"
        where = rng.choice(["beside", "flat", "capitals", "directory", "binary", "utf16"])

        def after() -> None:
            file = labels / name
            body = file.read_text()
            file.unlink()
            if where == "beside":
                (root / "images/train" / name).write_text(body)
            elif where == "flat":
                (root / "labels" / name).write_text(body)
            elif where == "capitals":
                (labels / name.replace(".txt", ".TXT")).write_text(body)
            elif where == "directory":
                file.mkdir()
            else:
                file.write_bytes(os.urandom(50) + b"\xff" if where == "binary" else body.encode("utf-16"))
    else:
        kind = "pictures"
        what = rng.choice(["same stem", "masks", "hidden", "dangling", "loop", "gone"])
        effective = what not in ("hidden", "loop")

        def after() -> None:
            pictures = root / "images/train"
            if what == "same stem":
                (pictures / "0.bmp").write_bytes(png(9))
            elif what == "masks":
                (pictures / "masks").mkdir()
                (pictures / "masks/0.png").write_bytes(png(9))
            elif what == "hidden":
                (pictures / "._0.png").write_bytes(b"x")
            elif what == "dangling":
                (pictures / "9.png").symlink_to(pictures / "nowhere.png")
            elif what == "loop":
                (pictures / "loop").symlink_to(root, target_is_directory=True)
            else:
                (pictures / "0.png").unlink()

    for file, lines in rows.items():
        (labels / file).write_text("\n".join(lines) + "\n")
    if after is not None:
        after()
    (root / "data.yaml").write_text(yaml_text)
    return kind, task, effective


def mutate_image(rng: random.Random, root: Path) -> tuple[str, str, bool]:
    """Write a COCO data set with a spoiled picture; kind, task, and whether a lenient decoder gives other pixels."""
    content = coco_content("detection")
    kind = rng.choice(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
    pixels = Image.open(io.BytesIO(png(0)))
    stream = io.BytesIO()
    pixels.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    data = bytearray(stream.getvalue())
    action = rng.random()
    if action < 0.35:
        data = data[: rng.randrange(len(data))]
        label = "truncated"
    elif action < 0.75:
        header = rng.random() < 0.5
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), 64) if header else len(data))] = rng.randrange(256)
        label = "header" if header else "pixels"
    elif action < 0.85:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 64)]
        label = "bytes removed"
    else:
        data = bytearray(
            rng.choice(
                [
                    b"",
                    b"<html>404</html>",
                    b"\x00" * 500,
                    bytes(data) + b"trailing",
                    bytes(data[::-1]),
                    png(5)[:8] + os.urandom(64),
                    b"P6\n99999 99999\n255\n" + bytes(10),
                    b"GIF89a" + b"\xff" * 300,
                    b"BM" + bytes(4) + bytes(4) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + bytes(40),
                ]
            )
        )
        label = "other bytes"
    for i in range(IMAGES):
        (root / f"{i}.png").write_bytes(png(i))
    (root / "0.png").write_bytes(bytes(data))
    (root / "train.json").write_text(json.dumps(content))
    try:
        with Image.open(io.BytesIO(bytes(data))) as image:
            image.load()
            now = np.asarray(image.convert("RGB"))
        with Image.open(io.BytesIO(stream.getvalue())) as image:
            effective = now.shape != (*SIZE[::-1], 3) or not np.array_equal(now, np.asarray(image.convert("RGB")))
    except Exception:  # noqa: BLE001 - whatever a decoder raises is a change
        effective = True
    return label, "detection", effective


TARGETS = {"coco": mutate_coco, "yolo": mutate_yolo, "image": mutate_image}


# ------------------------------------------------------------------------------------------------------------ loading


class _Count(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def try_one(target: str, seed: int, folder: str) -> Result:
    """Make one mutation and load it."""
    from rfdetr_hf import audit_dataset, load_detection_dataset
    from rfdetr_hf.data.errors import DetectionDataError

    root = Path(folder) / f"{target}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    kind, task, effective = TARGETS[target](random.Random(seed), root)
    handler = _Count()
    logger = logging.getLogger("rfdetr_hf")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        splits = load_detection_dataset(root / "train.json" if target != "yolo" else root / "data.yaml", task=task)
        if target == "image":
            audit_dataset(splits["train"])
    except DetectionDataError as error:
        text = str(error)
        named = str(root) in text and (
            target == "image" or re.search(r"field|:\d+:|JSON|YAML|image|label|folder", text)
        )
        return Result(target, kind, effective, "refused" if named else "bare error", text[:300])
    except Exception as error:  # noqa: BLE001 - any other error is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
        return Result(target, kind, effective, "bare error", text[:300])
    finally:
        logger.removeHandler(handler)
        shutil.rmtree(root, ignore_errors=True)
    if handler.messages:
        return Result(target, kind, effective, "repaired", handler.messages[0][:200])
    return Result(target, kind, effective, "passed", "")


def _work(target: str, seeds: list[int], folder: str, pipe: Any) -> None:
    try:
        import resource

        limit = GIGABYTES * 2**30
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError) as error:
        print(f"no limit of memory here ({error})", file=sys.stderr)
    for seed in seeds:
        _limit_seconds()
        try:
            pipe.send(try_one(target, seed, folder))
        except MemoryError as error:
            pipe.send(Result(target, "?", True, "memory", repr(error)))
    pipe.send(None)


def _limit_seconds() -> None:
    """From now on this process may compute for `SECONDS`."""
    with contextlib.suppress(ImportError):  # Windows: there is the limit of waiting alone
        import resource

        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def run(target: str, seeds: list[int], folder: str) -> list[Result]:
    """All mutations of one target, in a process that is started again after a crash or a hang."""
    import rfdetr_hf.data.sources  # noqa: F401 - processes that are forked have it then

    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    results: list[Result] = []
    while seeds:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target, seeds, folder, theirs))
        process.start()
        theirs.close()
        while seeds:
            if not ours.poll(WAITING):
                results.append(Result(target, "?", True, "slow", f"seed {seeds[0]}: waits for {WAITING} s"))
                seeds = seeds[1:]
                break
            try:
                result = ours.recv()
            except EOFError:
                process.join(WAITING)
                slow = process.exitcode == -getattr(signal, "SIGXCPU", 0)
                what = f"more than {SECONDS} s" if slow else f"exit code {process.exitcode}"
                results.append(Result(target, "?", True, "slow" if slow else "crash", f"seed {seeds[0]}: {what}"))
                seeds = seeds[1:]
                break
            if result is not None:
                results.append(result)
                seeds = seeds[1:]
        process.kill()
        process.join()
    return results


def report(results: list[Result]) -> int:
    """Print the figures of each target and the tables; the number of faults of the loader."""
    for target in TARGETS:
        ours = [result for result in results if result.target == target]
        if not ours:
            continue
        outcomes = Counter(result.outcome for result in ours)
        share = sum(result.effective for result in ours) / len(ours)
        print(f"{target}: {len(ours)} mutations, {share:.0%} effective; {dict(outcomes)}")
    silent = Counter((r.target, r.kind) for r in results if r.outcome == "passed" and r.effective)
    print(f"\npassed in silence ({sum(silent.values())}):")
    for (target, kind), count in silent.most_common(30):
        print(f"  {target:<6} {kind:<20} {count:>4}  {REASONS.get(kind, 'NO REASON')}")
    unexplained = [key for key in silent if key[1] not in REASONS]
    faults = [result for result in results if result.outcome not in ("refused", "repaired", "passed")]
    print(f"\nfaults of the loader ({len(faults)}):")
    for fault in faults[:30]:
        print(f"  {fault.target} {fault.kind}: {fault.outcome}: {fault.detail!r}")
    return len(faults) + len(unexplained)


def main(argv: list[str] | None = None) -> int:
    """Run the mutations; the exit status says whether there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="mutations of each target")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutation; the others follow")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    args = parser.parse_args(argv)
    print(f"seeds {args.seed} to {args.seed + args.count - 1} of {', '.join(args.targets)}")
    start = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for target in args.targets:
            results += run(target, list(range(args.seed, args.seed + args.count)), folder)
    faults = report(results)
    print(f"\n{time.monotonic() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
