"""Make the tensors of a checkpoint fit another configuration: classes, queries, groups, position table."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...choices import CLASS_INITS, plain_name
from ...tasks import TASKS
from ..configuration_rfdetr import UNUSED_LABEL, RFDETRConfig
from ..initialization import init_class_head
from ..structure import replaced
from .layouts import ENCODER, PATCH_KERNEL, POSITIONS, resize_positions

logger = logging.getLogger(__name__)

CLASS_HEADS = re.compile(r"^(class_embed|transformer\.enc_out_class_embed\.\d+)\.(weight|bias)$")
_GROUP_HEADS = re.compile(r"^(transformer\.enc_out\w*)\.(\d+)\.(.+)$")
# With their numbers of dimensions.
_SHOWING_SIZES = {
    PATCH_KERNEL: 4,
    POSITIONS: 3,
    "backbone.0.projector.stages.0.0.cv1.conv.weight": 4,
    "transformer.enc_output.0.weight": 2,
    "transformer.decoder.layers.0.linear1.weight": 2,
    "transformer.decoder.layers.0.cross_attn.attention_weights.bias": 1,
    "query_feat.weight": 2,
    "refpoint_embed.weight": 2,
    "class_embed.bias": 1,
}
# Tables with a row for each keypoint of the schema.
_KEYPOINT_ROWS = re.compile(r"(\.keypoint_pos_embed|\.keypoint_query_initializer(_enc)?\.queries)$")
# Tensors that are read with another number of rows too.
_READ_IN_ANOTHER_SIZE = re.compile(
    rf"^(query_feat|refpoint_embed)\.weight$|{re.escape(POSITIONS)}|{_KEYPOINT_ROWS.pattern}"
)
# Buffers that repeat the keypoint schema: models build them from the configuration, and detectors do without.
_SCHEMA_BUFFERS = re.compile(r"(^_kp_active_mask|\.keypoint_class_mask)$")


class Adaptation(NamedTuple):
    """One line of the table of what was changed: `what` was `found` in the file and is `needed` here.

    `new_rows` names the tensors with rows that predict nothing before they are trained.
    """

    what: str
    found: str
    needed: str
    how: str
    new_rows: tuple[str, ...] = ()


def task_of(names: Collection[str]) -> str:
    """ "detection", "segmentation" or "keypoints", by the names of the tensors."""
    if any(name.startswith("segmentation_head.") for name in names):
        return "segmentation"
    return "keypoints" if any(name.startswith("keypoint_embed.") for name in names) else "detection"


def require_model(names: Mapping[str, Any], origin: str) -> None:
    """Check that the tensors are there which every RF-DETR model has and which show its sizes.

    Raises:
        ValueError: if one is missing, or has another number of dimensions.
    """
    for name, dimensions in _SHOWING_SIZES.items():
        if name not in names:
            raise ValueError(f"{origin} is no RF-DETR checkpoint: the tensor {name} is missing.")
        shape = getattr(names[name], "shape", None)
        if shape is not None and len(shape) != dimensions:
            raise ValueError(f"{origin} is no RF-DETR checkpoint: {name} has the shape {[*shape]}, not {dimensions}-D.")


def require_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Check that weights are floating-point numbers without NaN and infinity.

    Raises:
        ValueError: naming the file and the tensors.
    """
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in state.items():
        if tensor.dtype not in kinds and not _SCHEMA_BUFFERS.search(name):
            raise ValueError(f"{origin}: {name} is of the type {tensor.dtype}; weights are float16 to float64.")
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and not tensor.is_meta}
    try:
        wrong = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    except NotImplementedError as error:
        types = ", ".join(sorted({type(each).__name__ for each in floats.values()} - {"Tensor", "Parameter"}))
        raise ValueError(
            f"{origin}: weights of the type {types} are not plain numbers, as after a quantization by torchao; save "
            "the model before it is quantized, and quantize it again after loading"
        ) from error
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ValueError(
            f"{origin}: NaN or infinite values in {len(wrong)} of {len(state)} tensors: {shown}. Take an earlier "
            "checkpoint."
        )


def require_task(names: Mapping[str, Any], model_class: type, origin: str) -> None:
    """Check that the tensors are of a model for the task of the class.

    Raises:
        ValueError: if they are not, naming the file and both tasks.
    """
    found = task_of(names)
    if found != model_class.task:
        raise ValueError(
            f"{origin} holds a model for {found}, and {model_class.__name__} is for {model_class.task}: "
            f"use {TASKS[found].model_class}."
        )


