"""The options of an evaluation."""

from dataclasses import dataclass

from ..choices import BACKENDS
from ..options import Range, option, require_writable, settle_options
from .launch import one_device
from .views import ViewArguments
from .words import answers_by_name


@answers_by_name
@dataclass(kw_only=True)
class TrainedModelArguments:
    """Which model, and where it runs."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.", group="model", daily=True)
    batch_size: int = option(8, "Images (or tiles) of a batch.", Range(1), group="system", daily=True)
    device: str | None = option(
        None, "cpu, cuda, or a GPU by number (1, cuda:1); default: cuda where there is one.", daily=True
    )
    bf16: bool = option(False, "Compute in bfloat16.", daily=True)

    def __post_init__(self) -> None:
        settle_options(self)
        self.device = one_device(self.device)


@answers_by_name
@dataclass(kw_only=True)
class EvaluateArguments(TrainedModelArguments, ViewArguments):
    """Which model, which split, how to look, where to write."""

    split: str = option("validation", "Split of the data set.", group="data", daily=True)
    output_dir: str | None = option(None, "Folder for the results; new or empty.", group="output", daily=True)
    report: bool = option(False, "Also curves, worst images and report.html.", daily=True)
    max_dets: int = option(100, "A limit of detections beside COCO's 100.", Range(1), group="evaluation")
    backend: str = option("auto", "Who computes the scores.", BACKENDS)

    def __post_init__(self) -> None:
        TrainedModelArguments.__post_init__(self)
        ViewArguments.__post_init__(self)
        if self.report and self.output_dir is None:
            raise ValueError("report needs output_dir, the folder that it is written to")


@answers_by_name
@dataclass(kw_only=True)
class EvaluationArguments(TrainedModelArguments):
    """Which model, where to write."""

    num_workers: int | None = option(
        None, "Processes that load images; default: one for each core, at most 8.", Range(0), daily=True
    )
    output: str | None = option(None, "A JSON file for the metrics; must not exist yet.", group="output", daily=True)

    def require_new(self) -> None:
        """Look whether the file of metrics may be written, before a model is fetched.

        Raises:
            OSError: it exists, or cannot be written.
        """
        if self.output:
            require_writable(self.output, "output")
