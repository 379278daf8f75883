"""The options of a prediction."""

from dataclasses import dataclass

from ..choices import PREDICTION_FORMATS
from ..options import BELOW_1, FROM_0, FROM_1, option, settle_options
from ..tasks import TASKS
from .views import ViewArguments


@dataclass
class PredictArguments(ViewArguments):
    """Which model, which images, what to write."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    images: list[str] = option(list, "Image files, video files, folders and patterns.")
    output_dir: str = option("predictions", "Folder for what is written; new or empty.")
    formats: list[str] = option(
        lambda: ["pictures"],
        "pictures, predictions.json (a list for each image), coco.json (a COCO data set).",
        PREDICTION_FORMATS,
    )
    threshold: float = option(
        0.5, "Least score of what is drawn and written; t / (1 + t) for classes without keypoints of a keypoint model."
    )
    thresholds: dict | str | None = option(
        None, "Least scores by class name (JSON, or thresholds.json of evaluate); other classes have threshold."
    )
    task: str | None = option(None, "What the model must be for; default: what it is for.", tuple(TASKS))
    keypoint_threshold: float = option(0.3, "Least confidence of keypoints in pictures and coco.json.", BELOW_1)
    ellipses: float = option(0.0, "Draw covariance ellipses of keypoints, of so many standard deviations.", FROM_0)
    batch_size: int = option(8, "Images that the model sees at once.", FROM_1)
    every: int = option(1, "Take each n-th frame of videos.", FROM_1)
    device: str | None = option(None, "Default: cuda where there is one.")
    bf16: bool = option(False, "Compute in bfloat16.")
    overwrite: bool = option(False, "Write into a folder that has files, and replace them.")
    strict: bool = option(False, "Stop at the first file that cannot be read, instead of leaving it out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_options(self)