def structure(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the shapes of a model's tensors say about it. Facts that the tensors do not hold are left out.

    Args:
        shapes: Official names and shapes.
    """
    facts: dict[str, Any] = {"task": task_of(shapes)}
    facts["encoder width (hidden_size)"], facts["channels"], facts["patch size"], _ = shapes[PATCH_KERNEL]
    facts["encoder blocks"] = count_encoder_blocks(shapes)
    facts["decoder width (d_model)"] = shapes["query_feat.weight"][1]
    facts["decoder layers"] = count_decoder_layers(shapes)
    facts["decoder feed-forward width"] = shapes["transformer.decoder.layers.0.linear1.weight"][0]
    facts["projector scales"] = projector_scales(shapes)
    facts["projector blocks"] = _count(shapes, r"^backbone\.0\.projector\.stages\.0\.0\.m\.(\d+)\.cv1\.conv\.weight$")
    facts["projector inputs"] = shapes["backbone.0.projector.stages.0.0.cv1.conv.weight"][1]
    facts["heads x levels x points"] = shapes["transformer.decoder.layers.0.cross_attn.attention_weights.bias"][0]
    return facts


def projector_scales(shapes: Mapping[str, Any]) -> list[str]:
    """The levels, by how the encoder's maps are resampled for each."""
    scales = []
    for level in range(_count(shapes, r"^backbone\.0\.projector\.stages\.(\d+)\.1\.weight$")):
        prefix = f"backbone.0.projector.stages_sampling.{level}.0.0."
        if f"{prefix}weight" in shapes:
            scales.append("P3")
        else:
            scales.append("P5" if f"{prefix}conv.weight" in shapes else "P4")
    return scales


def count_groups(names: Mapping[str, Any]) -> int:
    """Number of query groups: each has its proposal heads."""
    return _count(names, r"^transformer\.enc_output\.(\d+)\.weight$")


def count_decoder_layers(names: Mapping[str, Any]) -> int:
    """Number of decoder layers."""
    return _count(names, r"^transformer\.decoder\.layers\.(\d+)\.norm1\.weight$")


def count_encoder_blocks(names: Mapping[str, Any]) -> int:
    """Number of blocks of the encoder, used or not."""
    return _count(names, rf"^{re.escape(ENCODER)}encoder\.layer\.(\d+)\.norm1\.weight$")


def _count(names: Mapping[str, Any], pattern: str) -> int:
    return sum(re.match(pattern, name) is not None for name in names)


def adapt_state_dict(
    state: Mapping[str, Tensor],
    stored: RFDETRConfig,
    config: RFDETRConfig,
    expected: Mapping[str, Sequence[int]],
    origin: str,
    class_init: str = "prior",
) -> tuple[dict[str, Tensor], list[Adaptation]]:
    """Fit the tensors of a checkpoint to a model.

    Args:
        state: Tensors under their official names.
        stored: Configuration of the checkpoint.
        config: Configuration of the model to load into.
        expected: Names and shapes of that model.
        origin: The file, for messages.
        class_init: Values of class rows. "prior": a class that the checkpoint has by name keeps its row, and others get
            a new one with the bias of the prior probability. "new": all are new. "tile": when classes change, row i is
            the old row i modulo their number, as the official package does.

    Returns:
        The tensors, and what was changed.

    Raises:
        ValueError: for what no adaptation can bridge, naming both sides.
    """
    if class_init not in CLASS_INITS:
        raise ValueError(f"class_init must be one of {', '.join(CLASS_INITS)}, got {class_init!r}.")
    state = {name: tensor for name, tensor in state.items() if not _SCHEMA_BUFFERS.search(name)}
    _check_structure(state, expected, origin)
    done: list[Adaptation] = []
    _adapt_queries(state, config, done, origin)
    check_class_heads(state, stored, origin)
    rows = _adapt_classes(state, stored, config, class_init, done)
    _adapt_positions(state, config, done)
    _adapt_keypoints(state, stored, config, rows, done)
    _check_tensors(state, expected, origin)
    return state, done


def _check_structure(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], origin: str) -> None:
    require_model(state, origin)
    found, needed = structure({name: tuple(tensor.shape) for name, tensor in state.items()}), structure(expected)
    differing = [fact for fact in needed if found[fact] != needed[fact]]
    if differing:
        sides = "; ".join(f"{fact} {found[fact]} in the file, {needed[fact]} here" for fact in differing)
        raise ValueError(f"{origin} does not fit the configuration, and this cannot be adapted: {sides}.")


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], origin: str) -> None:
    missing = sorted(name for name in expected if name not in state and not _SCHEMA_BUFFERS.search(name))
    unexpected = sorted(set(state) - set(expected))
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file, {tuple(expected[name])} here"
        for name in expected
        if name in state and tuple(state[name].shape) != tuple(expected[name])
    ]
    problems = _listed("missing", missing) + _listed("not part of the model", unexpected) + _listed("mismatch", shapes)
    if problems:
        raise ValueError(f"{origin} does not fit the model: {'; '.join(problems)}.")


