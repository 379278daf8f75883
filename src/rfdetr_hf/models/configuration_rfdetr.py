"""The configuration of RF-DETR models and the table of published variants."""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..choices import names_alike
from ..tasks import TASKS
from .files.native_config import complete_plain_config
from .known_fields import STORED, LenientConfig

logger = logging.get_logger("rfdetr_hf")

MODEL_TYPE = "rf_detr"
# Plain transformers knows `rf_detr` with the level P4 alone. A model with other levels says another type, so that a
# reader without this package refuses the file instead of loading half of it.
MULTI_LEVEL_MODEL_TYPE = "rf_detr_multi_level"
# It would read a keypoint model as a detector whose class logits lack the keypoints' part.
KEYPOINT_MODEL_TYPE = "rf_detr_keypoint"
_MODEL_TYPES = (MODEL_TYPE, MULTI_LEVEL_MODEL_TYPE, KEYPOINT_MODEL_TYPE)
# The name of a row of the class head that no class has.
UNUSED_LABEL = "N/A"
PROJECTOR_SCALES = ("P3", "P4", "P5")

# Fields of the transformers configurations that have a single value in RF-DETR. They are written to the file, because
# the defaults of other readers differ, and another value is an error rather than an option without effect.
_FIXED_BACKBONE = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "reshape_hidden_states": True,
    "use_mask_token": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_FIXED_DETECTOR = {
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "hidden_expansion": 0.5,
    "attention_bias": True,
    "segmentation_head_activation_function": "gelu",
}


# Far above any model; a damaged file does not make us build millions of modules.
MOST_MODULES, LARGEST_SIZE = 512, 2**16
_MODULE_COUNTS = ("num_hidden_layers", "decoder_layers", "group_detr", "c2f_num_blocks")

# The default of fields that have a value as soon as the configuration is made.
_DERIVED: Any = None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_fixed(config: PreTrainedConfig, fixed: dict[str, Any]) -> None:
    for field, value in fixed.items():
        found = getattr(config, field)
        _require(found == value, f"{field} is {found!r}, but RF-DETR models have {value!r}: remove the field.")


