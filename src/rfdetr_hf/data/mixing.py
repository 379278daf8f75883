"""Several data sets as one: class maps, classes that a source does not label, and shares.

A class that a source does not have is not labelled in its images (`labelled_classes` of the schema), so it is no
negative there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, DatasetDict, DatasetInfo, IterableDatasetDict, NamedSplit, Value

from ..choices import counted
from ..values import shown
from .checks import written_twice
from .errors import DetectionDataError
from .keypoints import ClassKeypoints, KeypointSchema
from .schema import (
    class_names,
    detection_features,
    has_keypoints,
    has_masks,
    has_unlabelled_classes,
    keypoint_schema,
    sample_weights,
    undecoded,
    value_range,
)
from .splits import SPLIT_NAMES

logger = logging.getLogger(__name__)
# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

Load = Callable[..., Mapping[Any, Dataset]]
Factors = Callable[[Dataset], np.ndarray]
_OWN = ("name_or_path", "share", "classes", "prefix", "splits")


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name_or_path: as for `load_detection_dataset`.
        share: of the training samples, in any unit; all sources have one, or none.
        classes: class of the mixture -> the source's class or classes that it stands for; others keep their names.
        prefix: before the names that the source's other classes keep.
        splits: which of its splits train, validation, test are used; empty for all.
        options: further options of `load_detection_dataset`.
    """

    name_or_path: Any
    share: float | None = None
    classes: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    prefix: str = ""
    splits: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> "Source":
        """A source from a name, or from a mapping of the fields and the options side by side.

        Raises:
            DetectionDataError: fields that are missing or have another form.
        """
        if not isinstance(value, Mapping) or isinstance(value, (DatasetDict, IterableDatasetDict)):
            return cls(value)
        if "name_or_path" not in value:
            raise DetectionDataError(f"sources: {shown(value)} has no name_or_path; name a folder or a Hub id")
        source = cls(
            **{name: value[name] for name in _OWN if value.get(name) is not None},
            options={name: each for name, each in value.items() if name not in _OWN},
        )
        name = source.name_or_path
        share = source.share
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1e9
        ):
            raise DetectionDataError(f"sources: {name}: share={shown(share)}; give a positive number")
        given = source.classes.values() if isinstance(source.classes, Mapping) else [None]
        lists = [[each] if isinstance(each, str) else each for each in given]
        named = all(isinstance(each, (list, tuple)) and all(isinstance(n, str) for n in each) for each in lists)
        if not named or not isinstance(source.prefix, str):
            raise DetectionDataError(
                f"sources: {name}: classes={shown(source.classes)}, prefix={shown(source.prefix)}; give classes as "
                '{"person": ["pedestrian", "rider"]} and prefix as a text'
            )
        used: Any = source.splits
        listed = isinstance(used, (list, tuple)) and all(isinstance(each, str) for each in used)
        if not listed:
            raise DetectionDataError(f"sources: {name}: splits={shown(used)}; give a list of {list(SPLIT_NAMES)}")
        if unknown := sorted(set(used) - set(SPLIT_NAMES)):
            raise DetectionDataError(f"sources: {name}: splits has {unknown}; use {list(SPLIT_NAMES)}")
        return source

    def renamed(self, names: Sequence[str]) -> list[str]:
        """What the classes of the source are called in the mixture, in their order.

        Raises:
            DetectionDataError: the class map names a class that the source does not have, or one twice.
        """
        ours: dict[str, str] = {}
        for name, theirs in self.classes.items():
            for each in [theirs] if isinstance(theirs, str) else theirs:
                if each not in names or each in ours:
                    fault = "twice" if each in ours else f"which is none of its classes {list(names)}"
                    raise DetectionDataError(f"sources: {self.name_or_path}: classes names {each!r}, {fault}")
                ours[each] = str(name)
        return [ours.get(name, self.prefix + name) for name in names]


def with_weights(train: Dataset, weights: np.ndarray, source: Any) -> Dataset:
    """The rows with another column ``sample_weight``: these numbers in any unit, 1 on average."""
    if "sample_weight" in train.column_names:
        logger.warning("%s: sampling takes the place of the column sample_weight that is there", source)
        train = train.remove_columns("sample_weight")
    return train.add_column("sample_weight", weights / weights.mean())


