"""The time line of a run: which checkpoints lead to where it stands.

A run that goes back to an earlier checkpoint begins a new segment. A checkpoint has the segments up to itself in its
manifest, the run directory has the present ones in `status.json`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimeLine:
    """Segments of a run.

    Attributes:
        segments: of each its id and the step it began at; the first id is that of the run.
    """

    segments: tuple[tuple[str, int], ...]

    @classmethod
    def begin(cls, step: int = 0) -> "TimeLine":
        """The time line of a new run, which may start from a checkpoint of another."""
        return cls(((uuid.uuid4().hex[:12], step),))

    def rewound(self, step: int) -> "TimeLine":
        """What follows when a run goes on from a checkpoint of this time line, and something later is left behind."""
        return TimeLine((*self.segments, (uuid.uuid4().hex[:12], step)))

    def same_run(self, other: "TimeLine") -> bool:
        """Whether both are of one run."""
        return self.segments[0][0] == other.segments[0][0]

    def leads_from(self, other: "TimeLine", step: int) -> bool:
        """Whether a checkpoint of a step, whose segments are the other's, is on the way to here."""
        count = len(other.segments)
        return self.segments[:count] == other.segments and all(step <= start for _, start in self.segments[count:])

    def parts_from(self, other: "TimeLine", step: int) -> int:
        """The last step, up to a given one, that is on the way of both."""
        pairs = zip(self.segments, other.segments, strict=False)
        shared = next(
            (i for i, (one, two) in enumerate(pairs) if one != two), min(len(self.segments), len(other.segments))
        )
        return min([step, *(line.segments[shared][1] for line in (self, other) if len(line.segments) > shared)])

    def to_json(self) -> list[list[Any]]:
        """The segments as lists."""
        return [list(segment) for segment in self.segments]

    @classmethod
    def from_json(cls, value: Any) -> "TimeLine | None":
        """What `to_json` gave; None for anything else, as of a checkpoint of an earlier version."""
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            return None
        try:
            return cls(tuple((str(name), int(start)) for name, start in value))
        except (TypeError, ValueError, OverflowError):
            return None
