"""The options of a prediction."""

from dataclasses import dataclass

from ..choices import PREDICTION_FORMATS
from ..options import AT_MOST_1, BELOW_1, FROM_0, FROM_1, option, settle_options
from ..tasks import TASKS
from .launch import one_device
from .views import ViewArguments
from .words import answers_by_name


@answers_by_name
@dataclass
class PredictArguments(ViewArguments):
    """Which model, which images, what to write."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.", group="model", daily=True)
    images: list[str] = option(
        list, "Image files, video files, folders and patterns; with split one data set.", group="data", daily=True
    )
    output_dir: str = option(
        "predictions",
        "Folder for what is written, new or empty; where the default has files, predictions-2 and so on.",
        group="output",
        daily=True,
    )
    formats: list[str] = option(
        lambda: ["pictures"],
        "pictures with boxes; json, jsonl: predictions.json, predictions.jsonl, an entry or a line for each image; "
        "coco.json, a COCO data set; yolo/, a YOLO data set; crops/, a picture of each object by class.",
        PREDICTION_FORMATS,
        daily=True,
    )
    threshold: float = option(
        0.5,
        "Confidence threshold of what is drawn and written; t / (1 + t) for classes without keypoints of a keypoint "
        "model.",
        AT_MOST_1,
        daily=True,
    )
    thresholds: dict | str | None = option(
        None,
        "Confidence thresholds by class name (JSON, or thresholds.json of evaluate); other classes have threshold.",
        daily=True,
    )
    task: str | None = option(None, "What the model must be for; default: what it is for.", tuple(TASKS), group="model")
    keypoint_threshold: float = option(
        0.3, "Confidence threshold of keypoints in pictures and coco.json.", BELOW_1, group="output"
    )
    ellipses: float = option(0.0, "Draw covariance ellipses of keypoints, of so many standard deviations.", FROM_0)
    batch_size: int = option(8, "Images that the model sees at once.", FROM_1, group="system", daily=True)
    every: int = option(1, "Take each n-th frame of videos.", FROM_1, group="data")
    split: str | None = option(
        None, "The images are this split of a data set: a Hub id, a folder of tables or of save_to_disk.", group="data"
    )
    device: str | None = option(
        None, "cpu, cuda, or a GPU by number (1, cuda:1); default: cuda where there is one.", group="system", daily=True
    )
    bf16: bool = option(False, "Compute in bfloat16.", daily=True)
    overwrite: bool = option(False, "Write into a folder that has files, and replace them.", group="output", daily=True)
    max_image_pixels: int | None = option(
        None, "Most pixels of an image; default: Pillow's limit, 179 million.", FROM_1, group="data"
    )
    strict: bool = option(False, "Stop at the first file that cannot be read to its end, or on which the model fails.")

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_options(self)
        self.device = one_device(self.device)
