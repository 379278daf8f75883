"""The options of how a model looks at images."""

from dataclasses import dataclass

from ..options import option

LEAST_TILE, LARGEST_OVERLAP = 32, 0.9


@dataclass(kw_only=True)
class ViewArguments:
    """How a model looks at images.

    Raises:
        ValueError: for a value out of its range.
    """

    flip: bool = option(False, "Fuse the boxes with those of the mirrored image.", group="views")
    scales: list[float] = option(lambda: [1.0], "Fuse the boxes of these input sizes: 0.75 1 1.5, say.")
    tile: int = option(0, "Side of the tiles of large images in pixels; 0: no tiles.")
    tile_overlap: float = option(0.2, "Share of a tile that its neighbour covers too.")

    def __post_init__(self) -> None:
        self.scales = [float(scale) for scale in self.scales]
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales} is not valid: give one or more positive numbers")
        if self.tile and self.tile < LEAST_TILE:
            raise ValueError(f"tile={self.tile} is not valid: it must be {LEAST_TILE} or more, or 0 for no tiles")
        if not 0 <= self.tile_overlap <= LARGEST_OVERLAP:
            raise ValueError(f"tile_overlap={self.tile_overlap} is not valid: it must be in [0, {LARGEST_OVERLAP}]")

    @property
    def fuses(self) -> bool:
        """Whether boxes of several views are fused."""
        return self.flip or self.scales != [1.0]

    def check_task(self, task: str) -> None:
        """Whether a model for `task` ("detection", "segmentation", "keypoints") can look so.

        Raises:
            ValueError: views and tiles merge boxes alone, and the model gives more.
        """
        given = {"flip": self.flip, "scales": self.scales != [1.0], "tile": bool(self.tile)}
        asked = ", ".join(f"--{name}" for name, is_given in given.items() if is_given)
        if asked and task != "detection":
            extra = "masks" if task == "segmentation" else "keypoints"
            raise ValueError(f"{asked}: only boxes are merged, and this model gives {extra}; leave it out")
