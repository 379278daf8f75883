"""The error that all of the data code raises, and the collector that puts several faults of one file into it."""

import re
from collections.abc import Iterable

from ..choices import counted
from ..options import without_secrets

# Pillow's name of a file that it has as bytes; the message names the file itself.
_ADDRESS = re.compile(r" ?<_io\.BytesIO object at 0x[0-9a-fA-F]+>")


class DetectionDataError(ValueError):
    """Data that cannot be used; the message names the file, the annotation or image, the field, the remedy.

    Secrets in addresses are left out of it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(_ADDRESS.sub("", str(message))))


class SplitMissingError(DetectionDataError):
    """A split that a source names, but whose images or annotations are not there; a test split may be left out."""


class Problems:
    """Faults found in one source, so that one error can tell of up to `LIMIT` of them at once.

    Args:
        source: the file or data set that the faults are in; starts the message.
        quiet: whether what is no fault is not warned of.
    """

    LIMIT = 10

    def __init__(self, source: str, quiet: bool = False) -> None:
        self.source = source
        self.quiet = quiet
        self.count = 0
        self._lines: list[str] = []
        self._remedies: dict[str, None] = {}

    def add(self, fault: str, remedy: str | None = None) -> None:
        """Note one fault, and what the user can do about it where the fault does not say so itself."""
        self.count += 1
        if len(self._lines) < self.LIMIT:
            self._lines.append(fault)
            if remedy is not None:
                self._remedies[remedy] = None

    def add_all(self, faults: Iterable[str], remedy: str) -> None:
        """Note several faults that have the same remedy."""
        for fault in faults:
            self.add(fault, remedy)

    def suggest(self, remedy: str) -> None:
        """Name one more remedy, for the faults together."""
        self._remedies[remedy] = None

    def raise_if_any(self) -> None:
        """Raise `DetectionDataError` when a fault was noted."""
        if not self.count:
            return
        lines = [f"{self.source}: {counted(self.count, 'problem')}", *(f"  - {line}" for line in self._lines)]
        if self.count > len(self._lines):
            lines.append(f"  - … and {self.count - len(self._lines)} more")
        if self._remedies:
            lines.append("To repair: " + "; ".join(self._remedies) + ".")
        raise DetectionDataError("\n".join(lines))
