"""What is odd about a data set: findings with examples, from its annotations and one reading of its pictures."""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from ..choices import counted, printable
from .audit import LARGE, AuditReport, count_split
from .checks import AS_THEY_ARE
from .errors import DetectionDataError
from .images import IMAGE_SUFFIXES, is_hidden
from .label_errors import LABEL_ERRORS, LabelError, find_label_errors
from .scan import Scan, scan_pictures
from .schema import unchunked
from .shards.dataset import AnySplit, ShardedDataset

__all__ = ["DataAudit", "Example", "Finding", "audit_data", "find_in_annotations", "notes_of_reading"]

pc: Any = pyarrow.compute

_EXAMPLES = 12
_SAME_BOX = 0.95  # IoU
_EXTREME_ASPECT = 20.0
_NAMED = 8  # classes in a sentence
_SMALLEST = 1.0  # pixel of the image
_SMALL_INPUT = 8.0  # pixels of the model's input: half a patch
_SMALL_SHARE = 0.1
_BACKGROUND_SHARE = 0.5
_IMBALANCE = 100
_FEW = 10
# What is unknown of shards that nobody has counted.
_COUNTS = ("num_empty_images", "num_boxes", "num_crowds", "boxes_per_class", "images_per_class", "small", "medium",
           "large", "max_boxes", "polygon_masks", "rle_masks")  # fmt: skip
_NEAR_BITS = 4  # of 64
_SHARDS, _OF_SHARDS = 8, 4096  # shards that are looked into, and their rows together


