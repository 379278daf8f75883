"""The files of a checkpoint, each read once: what verifies it also keeps what is loaded from it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from .directory import CheckpointError, Value, checksum, read_json, verify_sizes
from .tree import read_tensors, require_finite, tree_of


class Opened(NamedTuple):
    """The contents of a safetensors file in host memory."""

    metadata: Mapping[str, str]
    tensors: dict[str, Tensor]


class CheckpointFiles:
    """Reads the files of a checkpoint when they are asked for.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._values: dict[str, Any] = {}
        self._opened: dict[str, Opened] = {}

    @classmethod
    def verified(cls, folder: Path, loaded: Callable[[str], bool], may_hold_nan: str) -> "CheckpointFiles":
        """Read every file that the manifest lists, and keep those that are loaded later in host memory.

        Args:
            folder: the checkpoint.
            loaded: whether a file is loaded later.
            may_hold_nan: a file whose numbers may be infinite or NaN.

        Raises:
            CheckpointError: a file is missing, has changed or cannot be read, or has NaN or infinite weights.
        """
        files = cls(folder)
        for name, entry in verify_sizes(folder).items():
            files._verify(name, entry["sha256"], loaded(name), name != may_hold_nan)
        return files

    def _verify(self, name: str, expected: str, is_loaded: bool, is_finite: bool) -> None:
        path = self.folder / name
        kept = is_loaded and path.suffix in (".json", ".safetensors")
        try:
            data = path.read_bytes() if kept else b""
            found = hashlib.sha256(data).hexdigest() if kept else checksum(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if found != expected:
            raise CheckpointError(f"{path} has changed since it was saved (SHA-256 differs).")
        if not kept:
            return
        try:
            if path.suffix == ".json":
                self._values[name] = json.loads(data)
            elif path.suffix == ".safetensors":
                tensors = load(data)
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                self._opened[name] = Opened(header.get("__metadata__") or {}, tensors)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error
        if name in self._opened and is_finite:
            require_finite(self._opened[name].tensors, path)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).exists()

    def value(self, name: str, kind: type[Value]) -> Value:
        """The value of a JSON file.

        Raises:
            CheckpointError: the file is missing or damaged, or holds a value of another type.
        """
        value = self._values.get(name)
        return value if isinstance(value, kind) else read_json(self.folder / name, kind)

    def take_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file; this object does not keep them any longer.

        Raises:
            CheckpointError: the file is missing or damaged, or holds NaN or infinite numbers.
        """
        kept = self._opened.pop(name, None)
        return read_tensors(self.folder / name) if kept is None else kept.tensors

    def tree(self, name: str) -> Any:
        """What `save_tree` wrote into a file.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
        """
        path = self.folder / name

        def read() -> tuple[Mapping[str, str], Mapping[str, Tensor]]:
            if name in self._opened:
                return self._opened[name]
            with safe_open(path, "pt") as file:
                return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}

        return tree_of(path, read)

    def header(self, name: str) -> tuple[Mapping[str, str], dict[str, int]]:
        """The metadata of a safetensors file, and the length of the first dimension of each of its tensors, by name.

        Raises:
            SafetensorError, OSError: it cannot be read.
        """
        if name in self._opened:
            opened = self._opened[name]
            return opened.metadata, {key: len(opened.tensors[key]) for key in sorted(opened.tensors)}
        with safe_open(self.folder / name, "pt") as file:
            return file.metadata() or {}, {key: file.get_slice(key).get_shape()[0] for key in sorted(file.keys())}

    def rows(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """The rows `start` to `stop` of a tensor of a safetensors file."""
        if name in self._opened:
            return self._opened[name].tensors[key][start:stop]
        with safe_open(self.folder / name, "pt") as file:
            return file.get_slice(key)[start:stop]