def mix(
    sources: Sequence[Any] | Mapping[str, Any],
    load: Load,
    names: Sequence[str] | None = None,
    factors: Factors | None = None,
) -> dict[str, Dataset]:
    """The splits of a mixture; the label table is the classes of all sources, in their order, or `names`.

    Images get new numbers in each split. Where sources have shares, the training split has the column
    ``sample_weight``: how often an image is drawn, 1 on average; `data.pipeline.order` draws by it.

    Args:
        sources: names, or mappings with the fields of `Source` and options of `load_detection_dataset`; or a mapping of
            names to such mappings, whose name is the `name_or_path` where they have none.
        load: that function.
        names: the label table to use.
        factors: how often the images of the training split are drawn, in any unit; with shares, within their source.

    Raises:
        DetectionDataError: sources that are faulty or do not fit each other.
    """
    if isinstance(sources, Mapping):
        sources = [{"name_or_path": name, **(own or {})} if isinstance(own, Mapping) or own is None else own
                   for name, own in sources.items()]  # fmt: skip
    if isinstance(sources, str) or not sources:
        raise DetectionDataError(f"sources: {shown(sources)}; give a list of names or of mappings with name_or_path")
    parts = [Source.of(each) for each in sources]
    if 0 < sum(part.share is not None for part in parts) < len(parts):
        raise DetectionDataError("sources: some have a share and some have none; give one to all of them, or to none")
    loaded: list[Mapping[Any, Dataset]] = []
    for part in parts:
        splits = load(part.name_or_path, **part.options)
        loaded.append({name: split for name, split in splits.items() if not part.splits or name in part.splits})
        if any(not isinstance(split, Dataset) for split in loaded[-1].values()):
            raise DetectionDataError(f"sources: {part.name_or_path}: these are shards, which cannot be mixed yet")
        if not loaded[-1]:
            raise DetectionDataError(f"sources: {part.name_or_path}: has none of the splits {list(part.splits)}")
    renamed = [part.renamed(class_names(next(iter(s.values())))) for part, s in zip(parts, loaded, strict=True)]
    table = list(names) if names else list(dict.fromkeys(name for each in renamed for name in each))
    for part, each in zip(parts, renamed, strict=True):
        if unknown := sorted(set(each) - set(table)):
            raise DetectionDataError(f"sources: {part.name_or_path}: classes {unknown} are not in the table {table}")
    keypoints = _common_keypoints(parts, loaded, renamed, table)
    ranges = {value_range(split) for splits in loaded for split in splits.values()}
    if len(ranges) > 1:
        raise DetectionDataError(
            f"sources: pictures have different ranges of values, {sorted(ranges, key=str)}; write them with as many "
            "bits"
        )
    mixed = {}
    for split in SPLIT_NAMES:
        here = [i for i, splits in enumerate(loaded) if split in splits]
        if here:
            given = [loaded[i][split] for i in here]
            mixed[split] = _joined(given, [renamed[i] for i in here], table, keypoints, split)
            if split == "train":
                weights = _weights([parts[i] for i in here], given, mixed[split], factors)
                if weights is not None:
                    mixed[split] = with_weights(mixed[split], weights, "sources")
    if "train" not in mixed and not names:
        raise DetectionDataError(
            f"sources: no training split, only {list(mixed)}; have 'train' among the splits of a source, or give the "
            "label table with class_names=… to load the others without it"
        )
    return mixed


def _weights(
    parts: Sequence[Source], splits: Sequence[Dataset], mixed: Dataset, factors: Factors | None
) -> np.ndarray | None:
    """How often the images are drawn: as the mixture says, else as each source says; None where all are alike."""
    found = [sample_weights(split) for split in splits]
    own = [part.name_or_path for part, each in zip(parts, found, strict=True) if each is not None]
    if factors is not None:
        if own:
            logger.warning("sources: the sampling of the mixture takes the place of that in %s", own)
        weights = factors(mixed)
    elif own or parts[0].share is not None:
        pairs = zip(splits, found, strict=True)
        weights = np.concatenate([np.ones(len(split)) if each is None else each for split, each in pairs])
    else:
        return None
    return weights if parts[0].share is None else _with_shares(weights, parts, [len(split) for split in splits])


def _with_shares(weights: np.ndarray, parts: Sequence[Source], counts: Sequence[int]) -> np.ndarray:
    """Weights whose sums over the images of each source are as the shares."""
    shares = np.array([part.share for part in parts], np.float64)
    shares /= shares.sum()
    pieces = np.split(weights, np.cumsum(counts)[:-1])
    for part, share, count in zip(parts, shares, counts, strict=True):
        logger.info(
            "sources: %s: %.4g %% of the training samples, %s, each %.3g times an epoch on average",
            part.name_or_path, 100 * share, counted(count, "image"), share * sum(counts) / count,
        )  # fmt: skip
    return np.concatenate([share * piece / piece.sum() for share, piece in zip(shares, pieces, strict=True)])


def _common_keypoints(
    parts: Sequence[Source], loaded: Sequence[Mapping[Any, Dataset]], renamed: Sequence[Sequence[str]],
    table: Sequence[str],
) -> KeypointSchema | None:  # fmt: skip
    """The keypoints of the mixture's classes; None where the sources have none."""
    firsts = [next(iter(splits.values())) for splits in loaded]
    if not any(map(has_keypoints, firsts)):
        return None
    found: dict[str, ClassKeypoints] = {}
    for part, first, names in zip(parts, firsts, renamed, strict=True):
        for name, own in zip(names, keypoint_schema(first).classes, strict=True):
            first = found.setdefault(name, own)
            for what in ("skeleton", "flip_pairs", "sigmas") if first.names == own.names else ():
                if getattr(first, what) != getattr(own, what):
                    logger.warning(
                        "sources: %s: class %r has %s %s here, and %s, which count, in a source before; give one "
                        "keypoint_schema to both", part.name_or_path, name, what, getattr(own, what),
                        getattr(first, what),
                    )  # fmt: skip
            if first.names != own.names:
                raise DetectionDataError(
                    f"sources: {part.name_or_path}: class {name!r} has the keypoints {list(own.names)} here and "
                    f"{list(found[name].names)} in another source; map it to another class"
                )
    return KeypointSchema(tuple(found.get(name, ClassKeypoints()) for name in table))