class Example(NamedTuple):
    """Where to look: a row of a split, and its objects that are meant.

    `found` are boxes (x, y, w, h) and names that a model has there instead, `score` how likely it is right.
    """

    split: str
    row: int
    name: str
    objects: tuple[int, ...] = ()
    found: tuple[tuple[tuple[float, ...], str], ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is odd.

    Attributes:
        kind: a word for scripts, such as "duplicate pictures".
        split: where; several are joined by a comma.
        count: how many pictures, boxes or classes.
        text: a sentence about them.
        serious: whether `--strict` fails by it; the others are for information.
        examples: up to twelve.
    """

    kind: str
    split: str
    count: int
    text: str
    serious: bool = True
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class DataAudit:
    """All splits of a data set. Printed, it is a table for a terminal of 80 columns.

    Attributes:
        reports: counts by split.
        scans: readings by split.
        findings: the serious ones first.
        label_errors: by split, where a model was asked; the likeliest first.
    """

    reports: Mapping[str, AuditReport]
    scans: Mapping[str, Scan]
    findings: Sequence[Finding]
    label_errors: Mapping[str, Sequence[LabelError]] = field(default_factory=dict)

    @property
    def serious(self) -> list[Finding]:
        """The findings by which `--strict` fails."""
        return [each for each in self.findings if each.serious]

    def to_dict(self) -> dict[str, Any]:
        """Counts and findings as plain values for JSON."""
        return {
            "splits": {
                name: asdict(report) if report.counted else {**asdict(report), **dict.fromkeys(_COUNTS)}
                for name, report in self.reports.items()
            },
            "pictures": {
                name: {"looked_at": len(scan.rows), "of": scan.total, "decoded": scan.decoded}
                for name, scan in self.scans.items()
            },
            "findings": [
                {**asdict(each), "examples": [example._asdict() for example in each.examples]} for each in self.findings
            ],
            "label_errors": {name: [asdict(each) for each in found] for name, found in self.label_errors.items()},
        }

    def __str__(self) -> str:
        lines = [f"{'split':<12}{'images':>9}{'background':>12}{'boxes':>10}{'crowds':>8}{'max':>6}  pictures"]
        for name, report in self.reports.items():
            share, scan = 100 * report.num_empty_images / max(report.num_images, 1), self.scans[name]
            seen = "decoded" if scan.decoded else "headers" if len(scan.rows) else "not read"
            seen = f"{seen}, {len(scan.rows)} of them" if scan.is_sample and len(scan.rows) else seen
            numbers = f"{share:>11.0f}%{report.num_boxes:>10}{report.num_crowds:>8}{report.max_boxes:>6}"
            numbers = numbers if report.counted else f"{'?':>12}{'?':>10}{'?':>8}{'?':>6}"
            lines.append(f"{name:<12}{report.num_images:>9}{numbers}  {seen}")
        splits = list(self.reports)
        lines += ["", f"{'class':<32}" + "".join(f"{name[:12]:>14}" for name in splits)]
        for name in self.reports[splits[0]].boxes_per_class:
            shown = name if len(name) <= 31 else name[:30] + "…"
            lines.append(f"{shown:<32}" + "".join(f"{boxes_of(self.reports[split], name):>14}" for split in splits))
        if any(report.labelled_images for report in self.reports.values()):
            lines += _wrapped("boxes/images: the images in which a class is labelled completely; in others it is no "
                              "negative")  # fmt: skip
        if unknown := [name for name, report in self.reports.items() if not report.counted]:
            lines += _wrapped(f"?: the objects of {', '.join(unknown)} are not counted, since these shards have no "
                              "index; `rfdetr-hf data convert` writes one")  # fmt: skip
        lines += [""] + (["nothing odd was found"] if not self.findings else [])
        for each in self.findings:
            lines += _wrapped(f"{'!' if each.serious else '-'} {each.split}: {each.text}")
            if each.examples:
                names = [os.path.basename(example.name) for example in each.examples[:3]]
                lines += _wrapped("  such as " + ", ".join(names))
        if self.findings:
            lines += ["", "! an error with --strict, - to know"]
        return "\n".join(map(printable, lines))


def audit_data(
    splits: Mapping[str, Dataset],
    *,
    num_queries: int | None = None,
    resolution: int | None = None,
    decode: bool = True,
    near: bool = False,
    sample: int = LARGE,
    cache_dir: str | os.PathLike[str] | None = None,
    detect: Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]] | None = None,
    detected_names: Sequence[str] = (),
    batch_size: int = 8,
    noted: Sequence[str] = (),
) -> DataAudit:
    """Look at everything that can be wrong with a data set without training on it.

    Of shards the counts of the index are compared, and the rows of up to eight of them, evenly spaced, are looked at.

    Args:
        splits: by name, in the schema of `load_detection_dataset`.
        num_queries: of the model; fuller images are a finding.
        resolution: of the model; boxes that become too small are a finding.
        decode: decode every picture, or read headers only.
        near: also look for near duplicates (extra `audit`).
        sample: pictures of a split to read, evenly spaced where there are more.
        cache_dir: see `scan_pictures`.
        detect: a model; labels that it contradicts are findings too, see `find_label_errors`.
        detected_names: the classes of the model, by its labels.
        batch_size: images given to `detect` at once.
        noted: what the reading repaired, left out or doubted, from `notes_of_reading`; these are findings too.

    Raises:
        DetectionDataError: boxes of shards without an index that make sense only in another format, or cannot be used.
    """
    parts = {name: _part(split, sample) for name, split in splits.items()}
    for name, (_, part) in parts.items():
        if isinstance(split := splits[name], ShardedDataset) and split.counts is None:
            _check_uncounted(name, part)
    scans = {}
    for name, (rows, part) in parts.items():
        scan = scan_pictures(part, decode=decode, near=near, sample=sample, cache_dir=cache_dir)
        scans[name] = replace(scan, rows=rows[scan.rows], total=len(splits[name]))
    reports = {name: count_split(split, name, decode) for name, split in splits.items()}
    found = [Finding("reading", "reading", 1, text) for text in noted]
    for name, (rows, part) in parts.items():
        for each in find_in_annotations(part, name, reports[name], num_queries, resolution):
            moved = tuple(example._replace(row=int(rows[example.row])) for example in each.examples)
            found.append(replace(each, examples=moved))
        found += _faults(name, scans[name])
    listed = {name: split for name, split in splits.items() if not isinstance(split, ShardedDataset)}
    found += _between_splits(reports) + _copies(scans, near) + _unreferenced(listed)
    errors: dict[str, Sequence[LabelError]] = {}
    if detect is not None:
        for name, split in splits.items():
            options: Any = {"rows": scans[name].rows, "batch_size": batch_size}
            errors[name] = find_label_errors(split, detect, detected_names, **options)
            found += _contradicted(name, errors[name])
    return DataAudit(reports, scans, sorted(found, key=lambda each: not each.serious), errors)


@contextlib.contextmanager
def notes_of_reading() -> Iterator[list[str]]:
    """Within the block, the warnings of what reads data: what it repaired, left out or doubts.

    The log has them where the block fails; otherwise the caller reports them.
    """
    noted: list[str] = []
    held: list[logging.LogRecord] = []
    reader, above = logging.getLogger("rfdetr_hf.data"), logging.getLogger("rfdetr_hf")

    def emit(record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            above.handle(record)
        else:
            noted.append(record.getMessage())
            held.append(record)

    handler, propagate = logging.Handler(), reader.propagate
    handler.emit = emit
    reader.addHandler(handler)
    reader.propagate = False
    try:
        yield noted
    except BaseException:
        for record in held:
            above.handle(record)
        raise
    finally:
        reader.removeHandler(handler)
        reader.propagate = propagate


def _part(split: AnySplit, sample: int) -> tuple[np.ndarray, Any]:
    """The rows to look at, and a split of them: all, or of shards the beginnings of some."""
    if not isinstance(split, ShardedDataset):
        return np.arange(len(split)), split
    count = len(split.shards)
    chosen = np.unique(np.linspace(0, count - 1, min(_SHARDS, count), dtype=int))
    starts: list[int] = np.concatenate([[0], np.cumsum(split.shards.rows)]).tolist()
    each = max(1, min(sample, _OF_SHARDS) // len(chosen))
    rows = np.concatenate([np.arange(starts[k], min(starts[k] + each, starts[k + 1])) for k in chosen])
    return rows, split.select(rows)


def _check_uncounted(split: str, part: Any) -> None:
    """Refuse shards that another program has written where images of several have one id."""
    values, counts = np.unique(part["image_id"], return_counts=True)
    if (counts > 1).any():
        raise DetectionDataError(
            f"{split} split, the {len(part)} rows that were looked at: image id {values[counts > 1][0]} is used by "
            f"{counts[counts > 1][0]} images; give every image of a split an id of its own. {AS_THEY_ARE.capitalize()}"
        )


def _contradicted(split: str, errors: Sequence[LabelError]) -> list[Finding]:
    """The labels that a model contradicts, by kind."""
    found = []
    for kind, text in LABEL_ERRORS.items():
        mine = [each for each in errors if each.kind == kind]
        examples = tuple(
            Example(
                split, each.row, each.name, () if each.object is None else (each.object,),
                () if each.found_bbox is None else ((each.found_bbox, str(each.found_label)),), each.score,
            )
            for each in mine[:_EXAMPLES]
        )  # fmt: skip
        if mine:
            text = f"{counted(len(mine), 'object' if kind == 'overlooked' else 'box')} {text}, the likeliest first"
            found.append(Finding(f"labels: {kind}", split, len(mine), text, False, examples))
    return found


def boxes_of(report: AuditReport, name: str) -> str:
    """The boxes of a class in a split; with the images that label it completely, where not all do."""
    if not report.counted:
        return "?"
    known = "" if report.labelled_images is None else f"/{report.labelled_images.get(name, 0)}"
    return f"{report.boxes_per_class.get(name, 0)}{known}"


class _Boxes(NamedTuple):
    """The objects of a split, crowds left out: (n,) row of the image and place in it, (n, 4) x, y, w, h, (n,) label."""

    row: np.ndarray
    place: np.ndarray
    bbox: np.ndarray
    label: np.ndarray
    frame: np.ndarray  # (n, 2) width, height


def _boxes_of(dataset: Dataset) -> _Boxes:
    columns = cast(pa.Table, dataset.select_columns(["width", "height", "objects"]).with_format("arrow")[:])
    objects = unchunked(columns["objects"])
    lists = {name: pc.struct_field(objects, name) for name in ("category", "bbox", "iscrowd")}
    counts = pc.list_value_length(lists["category"]).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    single = ~pc.list_flatten(lists["iscrowd"]).to_numpy(zero_copy_only=False).astype(bool)
    bbox = pc.list_flatten(pc.list_flatten(lists["bbox"])).to_numpy(zero_copy_only=False).reshape(-1, 4)
    label = pc.list_flatten(lists["category"]).to_numpy(zero_copy_only=False)
    frame = np.stack([columns[side].to_numpy() for side in ("width", "height")], axis=1)[row]
    return _Boxes(row[single], place[single], bbox[single], label[single], frame[single])


def find_in_annotations(
    dataset: Dataset, split: str, report: AuditReport, num_queries: int | None = None, resolution: int | None = None
) -> list[Finding]:
    """What is odd about the boxes of a split; no picture is opened."""
    boxes = _boxes_of(dataset)
    sides, found = boxes.bbox[:, 2:], list[Finding]()

    def add(kind: str, where: Any, verb: str, text: str, serious: bool = True) -> None:
        if len(at := np.flatnonzero(where)):
            examples = _examples(dataset, split, boxes.row[at], boxes.place[at])
            found.append(Finding(kind, split, len(at), f"{counted(len(at), 'box', verb)} {text}", serious, examples))

    add("degenerate boxes", (sides < _SMALLEST).any(axis=1), "has", f"a side below {_SMALLEST:g} pixel")
    beyond = (boxes.bbox[:, :2] < -0.5) | (boxes.bbox[:, :2] + sides > boxes.frame + 0.5)
    add("boxes outside", beyond.any(axis=1), "reaches", "out of the image")
    add("duplicate boxes", _twice(boxes), "covers", "another one of the class (IoU above 0.95)")
    aspect = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-9)
    add("extreme aspect", (aspect > _EXTREME_ASPECT) & (sides >= _SMALLEST).all(axis=1),
        "is", f"more than {_EXTREME_ASPECT:g} times as long as wide", serious=False)  # fmt: skip
    if resolution is not None and len(sides):
        small = (sides * resolution / boxes.frame).min(axis=1) < _SMALL_INPUT
        if small.mean() > _SMALL_SHARE:
            text = (
                f"narrower than {_SMALL_INPUT:g} pixels at resolution {resolution} ({100 * small.mean():.0f} %): "
                "train at a larger one, or cut the images into tiles"
            )
            add("small boxes", small, "is", text, serious=False)
    counts = np.bincount(boxes.row, minlength=len(dataset))
    if num_queries is not None and (counts > num_queries).any():
        rows = np.flatnonzero(counts > num_queries)
        text = f"more objects than the {num_queries} queries of the model, up to {counts.max()}"
        text = f"{counted(len(rows), 'image', 'has')} {text}"
        found.append(Finding("crowding", split, len(rows), text, True, _examples(dataset, split, rows)))
    empty = int((counts == 0).sum()) if isinstance(dataset, ShardedDataset) else report.num_empty_images
    if len(dataset) and empty > _BACKGROUND_SHARE * len(dataset):
        text = f"{counted(empty, 'image', 'has')} no objects, of {len(dataset)}"
        examples = _examples(dataset, split, np.flatnonzero(counts == 0))
        found.append(Finding("background", split, empty, text, False, examples))
    return found


def _twice(boxes: _Boxes) -> np.ndarray:
    """(n,) whether an earlier box of the same class in the image is nearly the same."""
    twice = np.zeros(len(boxes.row), bool)
    starts = np.flatnonzero(np.diff(boxes.row, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(boxes.row)], strict=False):  # without boxes there is an end alone
        if end - start < 2:
            continue
        low, sides = boxes.bbox[start:end, :2], boxes.bbox[start:end, 2:]
        high = low + sides
        shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(axis=-1)
        area = sides.prod(axis=1)
        same = shared > _SAME_BOX * (area[:, None] + area - shared)
        same &= boxes.label[start:end, None] == boxes.label[start:end]
        twice[start:end] = np.tril(same, -1).any(axis=1)
    return twice


def _faults(split: str, scan: Scan) -> list[Finding]:
    found = []
    bad = [(int(row), each) for row, each in zip(scan.rows, scan.pictures, strict=True) if each.fault]
    if bad:
        examples = tuple(Example(split, row, each.name) for row, each in bad[:_EXAMPLES])
        text = f"{counted(len(bad), 'picture')} cannot be used: {'; '.join(each.fault for _, each in bad[:3])}"
        found.append(Finding("unreadable pictures", split, len(bad), text, True, examples))
    for kind, verb, text, chosen in (
        (
            "EXIF orientation",
            "is",
            "turned or mirrored by the EXIF tag; boxes are read in the shown picture",
            lambda each: each.turned,
        ),
        (
            "EXIF not followed",
            "has",
            "an EXIF tag and the annotated width and height of the stored pixels; boxes are read in these",
            lambda each: each.orientation != 1 and not each.turned and not each.fault,
        ),
        (
            "pages",
            "has",
            f"several pages or frames (up to {max((each.pages for each in scan.pictures), default=1)}), of which the "
            "first is used",
            lambda each: each.pages > 1,
        ),
        ("cut values", "has", "values beyond the range of the data set, which are cut off", lambda p: p.beyond),
    ):
        rows = [(int(row), p) for row, p in zip(scan.rows, scan.pictures, strict=True) if chosen(p)]
        if rows:
            examples = tuple(Example(split, row, each.name) for row, each in rows[:_EXAMPLES])
            text = f"{counted(len(rows), 'picture', verb)} {text}"
            found.append(Finding(kind, split, len(rows), text, False, examples))
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *["…"][: len(names) > _NAMED]])


def _between_splits(reports: Mapping[str, AuditReport]) -> list[Finding]:
    reports = {name: report for name, report in reports.items() if report.counted}
    found, train = [], reports.get("train")
    for name, report in reports.items():
        counts = {label: count for label, count in report.boxes_per_class.items() if count}
        if counts and max(counts.values()) > _IMBALANCE * min(counts.values()):
            least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            text = f"class imbalance: {counts[most]} boxes of {most}, {counts[least]} of {least}"
            found.append(Finding("class imbalance", name, len(counts), text, False))
        few = [f"{label} {count}" for label, count in report.boxes_per_class.items() if 0 < count < _FEW]
        if few and report is train:
            text = f"classes with fewer than {_FEW} boxes, {len(few)}: {_listed(few)}"
            found.append(Finding("rare classes", name, len(few), text, False))
        if train is None or report is train:
            continue
        there, here = ({k for k, n in r.boxes_per_class.items() if n} for r in (train, report))
        for kind, names, text in (
            ("classes not trained", here - there, "with boxes here and none in train"),
            ("classes not scored", there - here, "with boxes in train and none here"),
        ):
            if names:
                text = f"{counted(len(names), 'class')} {text}: {_listed(sorted(names))}"
                found.append(Finding(kind, name, len(names), text, kind == "classes not trained"))
    return found


def _copies(scans: Mapping[str, Scan], near: bool) -> list[Finding]:
    """Equal and nearly equal pictures, within a split and between splits."""
    by_digest: dict[str, list[Example]] = defaultdict(list)
    for name, scan in scans.items():
        for row, each in zip(scan.rows, scan.pictures, strict=True):
            if each.digest:
                by_digest[each.digest].append(Example(name, int(row), each.name))
    groups = [group for group in by_digest.values() if len(group) > 1]
    found = _copy_findings(groups, "duplicate pictures", "has", "the same bytes as another one")
    if near:
        examples, hashes = [], []
        for name, scan in scans.items():
            for row, each in zip(scan.rows, scan.pictures, strict=True):
                # Of equal pictures one stands for all.
                if each.near and by_digest[each.digest][0][:2] == (name, int(row)):
                    examples.append(Example(name, int(row), each.name))
                    hashes.append(int(each.near, 16))
        pairs = _near_pairs(np.array(hashes, np.uint64))
        groups = [[examples[a], examples[b]] for a, b in pairs]
        found += _copy_findings(groups, "near duplicates", "looks", "nearly the same as another one")
    return found


def _near_pairs(hashes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs that differ in at most four bits: of five bands of the bits, such a pair has at least one in common."""
    pairs: set[tuple[int, int]] = set()
    bands = _NEAR_BITS + 1
    edges = np.linspace(0, 64, bands + 1).astype(int)
    for low, high in zip(edges, edges[1:], strict=False):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order].astype(np.int64), prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            members = order[start:end]
            for index, first in enumerate(members[:-1]):
                differing = hashes[members[index + 1 :]] ^ hashes[first]
                bits = np.unpackbits(differing.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
                for second in members[index + 1 :][bits <= _NEAR_BITS]:
                    pairs.add((min(int(first), int(second)), max(int(first), int(second))))
    return sorted(pairs)


def _copy_findings(groups: Iterable[Sequence[Example]], kind: str, verb: str, text: str) -> list[Finding]:
    by_splits: dict[tuple[str, ...], list[Sequence[Example]]] = defaultdict(list)
    for group in groups:
        by_splits[tuple(dict.fromkeys(example.split for example in group))].append(group)
    found = []
    for splits, members in by_splits.items():
        count = sum(len(group) for group in members) - len(members)
        across = f", in {' and '.join(splits)}: scores are of pictures that were seen" if len(splits) > 1 else ""
        examples = tuple(example for group in members for example in group)[:_EXAMPLES]
        words = f"{counted(count, 'picture', verb)} {text}{across}"
        found.append(Finding(kind, ", ".join(splits), count, words, len(splits) > 1 or kind[0] == "d", examples))
    return found


def _unreferenced(splits: Mapping[str, Dataset]) -> list[Finding]:
    """Image files beside those of the data set that no split names."""
    used, folders = set[str](), dict[str, str]()
    for name, split in splits.items():
        for chunk in split.select_columns(["image"]).with_format("arrow")[:]["image"].chunks:
            inline = pc.struct_field(chunk, "bytes").is_valid().to_pylist()
            for path, within in zip(pc.struct_field(chunk, "path").to_pylist(), inline, strict=True):
                if path and not within:
                    used.add(os.path.abspath(path))
                    folders.setdefault(os.path.dirname(os.path.abspath(path)), name)
    found: dict[str, list[str]] = defaultdict(list)
    for folder, name in folders.items():
        if not os.path.isdir(folder):
            continue
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in IMAGE_SUFFIXES and not is_hidden(entry.name) and entry.path not in used:
                    found[name].append(entry.path)
    return [
        Finding(
            "unreferenced files",
            name,
            len(paths),
            f"{len(paths)} image files beside those of {name} are in no split",
            False,
            tuple(Example(name, -1, path) for path in paths[:_EXAMPLES]),
        )
        for name, paths in found.items()
    ]


def _examples(dataset: Dataset, split: str, rows: np.ndarray, places: np.ndarray | None = None) -> tuple[Example, ...]:
    """The first images with their objects that are meant."""
    meant: dict[int, list[int]] = {}
    for index, row in enumerate(rows.tolist()):
        if row not in meant and len(meant) == _EXAMPLES:
            break
        meant.setdefault(row, [])
        if places is not None:
            meant[row].append(int(places[index]))
    columns = [name for name in ("file_name", "image_id") if name in dataset.column_names]
    names: list[Any] = list(dataset.select_columns(columns).select(list(meant))) if meant else []
    return tuple(
        Example(split, row, str(each.get("file_name") or each["image_id"]), tuple(objects))
        for (row, objects), each in zip(meant.items(), names, strict=True)
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 79, subsequent_indent="  ", break_on_hyphens=False)
