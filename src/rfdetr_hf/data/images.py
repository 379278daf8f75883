"""Image files below a folder, and their names."""

import os
from collections.abc import Iterable
from pathlib import Path

# All that is trained on, and predicted on.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"}
)


class ImageFolder:
    """The image files below one folder, found by whatever name an annotation file gives them.

    A name may be a bare file name, a relative path with either slash, or an absolute path of another machine: then the
    last part decides, if it is unique in the folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.paths: dict[str, str] = {}
        self._by_name: dict[str, str | None] = {}
        for folder, _, names in os.walk(self.root, followlinks=True):
            prefix = os.path.relpath(folder, self.root).replace(os.sep, "/")
            for name in names:
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    relative = name if prefix == "." else f"{prefix}/{name}"
                    self.paths[relative] = os.path.join(folder, name)
                    self._by_name[name] = None if name in self._by_name else relative

    def find(self, file_name: str) -> str | None:
        """The path of a file, or None."""
        relative = os.path.normpath(file_name.replace("\\", "/")).replace(os.sep, "/")
        if relative in self.paths:
            return self.paths[relative]
        direct = os.path.join(self.root, relative)
        if os.path.isfile(direct):
            return direct
        by_name = self._by_name.get(relative.rsplit("/", 1)[-1])
        return self.paths[by_name] if by_name else None

    def unlisted(self, used: Iterable[str]) -> list[str]:
        """The files, relative to the folder, whose paths are not among `used`."""
        known = set(used)
        return sorted(relative for relative, path in self.paths.items() if path not in known)