def require_loadable(
    state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], config: RFDETRConfig, origin: str
) -> None:
    """Check that tensors are all that a model of the configuration needs, and warn where modules were exchanged.

    Args:
        state: Tensors that are to be written, under their official names.
        expected: Names and shapes of a model that is made with the configuration.
        config: Of the model.
        origin: What they are, for messages.

    Raises:
        ValueError: if tensors are missing, or would be read as those of other classes, queries or positions.
    """
    check_class_heads(state, config, origin)
    rows = [name for name in expected if name in state and _READ_IN_ANOTHER_SIZE.search(name)]
    _check_tensors({name: state[name] for name in rows}, {name: expected[name] for name in rows}, origin)
    try:
        _check_tensors(state, expected, origin)
    except ValueError as error:
        if not replaced(expected.keys() - state.keys(), state.keys() - expected.keys()):
            raise
        logger.warning("%s from_pretrained reads no such file; load_state_dict of a model changed alike does", error)


def _listed(title: str, items: list[str]) -> list[str]:
    shown = ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
    return [f"{title}: {shown}"] if items else []


def _adapt_queries(state: dict[str, Tensor], config: RFDETRConfig, done: list[Adaptation], origin: str) -> None:
    groups = count_groups(state)
    queries, rest = divmod(state["query_feat.weight"].shape[0], groups)
    if rest or queries < config.num_queries:
        raise ValueError(
            f"{origin} has {state['query_feat.weight'].shape[0]} query rows in {groups} groups, and the configuration "
            f"wants {config.num_queries} queries for each group: at most {queries} can be taken from it."
        )
    if queries > config.num_queries:
        done.append(Adaptation("queries of a group", str(queries), str(config.num_queries), "the first of each group"))
    if groups != config.group_detr:
        how = "the first kept" if groups > config.group_detr else "new queries, heads copied from the old groups"
        done.append(Adaptation("query groups", str(groups), str(config.group_detr), how))
        _adapt_group_heads(state, groups, config.group_detr)
    for name, fresh in (("query_feat.weight", torch.randn), ("refpoint_embed.weight", torch.zeros)):
        rows = state[name].unflatten(0, (groups, queries))[: config.group_detr, : config.num_queries]
        # Copies of a group would stay copies in training: each group needs queries of its own.
        new = fresh(config.group_detr - rows.shape[0], *rows.shape[1:]) if groups < config.group_detr else rows[:0]
        state[name] = torch.cat([rows, new.to(rows.dtype)]).flatten(0, 1)


def _adapt_group_heads(state: dict[str, Tensor], groups: int, needed: int) -> None:
    for name, match in [(name, match) for name in state if (match := _GROUP_HEADS.match(name))]:
        head, group, rest = match.groups()
        for copy in range(int(group) + groups, needed, groups):
            state[f"{head}.{copy}.{rest}"] = state[name].clone()
        if int(group) >= needed:
            del state[name]


def check_class_heads(state: Mapping[str, Tensor], stored: RFDETRConfig, origin: str) -> None:
    """Check that the heads have a row for each class that the file names.

    Raises:
        ValueError: naming the file and both numbers.
    """
    for name, tensor in state.items():
        if CLASS_HEADS.match(name) and tensor.shape[:1] != (stored.num_labels,):
            raise ValueError(
                f"{origin}: {name} is {tuple(tensor.shape)}, but the file names {stored.num_labels} classes "
                f"({_named(stored.num_labels, stored.id2label)}): weights and configuration do not belong together."
            )


