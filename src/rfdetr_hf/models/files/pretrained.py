"""Models from files and to files: folders and Hub repositories, files of the official package, a DINOv2 encoder."""

import difflib
import inspect
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ..adapters import has_adapters, plain_state
from ..attention import IMPLEMENTATIONS
from ..bars import no_transformers_bars
from ..configuration_rfdetr import RFDETRConfig
from ..structure import require_own_config
from .adapt import (
    adapt_state_dict,
    class_rows,
    log_adaptations,
    renamed,
    require_finite,
    require_loadable,
    require_model,
    require_task,
    without_unused_rows,
)
from .layouts import dinov2_to_encoder, official_keys, official_names
from .official import OfficialCheckpoint, official_config, official_payload, read_official
from .published import CheckpointUnavailable, checkpoint_of, require_hub, unavailable

logger = logging.getLogger(__name__)

HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
ModelT = TypeVar("ModelT", bound="RFDETRPreTrainedModel")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"


def read_state(source: str | Path, variant: str | None = None, **hub_options: Any) -> dict[str, Tensor]:
    """The tensors of a folder or Hub repository, from `model.safetensors` or its shards.

    Args:
        source: the folder or Hub id.
        variant: a word in the names of the files, as in transformers: `model.<variant>.safetensors`.
        hub_options: `revision`, `token`, `cache_dir`, ...

    Raises:
        FileNotFoundError: if neither is there.
        ValueError: if a file cannot be read, or a folder holds both, or an adapter of peft.
    """
    state: dict[str, Tensor] = {}
    for file in _weight_files(source, variant, hub_options):
        try:
            state.update(load_file(file))
        except SafetensorError as error:
            _refuse_damaged(file, error)
    return state


def read_names(source: str | Path, variant: str | None = None, **hub_options: Any) -> list[str]:
    """The names of the tensors that `read_state` reads, from the heads of the files alone.

    Raises:
        FileNotFoundError, ValueError: as there.
    """
    names: list[str] = []
    for file in _weight_files(source, variant, hub_options):
        try:
            with safe_open(file, "pt") as content:
                names += content.keys()
        except SafetensorError as error:
            _refuse_damaged(file, error)
    return names


def _file_names(variant: str | None) -> tuple[str, str]:
    """The names of the single file and of the index of shards."""
    return (
        (f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json") if variant else (_WEIGHTS, _INDEX)
    )


def _weight_files(source: str | Path, variant: str | None, hub_options: Mapping[str, Any]) -> list[str]:
    source, (single, index) = checkpoint_of(source), _file_names(variant)
    if Path(source).is_file():
        raise ValueError(f"{source} is a file: give the folder that holds {single} and config.json.")
    folder = Path(source) / (hub_options.get("subfolder") or "")
    if (folder / single).is_file() and _has_all_shards(folder / index):
        raise ValueError(f"{folder} holds {single} and all shards of {index}: remove those that are not meant.")
    try:
        files = [_cached(source, single, hub_options)]
    except CheckpointUnavailable:
        raise
    except OSError as error:
        _refuse_adapter(source, hub_options)
        try:
            index = _cached(source, index, hub_options)
        except OSError:
            details = "" if Path(source).is_dir() else f" ({error})"
            raise FileNotFoundError(
                f"{source} has neither {single} nor {index}. Files of the official package (.pth, .ckpt) are read "
                f"by from_official.{details}"
            ) from error
        return [_cached(source, name, hub_options) for name in _shards(index)]
    _refuse_adapter(source, hub_options)
    return files


def _refuse_adapter(source: str | Path, hub_options: Mapping[str, Any]) -> None:
    """Weights beside an adapter of peft are those without it, which is not what the folder is meant to give.

    Raises:
        ValueError: there is an adapter.
    """
    missing_is_none = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(str(source), _ADAPTER, **hub_options, **missing_is_none)
    if found is None:
        return
    try:
        base = json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError):
        base = None
    raise ValueError(
        f"{source} holds an adapter of peft ({_ADAPTER}{f', of the model {base}' if base else ''}), and none is "
        f"loaded: move {_ADAPTER} and adapter_model.safetensors into a folder of their own, and save the merged model: "
        f"PeftModel.from_pretrained(load_model({str(base or 'the model')!r}), that folder).merge_and_unload()"
        ".save_pretrained(a new folder)"
    )