def _joined(
    splits: Sequence[Dataset], renamed: Sequence[Sequence[str]], table: Sequence[str],
    keypoints: KeypointSchema | None, name: str,
) -> Dataset:  # fmt: skip
    """One split of all sources, one after the other."""
    federated = any(len(set(names)) < len(table) or has_unlabelled_classes(s)
                    for s, names in zip(splits, renamed, strict=True))  # fmt: skip
    columns: dict[str, list[Any]] = {}
    stored = any("as_stored" in split.column_names for split in splits)
    boxes = 0
    for split, names in zip(splits, renamed, strict=True):
        rows: Any = undecoded(split).with_format("arrow")[:]
        labels = np.array([table.index(each) for each in names], np.int64)
        for column in ("image", "width", "height", "file_name"):
            columns.setdefault(column, []).extend(rows[column].chunks)
        objects = pa.concat_arrays(rows["objects"].chunks)
        columns.setdefault("objects", []).append(_relabelled(objects, labels, keypoints, boxes, name))
        boxes += len(columns["objects"][-1].field("category").flatten())
        if stored:
            own = rows["as_stored"].to_pylist() if "as_stored" in rows.column_names else [False] * len(split)
            columns.setdefault("as_stored", []).append(pa.array(own, pa.bool_()))
        if federated:
            own = (
                rows["labelled_classes"].to_pylist() if "labelled_classes" in rows.column_names else [None] * len(split)
            )
            columns.setdefault("labelled_classes", []).append(_labelled(own, labels))
    total = sum(map(len, splits))
    masks = has_masks(splits[0])
    features = detection_features(table, masks=masks, keypoints=keypoints, labelled_classes=federated)
    features |= {"as_stored": Value("bool")} if stored else {}
    chunks = {"image_id": [pa.array(np.arange(total), pa.int64())], **columns}
    arrays = [pa.chunked_array(chunks[column]) for column in features]
    data = pa.table(arrays, names=list(features)).cast(features.arrow_schema)
    mixed = Dataset(data, info=DatasetInfo(features=features), split=NamedSplit(name))
    if (found := value_range(splits[0])) is not None:
        mixed = mixed.add_column("value_range", [list(found)] * total, feature=splits[0].features["value_range"])
    return mixed


def _labelled(values: Sequence[Sequence[int] | None], labels: np.ndarray) -> pa.Array:
    """Labels of the mixture that are labelled completely: those of which all classes of the source are."""
    known = set(labels.tolist())
    rows = []
    for own in values:
        lacking = set() if own is None else set(np.delete(labels, np.asarray(own, np.int64)).tolist())
        rows.append(sorted(known - lacking))
    return pa.array(rows, pa.list_(pa.int32()))


def _relabelled(
    objects: pa.StructArray, labels: np.ndarray, keypoints: KeypointSchema | None, before: int, split: str
) -> pa.StructArray:
    """The objects with the labels of the mixture, ids that go on from those before, and keypoints of the same width.

    An object that two merged classes both have stands there once.
    """
    fields = {each.name: pc.struct_field(objects, each.name) for each in objects.type}
    counts = pc.list_value_length(fields["category"]).to_numpy(zero_copy_only=False)
    values = {name: column.flatten() for name, column in fields.items()}
    category = labels[values["category"].to_numpy(zero_copy_only=False)]
    wide = None
    if keypoints is not None:
        points = values["keypoints"].flatten().to_numpy(zero_copy_only=False)
        wide = np.zeros((len(category), 3 * keypoints.num_keypoints))
        if len(category):
            points = points.reshape(len(category), -1)
            wide[:, : points.shape[1]] = points
        values["keypoints"] = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), wide.shape[1])
    values["category"] = pa.array(category, pa.int64())
    row = np.repeat(np.arange(len(counts)), counts)
    if len(set(labels.tolist())) < len(labels):
        crowd, bbox = values["iscrowd"].to_numpy(zero_copy_only=False), values["bbox"].flatten()
        place = row, category, crowd, bbox.to_numpy(zero_copy_only=False).reshape(-1, 4)
        twice = written_twice(*place, values.get("segmentation"), wide)
        if twice.any():
            logger.warning(
                "sources: %s split: dropped %s of classes that become one: they are written in both",
                split, counted(twice.sum(), "object"),
            )  # fmt: skip
            values, row = {name: column.filter(pa.array(~twice)) for name, column in values.items()}, row[~twice]
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(counts)))]), pa.int32())
    values["id"] = pa.array(np.arange(before + 1, before + 1 + len(row)), pa.int64())
    lists = [pa.ListArray.from_arrays(offsets, values[name]) for name in values]
    return pa.StructArray.from_arrays(lists, names=list(values))