def _adapt_classes(
    state: dict[str, Tensor], stored: RFDETRConfig, config: RFDETRConfig, class_init: str, done: list[Adaptation]
) -> list[int | None]:
    """Fit the class heads; returns for each class of the model its row in the file, None where there is none."""
    found, needed, names = state["class_embed.bias"].shape[0], config.num_labels, stored.id2label
    used = [row for row, name in sorted(names.items()) if name != UNUSED_LABEL]
    unnamed = _is_unnamed(names) or _is_unnamed(config.id2label)
    heads = tuple(name for name in state if CLASS_HEADS.match(name))
    line = Adaptation("classes", _named(found, names), _named(needed, config.id2label), "rows new, prior bias", heads)
    if class_init == "new":
        rows: list[int | None] = [None] * needed
    elif found == needed and (unnamed or names == config.id2label):
        done += [] if names == config.id2label else [line._replace(how="all kept, by position", new_rows=())]
        return list(range(needed))
    elif unnamed and len(used) == needed:
        rows = [*used]
    elif class_init == "tile" and [names[row] for row in used] != list(config.id2label.values()):
        done.append(line._replace(how="rows repeated"))
        select_class_rows(state, [row % found for row in range(needed)])
        return [None] * needed
    else:
        rows = rows_by_name(names, config.id2label)
    new = [config.id2label[index] for index, row in enumerate(rows) if row is None]
    if not new and rows == used:
        line = line._replace(how="rows without a class left out", new_rows=())
    elif len(new) < needed:
        listed = f" ({', '.join(new[:5])}{', ...' if len(new) > 5 else ''})" if new else ""
        how = f"kept {needed - len(new)}, new {len(new)}{listed}"
        line = line._replace(how=how, new_rows=heads if new else ())
    done.append(line)
    head = nn.Linear(state["class_embed.weight"].shape[1], needed)
    init_class_head(head)
    kept = [index for index, row in enumerate(rows) if row is not None]
    for name in state:
        if match := CLASS_HEADS.match(name):
            fresh = getattr(head, match[2]).detach().to(state[name].dtype, copy=True)  # (needed, D) or (needed,)
            fresh[kept] = state[name][[row for row in rows if row is not None]]
            state[name] = fresh
    return rows