def _require_positive(config: PreTrainedConfig, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        _require(is_count, f"{field} must be a positive integer, got {value!r}.")
        limit = MOST_MODULES if field in _MODULE_COUNTS else LARGEST_SIZE
        _require(value <= limit, f"{field} is {value}, and no model is that large: at most {limit}.")


def _require_numbers(config: PreTrainedConfig) -> None:
    for name, declared in config.__dataclass_fields__.items():
        if declared.type is float:
            value = getattr(config, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            _require(is_number, f"{name} must be a number, got {value!r}.")


def _as_list(name: str, value: Any) -> list[Any]:
    _require(isinstance(value, (list, tuple)), f"{name} must be a list, got {value!r}.")
    return list(value)


def _class_names(id2label: Any, stored: bool = False) -> dict[int, str]:
    """`id2label` with integers as ids. Of a file, names that are blank or differ in blanks are a warning.

    Raises:
        ValueError: if the ids are not 0, 1, ..., n - 1, a name is empty or no text, or stands twice, blanks around it
            aside; only "N/A", a row without a class, may.
    """
    _require(isinstance(id2label, Mapping), f"id2label must be a dict of ids and names, got {id2label!r:.80}.")
    ids = [str(id_) for id_ in id2label]
    for id_, name in id2label.items():
        is_name = isinstance(name, (str, int, float)) and not isinstance(name, bool) and (stored or str(name).strip())
        _require(bool(is_name), f"id2label has {name!r} for the id {id_}: each class needs a name, as text in quotes.")
    names = [str(id2label[id_]) for id_ in id2label]
    listed = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    _require(
        sorted(ids) == sorted(map(str, range(len(ids)))),
        f"id2label has the ids {listed}: they must be 0 to {len(ids) - 1} without gaps, since row i of the class head "
        f"is class i. Count the classes from 0: {dict(enumerate(names[:3]))}{' ...' if len(ids) > 3 else ''}",
    )
    twice = sorted({name for name in names if name != UNUSED_LABEL and names.count(name) > 1})
    _require(not twice, f"id2label has the names {twice[:3]} twice: each class needs a name of its own.")
    alike = [] if stored else names_alike(names, str.strip)
    _require(not alike, f"id2label has the names {alike[:3]}, which differ in blanks alone: give each class its own.")
    if blank := [id_ for id_, name in zip(ids, names, strict=True) if not name.strip()]:
        logger.warning_once(f"id2label has a blank name for the ids {', '.join(blank[:5])}: give each class a name.")
    if alike := names_alike(names):
        logger.warning_once(f"id2label has the names {alike[:3]}, which differ in case and blanks alone: two classes?")
    return dict(sorted((int(id_), name) for id_, name in zip(ids, names, strict=True)))


def _require_same_ids(id2label: Mapping[int, str], label2id: Mapping[str, Any]) -> None:
    ids = {name: str(id_) for id_, name in id2label.items()}
    other = [name for name, id_ in label2id.items() if ids.get(str(name)) != str(id_) and name != UNUSED_LABEL]
    _require(not other, f"label2id and id2label name different ids for {other[:3]}: give id2label alone.")


class RFDETRBackboneConfig(LenientConfig):
    """The windowed DINOv2 encoder.

    Attributes:
        hidden_size: Width of the tokens; 384 (ViT-S) or 768 (ViT-B) in the published models.
        image_size: Side in pixels of the stored position table: it has `(image_size // patch_size) ** 2` rows and is
            resized to the grid of the input whenever that differs.
        patch_size: Side of a patch in pixels.
        num_windows: Windows per side; 1 switches windowed attention off.
        out_indices: Blocks (counted from 1) whose outputs feed the projector. The same numbers, counted from 0, are
            the blocks with attention across the windows of an image.
        drop_path_rate: Rate of the last block at construction; it rises linearly from 0 at the first block.
        layerscale_value: Initial value of the layer scales.
    """

    model_type = "rf_detr_dinov2"
    implied_fields: ClassVar[Any] = {"out_features", "stage_names", "window_block_indexes", "num_register_tokens"}

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 384
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    use_mask_token: bool = True
    num_windows: int = 2
    out_indices: list[int] = _DERIVED

    def __post_init__(self, **kwargs: Any) -> None:
        if not kwargs.pop(STORED, False):
            self.require_known(kwargs, TypeError)
        features = kwargs.pop("out_features", None)
        kwargs.pop("stage_names", None)
        windowed = kwargs.pop("window_block_indexes", None)
        for name, value in (("out_features", features), ("window_block_indexes", windowed)):
            _as_list(name, value or [])
        registers = kwargs.pop("num_register_tokens", 0)
        _require(registers == 0, f"num_register_tokens is {registers}, and encoders with registers are not supported.")
        if self.out_indices is None and features is not None:
            numbers = [str(name).removeprefix("stage") for name in features]
            _require(all(map(str.isdecimal, numbers)), f"out_features are 'stage1', 'stage2', ..., got {features}.")
            self.out_indices = [int(number) for number in numbers]
        self.out_indices = [3, 6, 9, 12] if self.out_indices is None else _as_list("out_indices", self.out_indices)
        super().__post_init__(**kwargs)
        self.validate()
        _require(
            features is None or list(features) == self.out_features,
            f"out_features {features} and out_indices {self.out_indices} name different stages: give one of them.",
        )
        _require(
            windowed is None or {*map(str, windowed)} == {*map(str, self.window_block_indexes)},
            f"window_block_indexes {windowed} differs from {self.window_block_indexes}, which out_indices implies.",
        )

    @property
    def out_features(self) -> list[str]:
        """Names of the tapped stages as transformers writes them: `stage3` is the output of the third block."""
        return [f"stage{index}" for index in self.out_indices]

    @property
    def window_block_indexes(self) -> list[int]:
        """Blocks (from 0) whose attention stays inside a window."""
        return sorted(set(range(self.out_indices[-1] + 1)) - set(self.out_indices))

    @property
    def position_grid(self) -> int:
        """Side of the stored position table in patches."""
        return self.image_size // self.patch_size

    def validate(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: naming the fields and what to change.
        """
        _require_fixed(self, _FIXED_BACKBONE)
        _require_numbers(self)
        _require_positive(
            self, "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size",
            "num_channels", "num_windows",
        )  # fmt: skip
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}.",
        )
        _require(
            self.image_size >= self.patch_size,
            f"image_size {self.image_size} is smaller than patch_size {self.patch_size}: the position table is empty.",
        )
        taps, blocks = self.out_indices, self.num_hidden_layers
        are_numbers = bool(taps) and all(isinstance(tap, int) for tap in taps)
        _require(
            are_numbers and list(taps) == sorted(set(taps)) and 1 <= taps[0] and taps[-1] <= blocks,
            f"out_indices {taps} must be ascending, distinct and within 1..num_hidden_layers ({blocks}).",
        )
        _require(0 <= self.drop_path_rate < 1, f"drop_path_rate must be in [0, 1), got {self.drop_path_rate}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields, with `out_features` beside `out_indices` as transformers stores them; the type is the model's."""
        return {**super().to_dict(), "out_features": self.out_features, "dtype": None}


class RFDETRConfig(LenientConfig):
    """An RF-DETR detector. Field names are those of transformers' `RfDetrConfig`; the defaults are those of "nano".

    `num_labels` (the length of `id2label`) is the number of class logits. There is no background class.

    Attributes:
        backbone_config: An `RFDETRBackboneConfig` or a dict of its fields.
        resolution: Side in pixels of the square input that the model is trained at. Derived from the position table
            when it is not given. Other sizes work as well, if `size_divisor` divides them.
        projector_scales: Feature levels, ascending, out of P3 (patch grid x 2), P4 (the grid) and P5 (x 1/2).
        num_feature_levels: Their number; derived.
        d_model: Width of projector, two-stage head and decoder.
        decoder_n_points: Sampling points per head and level of the deformable attention.
        num_queries: Queries of one group, the largest number of distinct boxes.
        group_detr: Query groups in training; evaluation uses the first.
        dropout, attention_dropout, activation_dropout: Rates in the decoder, 0 in all published models.
        layer_norm_eps: Epsilon of the projector norms (decoder norms have 1e-5).
        class_cost, bbox_cost, giou_cost: Weights of the matching cost.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient: Weights of the loss terms.
        auxiliary_loss: Whether decoder layers before the last are supervised too. The proposals of the encoder always
            are; the official package leaves them untrained without it.
        mask_downsample_ratio: Masks have height and width of the input divided by this (segmentation).
        intermediate_size: Hidden width of the query block of the segmentation head, 4 * d_model; derived.
        mask_point_sample_ratio: Mask losses and costs read one point for each so many cells of a mask.
        mask_class_loss_coefficient, mask_dice_loss_coefficient: Weights of the mask terms in loss and matching.
        num_keypoints_per_class: Keypoints of each class in the order of the class ids; a class may have none, and
            classes beyond the list have none. Empty for models without keypoints.
        keypoint_l1_loss_coefficient, keypoint_findable_loss_coefficient, keypoint_visible_loss_coefficient,
            keypoint_nll_loss_coefficient: Weights of the keypoint terms in loss and matching.
        keypoint_schema: Names, flip pairs, skeleton and OKS sigmas of the keypoints, as the data set describes them;
            for the users of the checkpoint, the model does not read it.
    """

    model_type = MODEL_TYPE
    sub_configs: ClassVar[Any] = {"backbone_config": RFDETRBackboneConfig}

    backbone_config: Any = None
    resolution: int = _DERIVED
    projector_scales: list[str] = _DERIVED
    num_feature_levels: int = _DERIVED
    hidden_expansion: float = 0.5
    c2f_num_blocks: int = 3
    activation_function: str = "silu"
    layer_norm_eps: float = 1e-6
    d_model: int = 256
    decoder_layers: int = 2
    decoder_self_attention_heads: int = 8
    decoder_cross_attention_heads: int = 16
    decoder_n_points: int = 2
    decoder_ffn_dim: int = 2048
    decoder_activation_function: str = "relu"
    attention_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    num_queries: int = 300
    group_detr: int = 13
    class_cost: float = 2
    bbox_cost: float = 5
    giou_cost: float = 2
    class_loss_coefficient: float = 1
    bbox_loss_coefficient: float = 5
    giou_loss_coefficient: float = 2
    focal_alpha: float = 0.25
    auxiliary_loss: bool = True
    mask_downsample_ratio: int = 4
    intermediate_size: int = _DERIVED
    segmentation_head_activation_function: str = "gelu"
    mask_point_sample_ratio: int = 16
    mask_class_loss_coefficient: float = 5
    mask_dice_loss_coefficient: float = 5
    num_keypoints_per_class: list[int] = _DERIVED
    keypoint_l1_loss_coefficient: float = 1
    keypoint_findable_loss_coefficient: float = 1
    keypoint_visible_loss_coefficient: float = 1
    keypoint_nll_loss_coefficient: float = 1
    keypoint_schema: dict[str, Any] | None = None

    if TYPE_CHECKING:
        id2label: dict[int, str] = _DERIVED

        @property
        def num_labels(self) -> int: ...

    def __post_init__(self, **kwargs: Any) -> None:
        is_stored = kwargs.pop(STORED, False)
        if not is_stored:
            self.require_known(kwargs, TypeError)
        self.backbone_config = _as_backbone_config(self.backbone_config, is_stored)
        scales = ["P4"] if self.projector_scales is None else self.projector_scales
        self.projector_scales = _as_list("projector_scales", scales)
        if self.num_feature_levels is None:
            self.num_feature_levels = len(self.projector_scales)
        if self.resolution is None:
            blocks = -(-self.backbone_config.image_size // self.size_divisor)
            self.resolution = blocks * self.size_divisor
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.d_model
        self.num_keypoints_per_class = _as_list("num_keypoints_per_class", self.num_keypoints_per_class or [])
        given: Any = self.label2id
        if self.id2label is None and given:
            self.id2label = {id_: name for name, id_ in given.items()}
        if self.id2label is not None:
            self.id2label = _class_names(self.id2label, is_stored)
            count, names = kwargs.pop("num_labels", None), len(self.id2label)
            _require(count in (None, names), f"num_labels is {count}, but id2label has {names} names: give one.")
            _require_same_ids(self.id2label, given or {})
        super().__post_init__(**kwargs)
        self.validate()

    @property
    def size_divisor(self) -> int:
        """Height and width of every input must be multiples of this: `patch_size * num_windows`."""
        return self.backbone_config.patch_size * self.backbone_config.num_windows

    def validate(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: naming the fields and what to change.
        """
        self.backbone_config.validate()
        _require_fixed(self, _FIXED_DETECTOR)
        _require_numbers(self)
        _require_positive(
            self, "resolution", "d_model", "decoder_layers", "decoder_self_attention_heads", "c2f_num_blocks",
            "decoder_cross_attention_heads", "decoder_n_points", "decoder_ffn_dim", "num_queries", "group_detr",
            "mask_downsample_ratio", "mask_point_sample_ratio",
        )  # fmt: skip
        dtype: Any = self.dtype
        _require(not isinstance(dtype, (int, float)), f"dtype must be a name such as 'float32', got {dtype!r}.")
        self._validate_sizes()
        self._validate_levels()
        self._validate_keypoints()
        for field in ("dropout", "attention_dropout", "activation_dropout"):
            _require(0 <= getattr(self, field) < 1, f"{field} must be in [0, 1), got {getattr(self, field)!r}.")
        _require(self.num_labels >= 1, f"num_labels must be at least 1, got {self.num_labels}: set id2label.")
        _require_same_ids(_class_names(self.id2label, True), self.label2id or {})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "id2label" and isinstance(value, Mapping):
            super().__setattr__("label2id", {label: id_ for id_, label in value.items()})

    def _validate_sizes(self) -> None:
        patch, windows = self.backbone_config.patch_size, self.backbone_config.num_windows
        lower = self.resolution // self.size_divisor * self.size_divisor
        _require(
            self.resolution % self.size_divisor == 0,
            f"resolution {self.resolution} is not divisible by patch_size x num_windows = {patch} x {windows} = "
            f"{self.size_divisor}: use {lower or self.size_divisor} or {lower + self.size_divisor}.",
        )
        for field in ("decoder_self_attention_heads", "decoder_cross_attention_heads"):
            heads = getattr(self, field)
            _require(self.d_model % heads == 0, f"{field} {heads} does not divide d_model {self.d_model}.")
        _require(self.d_model % 4 == 0, f"d_model must be a multiple of 4 (box embedding), got {self.d_model}.")

    def _validate_levels(self) -> None:
        scales = self.projector_scales
        _require(
            bool(scales) and scales == [scale for scale in PROJECTOR_SCALES if scale in scales],
            f"projector_scales {scales} must be distinct members of {list(PROJECTOR_SCALES)} in ascending order.",
        )
        _require(
            self.num_feature_levels == len(scales),
            f"num_feature_levels {self.num_feature_levels} differs from the {len(scales)} projector_scales {scales}: "
            "give projector_scales alone.",
        )

    def _validate_keypoints(self) -> None:
        schema = self.num_keypoints_per_class
        counts = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST_MODULES for n in schema)
        _require(
            counts and (not schema or max(schema) > 0),
            f"num_keypoints_per_class {schema} must be numbers of keypoints, at least one of them above 0, none above "
            f"{MOST_MODULES}.",
        )
        _require(
            len(schema) <= self.num_labels,
            f"num_keypoints_per_class has {len(schema)} entries, but there are {self.num_labels} class logits "
            "(num_labels): give one entry for each class, or fewer.",
        )
        _require(
            self.intermediate_size == 4 * self.d_model,
            f"intermediate_size {self.intermediate_size} must be 4 x d_model = {4 * self.d_model}: remove the field.",
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields; models that plain transformers cannot represent have a `model_type` of their own."""
        model_type = MODEL_TYPE if self.projector_scales == ["P4"] else MULTI_LEVEL_MODEL_TYPE
        if self.num_keypoints_per_class:
            model_type = KEYPOINT_MODEL_TYPE
        return {**super().to_dict(), "model_type": model_type}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "RFDETRConfig":
        """Read the `config.json` of a folder or Hub repository, ours or that of plain transformers.

        Raises:
            OSError: if there is none, or it is no JSON.
            ValueError: naming the file and the field that is missing or wrong.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            if str(pretrained_model_name_or_path) in str(error):
                raise
            raise ValueError(f"{pretrained_model_name_or_path}: config.json: {error}") from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict]:
        """Read `config.json`, ours or that of plain transformers (see `complete_plain_config`).

        Raises:
            ValueError: if it describes a model of another type, or lacks what every model has.
        """
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = fields.get("model_type") or MODEL_TYPE
        _require(
            found in _MODEL_TYPES,
            f"{pretrained_model_name_or_path}: config.json has model_type {found!r}, and RFDETRConfig reads "
            f"{', '.join(map(repr, _MODEL_TYPES))}. Is this an RF-DETR checkpoint?",
        )
        fields = complete_plain_config(fields, str(pretrained_model_name_or_path))
        return {**fields, "model_type": MODEL_TYPE}, kwargs

    def with_fields(self, **overrides: Any) -> "RFDETRConfig":
        """This configuration with some fields changed.

        A dict `backbone_config` is merged. Where the position table fits the resolution, a new `resolution` brings a
        table of its own size, unless `backbone_config` gives an `image_size`. One of `id2label` and `label2id`
        implies the other.

        Raises:
            ValueError: for a name that is no field, or fields that do not fit together.
        """
        self.require_known(overrides)
        derived = {"num_feature_levels", *(["intermediate_size"] if "d_model" in overrides else [])}
        fields = {name: value for name, value in self.to_dict().items() if name not in derived}
        if isinstance(encoder := overrides.pop("backbone_config", None), dict):
            RFDETRBackboneConfig.require_known(encoder)
        encoder = _as_dict(encoder)
        if self.backbone_config.image_size == self.resolution and "resolution" in overrides:
            encoder.setdefault("image_size", overrides["resolution"])
        merged = {**fields["backbone_config"], **encoder}
        if "out_indices" in encoder:
            merged = {name: merged[name] for name in merged if name not in ("out_features", "window_block_indexes")}
        if {"id2label", "label2id"} & set(overrides) or overrides.get("num_labels", self.num_labels) != self.num_labels:
            fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
            _class_names(overrides.get("id2label") or {i: n for n, i in (overrides.get("label2id") or {}).items()})
        fields |= {**overrides, "backbone_config": merged, "model_type": MODEL_TYPE, STORED: True}
        return type(self)(**fields)

    @classmethod
    def field_names(cls) -> set[str]:
        """Names of the fields that describe a model."""
        return {*cls.__dataclass_fields__, "num_labels"} - {"dtype", "name_or_path", "transformers_version"}

    @classmethod
    def variants(cls) -> dict[str, "Variant"]:
        """The published variants by the names that `from_variant` knows."""
        return dict(_VARIANTS)

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "RFDETRConfig":
        """The configuration of a published variant, with 91 class logits as in its COCO weights.

        Variants of segmentation and keypoints name the model class in `architectures`.

        Args:
            name: One of `variants()`.
            overrides: Fields to change, see `with_fields`.

        Raises:
            ValueError: for an unknown name, an unknown field or fields that do not fit together.
        """
        _require(name in _VARIANTS, f"unknown variant {name!r}: choose one of {', '.join(_VARIANTS)}.")
        row = _VARIANTS[name]
        fields: dict[str, Any] = {**copy.deepcopy(row.fields), "resolution": row.resolution, "num_labels": 91}
        fields["backbone_config"].setdefault("image_size", row.resolution)
        if row.task != "detection":
            fields["architectures"] = [TASKS[row.task].model_class]
        config = cls(**fields)
        return config.with_fields(**overrides) if overrides else config


class Variant(NamedTuple):
    """A published variant.

    Attributes:
        task: "detection", "segmentation" or "keypoints".
        official_class: Name of its class in the official package.
        resolution: Side of the square input in pixels.
        parameters: Number of parameters with the published 91 class logits.
        fields: Fields of the configuration that differ from the defaults.
        license: Licence of the published weights.
    """

    task: str
    official_class: str
    resolution: int
    parameters: int
    fields: dict[str, Any]
    license: str = "Apache-2.0"


def _as_dict(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    return dict(config) if isinstance(config, dict) else config.to_dict()


def _as_backbone_config(config: Any, is_stored: bool) -> RFDETRBackboneConfig:
    if isinstance(config, RFDETRBackboneConfig):
        return config
    _require(
        isinstance(config, (dict, PreTrainedConfig, type(None))), f"backbone_config must be a dict, got {config!r:.80}."
    )
    fields = _as_dict(config)
    found = fields.pop("model_type", RFDETRBackboneConfig.model_type)
    _require(
        found == RFDETRBackboneConfig.model_type,
        f"backbone_config has model_type {found!r}, and RF-DETR needs {RFDETRBackboneConfig.model_type!r}.",
    )
    return RFDETRBackboneConfig.from_dict(fields) if is_stored else RFDETRBackboneConfig(**fields)


def _fields(decoder_layers: int, num_queries: int = 300, patch_size: int = 16, **others: Any) -> dict[str, Any]:
    encoder = {"patch_size": patch_size, **others.pop("backbone_config", {})}
    return {"decoder_layers": decoder_layers, "num_queries": num_queries, "backbone_config": encoder, **others}


_PATCH_14 = {"patch_size": 14, "num_windows": 4, "image_size": 518, "out_indices": [2, 5, 8, 11]}
_WIDE = {
    "d_model": 384,
    "decoder_self_attention_heads": 12,
    "decoder_cross_attention_heads": 24,
    "decoder_n_points": 4,
    "projector_scales": ["P3", "P5"],
    "backbone_config": {"hidden_size": 768, "num_attention_heads": 12, **_PATCH_14},
}
_PERSON = {"num_keypoints_per_class": [17], "class_loss_coefficient": 2}
_VARIANTS = {
    "nano": Variant("detection", "RFDETRNano", 384, 30_467_298, _fields(2)),
    "small": Variant("detection", "RFDETRSmall", 512, 32_111_170, _fields(3)),
    "medium": Variant("detection", "RFDETRMedium", 576, 33_687_458, _fields(4)),
    "base": Variant("detection", "RFDETRBase", 560, 32_174_530, _fields(3, backbone_config=_PATCH_14)),
    "large": Variant("detection", "RFDETRLarge", 704, 33_933_218, _fields(4)),
    "large-deprecated": Variant("detection", "RFDETRLargeDeprecated", 560, 135_637_474, _fields(3, **_WIDE)),
    "seg-preview": Variant("segmentation", "RFDETRSegPreview", 432, 34_153_555, _fields(4, 200, 12)),
    "seg-nano": Variant(
        "segmentation", "RFDETRSegNano", 312, 33_577_475, _fields(4, 100, 12, backbone_config={"num_windows": 1})
    ),
    "seg-small": Variant("segmentation", "RFDETRSegSmall", 384, 33_711_107, _fields(4, 100, 12)),
    "seg-medium": Variant("segmentation", "RFDETRSegMedium", 432, 35_694_259, _fields(5, 200, 12)),
    "seg-large": Variant("segmentation", "RFDETRSegLarge", 504, 35_873_971, _fields(5, 200, 12)),
    "seg-xlarge": Variant("segmentation", "RFDETRSegXLarge", 624, 38_113_635, _fields(6, 300, 12)),
    "seg-2xlarge": Variant("segmentation", "RFDETRSeg2XLarge", 768, 38_648_163, _fields(6, 300, 12)),
    "keypoint-preview": Variant("keypoints", "RFDETRKeypointPreview", 576, 41_044_470, _fields(4, 100, 12, **_PERSON)),
}
