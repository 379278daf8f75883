"""Nested values as one safetensors file: the tensors as they are, their places and all other values as JSON."""

import json
from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .directory import CheckpointError

_TREE = "tree"
# Marks of what JSON has no form for.
_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def require_finite(tensors: Mapping[str, Tensor], what: object) -> None:
    """Check that no number is NaN or infinite; one wait for the device.

    Raises:
        CheckpointError: some are; the message names the first tensors that hold them.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floats or torch.stack([torch.isfinite(tensor).all() for tensor in floats.values()]).all():
        return
    broken = [name for name, tensor in floats.items() if not torch.isfinite(tensor).all()]
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    raise CheckpointError(f"{what}: NaN or infinite numbers in {', '.join(broken[:5])}{more}; nothing is made of them")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of finite numbers into host memory.

    Raises:
        CheckpointError: the file is missing, damaged, or holds NaN or infinite numbers.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    require_finite(tensors, path)
    return tensors


def save_tree(path: Path, tree: Any) -> None:
    """Write dicts, lists and tuples of numbers, texts, None and tensors.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(tree, tensors, ""))
    save_file(tensors, path, metadata={_TREE: structure})


def tree_of(path: Path, read: Callable[[], tuple[Mapping[str, str], Mapping[str, Tensor]]]) -> Any:
    """What `save_tree` wrote; tensors are in host memory.

    Args:
        path: of the file, for messages.
        read: gives its metadata and its tensors.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        metadata, tensors = read()
        return _decode(json.loads(metadata[_TREE]), tensors)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def to_json(tree: Any) -> Any:
    """A tree without tensors as values that JSON gives back equal, keys that are numbers and tuples too.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, tensors, "")
    for place in tensors:
        raise TypeError(f"{place} is a tensor, which this file cannot hold; keep it as a number or a list")
    return encoded


def from_json(value: Any) -> Any:
    """What was given to `to_json`."""
    return _decode(value, {})


def with_classes_of(own: Any, saved: Any) -> Any:
    """A saved state with the mappings of the present one at the same place: a `Counter` stays one, and its keys too.

    Args:
        own: the state of an object that is made like the saved one.
        saved: its saved state; keys of the files of earlier versions are texts.
    """
    if isinstance(own, MutableMapping) and isinstance(saved, Mapping):
        keys, made = {str(key): key for key in own}, copy(own)
        made.clear()
        for key, value in saved.items():
            key = key if key in own else keys.get(key, key)
            made[key] = with_classes_of(own.get(key), value)
        return made
    if isinstance(own, list) and isinstance(saved, list):
        return [with_classes_of(*pair) for pair in zip(own, saved, strict=True)] if len(own) == len(saved) else saved
    return saved


def _encode(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[place] = value.detach().clone().contiguous()
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        items = [[key, _encode(each, tensors, f"{place}/{key}")] for key, each in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("__") for key in value)
        return dict(items) if plain else {_ITEMS: items}
    if isinstance(value, (list, tuple)):
        values = [_encode(each, tensors, f"{place}/{i}") for i, each in enumerate(value)]
        return {_TUPLE: values} if isinstance(value, tuple) else values
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place or 'the value'} is a {type(value).__name__}, which no checkpoint can hold")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_decode(each, tensors) for each in value[_TUPLE])
    if _ITEMS in value:
        return {key: _decode(each, tensors) for key, each in value[_ITEMS]}
    return {key: _decode(each, tensors) for key, each in value.items()}