def _is_unnamed(names: Mapping[int, str]) -> bool:
    """Whether all names are those that a configuration gives to classes without any: no class is known by them."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names.values() if name != UNUSED_LABEL)


def rows_by_name(found: Mapping[int, str], needed: Mapping[int, str]) -> list[int | None]:
    """For each needed class the row of the same name, else the only row with that name in other case or spacing.

    Args:
        found: rows and names; those of default names (`LABEL_0`, ...) have none of a class.
        needed: ids and names, likewise.
    """
    exact = {name: row for row, name in found.items() if name != UNUSED_LABEL}
    if _is_unnamed(found) or _is_unnamed(needed):
        exact = {}
    rows = [exact.get(needed[index]) for index in sorted(needed)]
    alike: dict[str, list[int]] = {}
    for name, row in exact.items():
        if row not in rows:
            alike.setdefault(plain_name(name), []).append(row)
    unmatched = [plain_name(needed[index]) for index, row in enumerate(rows) if row is None]
    for index, row in enumerate(rows):
        plain = plain_name(needed[index])
        if row is None and len(alike.get(plain, [])) == 1 and unmatched.count(plain) == 1:
            rows[index] = alike[plain][0]
    return rows


def select_class_rows(state: dict[str, Tensor], rows: Sequence[int]) -> None:
    """Replace the rows of all class heads by the rows with these numbers."""
    for name in state:
        if CLASS_HEADS.match(name):
            state[name] = state[name][list(rows)]


def select_keypoint_rows(state: dict[str, Tensor], counts: Sequence[int], classes: Sequence[int]) -> None:
    """Keep the keypoints of these classes, in this order, in the tables with a row for each keypoint.

    Args:
        state: Tensors, changed in place. Buffers that repeat the schema are dropped.
        counts: Number of keypoints of each class in `state`.
        classes: Positions in `counts`.
    """
    starts = [sum(counts[:position]) for position in range(len(counts))]
    rows = [row for each in classes for row in range(starts[each], starts[each] + counts[each])]
    for name in [name for name in state if _SCHEMA_BUFFERS.search(name)]:
        del state[name]
    for name in state:
        if _KEYPOINT_ROWS.search(name):
            state[name] = state[name][rows]


def without_unused_rows(state: dict[str, Tensor], config: RFDETRConfig) -> RFDETRConfig:
    """Drop the class rows that are called "N/A" from `state`, in place, and from the configuration.

    The keypoints of a class go with its row.
    """
    kept = [row for row, name in sorted(config.id2label.items()) if name != UNUSED_LABEL]
    if not kept:
        raise ValueError('all class rows are called "N/A": none would be left.')
    select_class_rows(state, kept)
    overrides: dict[str, Any] = {"id2label": {new: config.id2label[row] for new, row in enumerate(kept)}}
    if counts := config.num_keypoints_per_class:
        described, with_keypoints = config.keypoint_schema, [row for row in kept if row < len(counts)]
        select_keypoint_rows(state, counts, with_keypoints)
        overrides["num_keypoints_per_class"] = [counts[row] for row in with_keypoints]
        if described:
            overrides["keypoint_schema"] = {
                **described,
                "classes": [described["classes"][row] for row in with_keypoints],
            }
    return config.with_fields(**overrides)


def renamed(config: RFDETRConfig, names: Mapping[str, str], origin: str) -> RFDETRConfig:
    """The configuration with other names for some classes.

    Args:
        config: Of the checkpoint.
        names: Old and new names.
        origin: The file, for messages.

    Raises:
        ValueError: if there is no class of an old name, or two would have one name.
    """
    if not names:
        return config
    unknown = sorted(set(names) - set(config.id2label.values()))
    if unknown:
        raise ValueError(
            f"rename_classes names {unknown[:3]}, and {origin} has no such class; it has "
            f"{_named(config.num_labels, config.id2label)}."
        )
    return config.with_fields(id2label={row: names.get(name, name) for row, name in config.id2label.items()})


def append_unused_row(state: dict[str, Tensor], bias: float) -> None:
    """Append a row to all class heads that gives the logit `bias` to everything."""
    for name, tensor in state.items():
        if CLASS_HEADS.match(name):
            row = tensor.new_zeros(1, *tensor.shape[1:]) if name.endswith("weight") else tensor.new_full((1,), bias)
            state[name] = torch.cat([tensor, row])


def _named(count: int, names: Mapping[int, str]) -> str:
    shown = [names[index] for index in sorted(names) if names[index] != UNUSED_LABEL]
    text = ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
    return f"{count} ({text if len(text) < 40 else text[:37] + '...'})"


def _adapt_positions(state: dict[str, Tensor], config: RFDETRConfig, done: list[Adaptation]) -> None:
    side = round((state[POSITIONS].shape[1] - 1) ** 0.5)
    grid = config.backbone_config.position_grid
    if side != grid and side**2 + 1 == state[POSITIONS].shape[1]:
        done.append(Adaptation("position table", f"{side} x {side}", f"{grid} x {grid}", "bicubic"))
        state[POSITIONS] = resize_positions(state[POSITIONS], grid)


def _adapt_keypoints(
    state: dict[str, Tensor],
    stored: RFDETRConfig,
    config: RFDETRConfig,
    rows: Sequence[int | None],
    done: list[Adaptation],
) -> None:
    """Rows of a class that keeps its row and its number of keypoints; others from old row k modulo their number.

    The latter is what the official package does.
    """
    counts, needed = stored.num_keypoints_per_class, config.num_keypoints_per_class
    if not needed or (counts == needed and list(rows[: len(needed)]) == list(range(len(needed)))):
        return
    taken, how = list[int](), "rows repeated"
    for index, count in enumerate(needed):
        row = rows[index]
        if row is not None and row < len(counts) and counts[row] == count:
            start = sum(counts[:row])
            taken, how = [*taken, *range(start, start + count)], "those of kept classes, others repeated"
        else:
            taken += [(len(taken) + k) % sum(counts) for k in range(count)]
    if taken == list(range(sum(counts))):
        return
    for name in [name for name in state if _KEYPOINT_ROWS.search(name)]:
        state[name] = state[name][taken]
    done.append(Adaptation("keypoints", str(sum(counts)), str(sum(needed)), how))


def class_rows(done: Sequence[Adaptation]) -> str:
    """What became of the class rows, in words."""
    return next((f"class rows: {line.how}" for line in done if line.what == "classes"), "all class rows kept")


def log_adaptations(origin: str, done: Sequence[Adaptation]) -> None:
    """Log what was changed as a table, a warning if rows are new; nothing if nothing was."""
    if not done:
        return
    rows = [Adaptation("", "in the file", "here", "how")[:4], *(line[:4] for line in done)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    level = logging.WARNING if any(line.new_rows for line in done) else logging.INFO
    logger.log(level, "%s was adapted to the configuration:\n%s", origin, "\n".join(lines))