def _shards(index: str | Path) -> list[str]:
    """The names of the files that an index names."""
    try:
        return sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as damage:
        raise ValueError(f"{index} is no index of shards ({damage}): download or save it again.") from damage


def _has_all_shards(index: Path) -> bool:
    return index.is_file() and all((index.parent / name).is_file() for name in _shards(index))


def _cached(source: str | Path, name: str, hub_options: Mapping[str, Any]) -> str:
    try:
        if not Path(source).is_dir():
            require_hub(str(source), name, hub_options)
        return cast(str, cached_file(str(source), name, **hub_options))
    except Exception as error:  # of the HTTP client too
        missing_file = isinstance(error, OSError) and error.__cause__ is None
        if Path(source).is_dir() or missing_file:
            raise
        raise unavailable(str(source), error) from error


def _refuse_damaged(file: str, error: SafetensorError) -> NoReturn:
    raise ValueError(f"{file} is no complete safetensors file ({error}): download or save it again.") from error


class RFDETRPreTrainedModel(PreTrainedModel):
    """What all RF-DETR models share: configuration class, initialisation, capabilities."""

    config: RFDETRConfig
    config_class = RFDETRConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    task: str
    made_with: dict[str, Any]
    """The fields of the configuration, at construction, that it cannot change."""
    weights_from = ""
    """Where the weights come from and what became of the class rows; empty for random ones."""
    # A buffer of official files that repeats the keypoint schema.
    _keys_to_ignore_on_load_unexpected = [r"^_kp_active_mask$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initializer = getattr(module, "initializer", None)
        if initializer is not None:
            initializer(module)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Of what transformers knows, the implementations that the models have.

        Raises:
            ValueError: for others.
        """
        found = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if found not in IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation={found!r} is not available: RF-DETR has {' and '.join(IMPLEMENTATIONS)}. Choose "
                "among torch's kernels with torch.nn.attention.sdpa_kernel."
            )
        return found

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """Change the implementation, as in transformers; the encoder, which is no model of its own, has that of a text.

        Raises:
            ValueError: as `get_correct_attn_implementation`; nothing is changed.
        """
        asked = attn_implementation
        kind = asked.get("backbone_config") if isinstance(asked, dict) else asked
        if isinstance(kind, str):
            self.config.backbone_config._attn_implementation = self.get_correct_attn_implementation(kind)
        super().set_attn_implementation(asked, allow_all_kernels)

    def get_input_embeddings(self) -> None:
        """There is no table of input embeddings."""
        return None

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        class_init: str = "prior",
        drop_unused_rows: bool = False,
        rename_classes: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> ModelT:
        """Load a folder or Hub repository, ours or that of plain transformers, and fit it to what is asked for.

        Fields of the configuration (`id2label`, `resolution`, `num_queries`, `group_detr`, `backbone_config`, ...) can
        be given; the weights are adapted and a table of what was changed is logged. With another `id2label` a class
        that the file has by name (or equal except for case and spaces) keeps its row, and others get a new one; another
        `resolution` brings a resized position table, fewer queries the first of each group.

        Args:
            pretrained_model_name_or_path: Name of a variant, such as "nano", for its published checkpoint; folder or
                Hub id; None with `config` and `state_dict`, as in transformers.
            model_args: As in transformers.
            class_init: "prior" gives classes that the file does not have new rows, with a bias of the prior probability
                0.01; "new" gives all classes new ones; "tile" repeats the old rows, as the official package does.
            drop_unused_rows: Leave out the class rows that are called "N/A".
            rename_classes: New names of classes of the file, `{old: new}`, before they are compared.
            kwargs: Fields of the configuration, and the options of transformers (`config`, `revision`, `dtype`,
                `variant`, `key_mapping`, ...). With `output_loading_info` the `mismatched_keys` have the class heads
                with new rows.

        Raises:
            CheckpointUnavailable: the Hub does not give it; the message says why and how to go on.
            ValueError: for what cannot be adapted (patch size, widths, layers, task), naming both sides, or a damaged
                file.
        """
        source = pretrained_model_name_or_path
        if source is None:
            require_finite(kwargs.get("state_dict") or {}, "state_dict")
            return super().from_pretrained(None, *model_args, **kwargs)
        source = checkpoint_of(source)
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(f"use_safetensors=False: of {source} safetensors files alone are read; leave it out.")
        if kwargs.pop("state_dict", None) is not None:
            raise ValueError(
                f"state_dict and {source} are two sources of weights: give None and config with the first."
            )
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        # First: it says best why the Hub gives nothing.
        found = read_state(source, kwargs.pop("variant", None), **hub)
        for old, new in (kwargs.pop("key_mapping", None) or {}).items():
            found = {re.sub(old, new, name): tensor for name, tensor in found.items()}
        state = official_keys(found)
        stored, config = RFDETRConfig.from_pretrained(source, **hub), kwargs.pop("config", None)
        if config is not None and not isinstance(config, RFDETRConfig):
            config = RFDETRConfig.from_pretrained(config, **hub)
        if drop_unused_rows:
            stored = without_unused_rows(state, stored)
        stored = renamed(stored, rename_classes or {}, str(source))
        overrides = {name: kwargs.pop(name) for name in RFDETRConfig.field_names() & set(kwargs)}
        config = (config or stored).with_fields(**overrides) if overrides else config or stored
        return cls._from_state(state, stored, config, str(source), class_init, kwargs)

    @classmethod
    def _from_state(
        cls,
        state: dict[str, Tensor],
        stored: RFDETRConfig,
        config: RFDETRConfig,
        origin: str,
        class_init: str,
        options: Mapping[str, Any],
    ) -> Any:
        """A model of `config` with the tensors of `state`, which `stored` describes, fitted to it."""
        require_model(state, origin)
        require_task(state, cls, origin)
        require_finite(state, origin)
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        adapted, done = adapt_state_dict(state, stored, config, expected, origin, class_init)
        log_adaptations(origin, done)
        try:
            with no_transformers_bars():
                loaded = super().from_pretrained(None, config=config, state_dict=adapted, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            name = str(error).rpartition(" ")[2].strip("'")
            near = difflib.get_close_matches(name, RFDETRConfig.field_names(), n=1) or ["the fields of RFDETRConfig"]
            raise TypeError(f"from_pretrained of {origin} has no argument {name!r}; did you mean {near[0]}?") from error
        model, info = loaded if isinstance(loaded, tuple) else (loaded, {"mismatched_keys": set()})
        sides = (state, adapted)
        for name in [name for line in done for name in line.new_rows]:
            info["mismatched_keys"].add((name, *(tuple(side[name].shape) for side in sides)))
        model.name_or_path = model.config.name_or_path = origin
        model.weights_from = f"{origin}; {class_rows(done)}"
        return loaded

    @classmethod
    def from_official(
        cls: type[ModelT],
        source: str | Path | dict[str, Any] | OfficialCheckpoint,
        *,
        variant: str | None = None,
        use_ema: bool = False,
        class_init: str = "prior",
        drop_unused_rows: bool = False,
        rename_classes: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> ModelT:
        """Load a checkpoint of the official package: `.pth`, `.pt` or Lightning `.ckpt`, never as a free pickle.

        Variant, class names and resolution are taken from the file. All class rows are kept, so that logits are equal;
        a row without a class is called "N/A".

        Args:
            source: The file, or the dictionary that it holds.
            variant: Name of the variant, needed only where the file does not say.
            use_ema: Take the EMA weights that a training checkpoint holds beside its weights.
            class_init: As in `from_pretrained`.
            drop_unused_rows: Leave out the class rows that are called "N/A".
            rename_classes: As in `from_pretrained`.
            overrides: Fields of the configuration; the weights are adapted as in `from_pretrained`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for an unsafe, damaged or unknown file, or what cannot be adapted.
        """
        checkpoint = source if isinstance(source, OfficialCheckpoint) else read_official(source, use_ema)
        stored = official_config(checkpoint, variant)
        if drop_unused_rows:
            stored = without_unused_rows(checkpoint.state, stored)
        stored = renamed(stored, rename_classes or {}, checkpoint.origin)
        config = stored.with_fields(**overrides) if overrides else stored
        return cls._from_state(checkpoint.state, stored, config, checkpoint.origin, class_init, {})

    def save_official(self, path: str | Path) -> None:
        """Write a file that the official package loads (`RFDETR.from_checkpoint(path)`) and predicts with equally.

        A class head that does not end with an "N/A" row gets one more row, which the official layout has and which is
        never selected. The official package takes a bare file name for one of its own weights: give it a path.
        Adapters of `add_lora` are merged in the file.
        """
        state = plain_state(self, self.state_dict())
        require_finite(state, f"the model for {path}")
        torch.save(official_payload(self.config, state), path)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors`, see transformers. Adapters are merged in the file.

        Shards take the place of a single file of the same variant, and the other way round.

        Raises:
            ValueError: if a weight is NaN or infinite, the configuration cannot be read again or was changed in what
                the modules do not follow, weights are missing or do not fit it, or an adapter is none that
                `merge_adapters` merges; nothing is written.
        """
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"{save_directory} is a file: give a folder to save into.")
        self.config.validate()
        plain: Any = self
        if has_adapters(self):
            state_dict = plain_state(self, self.state_dict() if state_dict is None else state_dict)
            with torch.device("meta"):
                plain = type(self)(self.config)
            plain.to(self.dtype)
        if is_main_process:
            self.require_writable(f"the model for {save_directory}", state_dict)
        PreTrainedModel.save_pretrained(plain, save_directory, is_main_process, state_dict, *args, **kwargs)
        if is_main_process:
            single, index = (Path(save_directory) / name for name in _file_names(kwargs.get("variant")))
            # Transformers has removed its own shards that a single file replaces, and leaves those of other names.
            own = re.compile(re.escape(single.stem) + r"-\d{5}-of-\d{5}\.safetensors")
            are_written = _has_all_shards(index) and all(map(own.fullmatch, _shards(index)))
            (single if are_written else index).unlink(missing_ok=True)

    def require_writable(self, origin: str, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Check that weights and configuration are those of one model, which can be read again.

        Args:
            origin: What is written, for messages.
            state_dict: Tensors that are written in the place of the model's own.

        Raises:
            ValueError: naming the fields or tensors, or weights that are NaN or infinite.
        """
        state = plain_state(self, self.state_dict()) if state_dict is None else state_dict
        require_finite(state, origin)
        try:
            inspect.signature(type(self)).bind(self.config)
        except TypeError:  # a subclass that takes more than the configuration: its own tensors tell the shapes
            own = plain_state(self, self.state_dict())
            fresh = {official: own[name] for name, official in official_names(own).items()}
        else:
            with torch.device("meta"):
                fresh = type(self)(self.config).state_dict()
        named = {official: state[name] for name, official in official_names(state).items()}
        # Empty is a part of one that is spread over processes.
        state = {name: own if own.numel() else fresh.get(name, own) for name, own in named.items()}
        shapes, needed = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (state, fresh))
        require_own_config(self.made_with, self.config, shapes, needed, origin)
        require_loadable(state, needed, self.config, origin)

    def init_backbone_from(self, source: str | Path, **hub_options: Any) -> None:
        """Start the encoder from a DINOv2 of transformers, such as "facebook/dinov2-small", with registers or without.

        Patch kernels and position embeddings are resampled to the encoder's sizes.

        Args:
            source: Folder or Hub id.
            hub_options: `revision`, `token`, `cache_dir`, ...

        Raises:
            ValueError: if width or number of blocks differ, naming both sides, or a number is not finite.
        """
        config, prefix = self.config.backbone_config, "backbone.0.encoder.encoder."
        found = dinov2_to_encoder(read_state(source, **hub_options), config.patch_size, config.position_grid)
        own = {name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if name.startswith(prefix)}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        if shapes != expected:
            raise ValueError(
                f"{source} does not fit the encoder. Here: {_encoder_facts(expected)}. There: {_encoder_facts(shapes)}."
            )
        require_finite(found, str(source))
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(found[name])
        self.weights_from = f"{self.weights_from or 'random'}, encoder from {source}"
        logger.info("the encoder starts from %s, patches and positions resampled as needed", source)


def _encoder_facts(shapes: Mapping[str, tuple[int, ...]]) -> str:
    blocks = sum(name.endswith(".norm1.weight") for name in shapes)
    norm = shapes.get("backbone.0.encoder.encoder.layernorm.weight")
    mlp = "a GELU MLP" if any(name.endswith("mlp.fc1.weight") for name in shapes) else "no GELU MLP"
    return f"{blocks} blocks of width {norm[0]} with {mlp}" if norm else "no DINOv2 encoder"
