"""The rows of shards with the labels of another class table, such as a model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Features, List

from ..errors import DetectionDataError
from ..keypoints import ClassKeypoints, KeypointSchema
from ..schema import class_label, ids_of_class_label, keypoint_feature, schema_of_keypoints, unchunked
from .counts import Counts

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute


def relabelled_features(features: Features, names: Sequence[str], source: str) -> tuple[Features, np.ndarray]:
    """The features for another class table, and the label in it of each stored label, -1 for none.

    Args:
        features: of the shards.
        names: of the classes. Those that the shards lack have no objects; their ids are new ones.
        source: for messages.

    Raises:
        DetectionDataError: the classes that are left have other numbers of keypoints.
    """
    fields: Any = dict(features["objects"])
    stored = fields["category"].feature
    known, unknown = ids_of_class_label(stored), count(max(ids_of_class_label(stored), default=-1) + 1)
    ids = [known[stored.names.index(name)] if name in stored.names else next(unknown) for name in names]
    labels = np.array([names.index(name) if name in names else -1 for name in stored.names], np.int64)
    fields["category"] = List(class_label(names, ids))
    described = schema_of_keypoints(fields.get("keypoints"))
    if described is not None:
        own = dict(zip(stored.names, described.classes, strict=True))
        schema = KeypointSchema(tuple(own.get(name, ClassKeypoints()) for name in names))
        if schema.num_keypoints != described.num_keypoints:
            raise DetectionDataError(
                f"{source}: class_names={list(names)} leaves {schema.num_keypoints} of the {described.num_keypoints} "
                "keypoints of an object; write the shards again from a data set with these classes"
            )
        fields["keypoints"] = keypoint_feature(schema)
    return Features({**features, "objects": fields}), labels


def relabelled_counts(counts: Counts | None, labels: np.ndarray, total: int) -> Counts | None:
    """The counts of rows by the labels of another table of `total` classes."""
    if counts is None:
        return None
    inside = np.flatnonzero(labels >= 0)

    def moved(values: list[Any], empty: Any) -> list[Any]:
        found = [empty] * total
        for old in inside.tolist() if values else ():
            found[int(labels[old])] = values[old]
        return found if values else values

    width = len(counts.labelled[0]) if counts.labelled else 0
    by_class = {"objects": moved(counts.objects, 0), "images_with": moved(counts.images_with, 0)}
    return replace(counts, **by_class, labelled=moved(counts.labelled, [0] * width))


def relabel(table: pa.Table, labels: np.ndarray, names: Sequence[str], place: str) -> pa.Table:
    """Rows with other labels.

    Args:
        table: rows as they are stored.
        labels: the new label of each stored one, -1 for none.
        names: stored names, for messages.
        place: of the rows, for messages.

    Raises:
        DetectionDataError: an object of a class that the new table lacks.
    """
    if "objects" in table.column_names:
        objects = unchunked(table["objects"])
        fields = {each.name: pc.struct_field(objects, each.name) for each in objects.type}
        lengths = pc.list_value_length(fields["category"]).to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        old = pc.list_flatten(fields["category"]).to_numpy(zero_copy_only=False).astype(np.int64)
        new = labels[old]
        if (new < 0).any():
            lost = sorted({str(names[int(label)]) for label in old[new < 0].tolist()})
            raise DetectionDataError(
                f"{place}: objects of {lost}, which are not in class_names; give these names too, or write the shards "
                "again without these objects"
            )
        fields["category"] = pa.ListArray.from_arrays(offsets, pa.array(new, pa.int64()))
        objects = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        table = table.set_column(table.column_names.index("objects"), "objects", objects)
    if "labelled_classes" in table.column_names:
        rows = table["labelled_classes"].to_pylist()
        moved = [None if own is None else sorted(int(labels[k]) for k in own if labels[k] >= 0) for own in rows]
        column = pa.array(moved, table["labelled_classes"].type)
        table = table.set_column(table.column_names.index("labelled_classes"), "labelled_classes", column)
    return table
