"""The options of `rfdetr-hf data preview`."""

from dataclasses import dataclass

from ..options import FROM_0, FROM_1, option, require_writable, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class PreviewArguments:
    """How many training images are drawn, and where."""

    output: str = option("preview.jpg", "The picture, JPEG or PNG.", group="output")
    overwrite: bool = option(False, "Replace an existing picture.")
    images: int = option(16, "Images to draw, four in a row.", FROM_1)
    preview_epoch: int = option(0, "Epoch to draw them from; counts from 0.", FROM_0)

    def __post_init__(self) -> None:
        settle_options(self)
        if not self.output.lower().endswith((".jpg", ".jpeg", ".png")):
            raise ValueError(f"output={self.output!r}: give a name that ends in .jpg or .png")

    def require_new(self) -> None:
        """Look whether the picture may be written, before anything is read.

        Raises:
            OSError: it exists, and overwrite is not given, or cannot be written.
        """
        require_writable(self.output, "output", self.overwrite)
