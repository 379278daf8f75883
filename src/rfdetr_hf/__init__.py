"""Train RF-DETR on Transformers, Accelerate and Datasets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name comes from. Modules are imported when one of their names is first used.
PUBLIC_NAMES = {
    "models.configuration_rfdetr": ("RFDETRBackboneConfig", "RFDETRConfig"),
    "models.modeling_rfdetr": ("RFDETRForObjectDetection", "RFDETRObjectDetectionOutput", "RFDETRPreTrainedModel"),
    "models.segmentation": ("RFDETRForInstanceSegmentation", "RFDETRInstanceSegmentationOutput"),
    "models.keypoints": ("RFDETRForKeypointDetection", "RFDETRKeypointDetectionOutput"),
    "models.image_processing_rfdetr": ("RFDETRImageProcessor",),
    "models.files.auto": ("is_official", "load_model", "load_processor", "model_class"),
    "losses.criterion": ("RFDETRCriterion",),
    "losses.matcher": ("HungarianMatcher",),
    "data.sources": ("load_detection_dataset",),
    "data.synthetic": ("make_shapes_dataset",),
    "data.audit": ("audit_dataset",),
    "data.schema": ("category_ids", "class_names", "label_table"),
    "data.keypoints": ("KeypointSchema",),
    "data.images": ("decode_image",),
    "data.pipeline.augmentation": ("adapt_augmentation",),
    "training.trainer": ("RFDETRTrainer",),
    "training.parts": ("TrainerParts",),
    "training.arguments": ("DataArguments", "ModelArguments", "RFDETRTrainingArguments"),
    "training.callbacks": ("EarlyStopping",),
    "training.best": ("BestModel",),
    "training.ema": ("ExponentialMovingAverage",),
    "training.drop_path": ("DropPathSchedule",),
    "training.optimization": ("build_optimizer", "build_param_groups", "build_scheduler"),
    "training.multi_scale": ("compute_scales",),
    "training.finetuning": ("add_lora", "freeze_encoder_blocks", "load_class_rows", "load_parts", "merge_adapters", "part_of", "train_only"),
    "training.console": ("log_to_console",),
    "training.launching": ("resume_hint",),
    "evaluation.evaluator": ("CocoEvaluator",),
    "evaluation.run": ("evaluate_detector",),
    "evaluation.analysis": ("DetectionAnalysis",),
    "evaluation.by_image": ("predictions_by_image", "truth_by_image"),
    "inference.detector": ("ViewArguments", "load_detector", "with_views"),
    "inference.views": ("AugmentedDetector", "ImageDetector", "TiledDetector"),
    "inference.images": ("NamedImage", "find_images"),
    "inference.predict": ("PredictArguments", "predict"),
    "export.exporter": ("ExportReport", "export_model"),
    "drawing": ("DrawingStyle", "draw_detections"),
    "options": ("UsageError", "parse_arguments"),
    "tasks": ("TASKS", "Task"),
}
_MODULE_OF = {name: module for module, names in PUBLIC_NAMES.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:  # the same for editors and type checkers, which do not run the above
    from .data.audit import audit_dataset as audit_dataset
    from .data.images import decode_image as decode_image
    from .data.keypoints import KeypointSchema as KeypointSchema
    from .data.pipeline.augmentation import adapt_augmentation as adapt_augmentation
    from .data.schema import category_ids as category_ids, class_names as class_names, label_table as label_table
    from .data.sources import load_detection_dataset as load_detection_dataset
    from .data.synthetic import make_shapes_dataset as make_shapes_dataset
    from .drawing import DrawingStyle as DrawingStyle, draw_detections as draw_detections
    from .evaluation.analysis import DetectionAnalysis as DetectionAnalysis
    from .evaluation.by_image import predictions_by_image as predictions_by_image, truth_by_image as truth_by_image
    from .evaluation.evaluator import CocoEvaluator as CocoEvaluator
    from .evaluation.run import evaluate_detector as evaluate_detector
    from .export.exporter import ExportReport as ExportReport, export_model as export_model
    from .inference.detector import ViewArguments as ViewArguments, load_detector as load_detector, with_views as with_views
    from .inference.images import NamedImage as NamedImage, find_images as find_images
    from .inference.predict import PredictArguments as PredictArguments, predict as predict
    from .inference.views import AugmentedDetector as AugmentedDetector, ImageDetector as ImageDetector, TiledDetector as TiledDetector
    from .losses.criterion import RFDETRCriterion as RFDETRCriterion
    from .losses.matcher import HungarianMatcher as HungarianMatcher
    from .models.configuration_rfdetr import RFDETRBackboneConfig as RFDETRBackboneConfig, RFDETRConfig as RFDETRConfig
    from .models.files.auto import is_official as is_official, load_model as load_model, load_processor as load_processor, model_class as model_class
    from .models.image_processing_rfdetr import RFDETRImageProcessor as RFDETRImageProcessor
    from .models.keypoints import RFDETRForKeypointDetection as RFDETRForKeypointDetection, RFDETRKeypointDetectionOutput as RFDETRKeypointDetectionOutput
    from .models.modeling_rfdetr import RFDETRForObjectDetection as RFDETRForObjectDetection, RFDETRObjectDetectionOutput as RFDETRObjectDetectionOutput, RFDETRPreTrainedModel as RFDETRPreTrainedModel
    from .models.segmentation import RFDETRForInstanceSegmentation as RFDETRForInstanceSegmentation, RFDETRInstanceSegmentationOutput as RFDETRInstanceSegmentationOutput
    from .options import UsageError as UsageError, parse_arguments as parse_arguments
    from .tasks import TASKS as TASKS, Task as Task
    from .training.arguments import DataArguments as DataArguments, ModelArguments as ModelArguments, RFDETRTrainingArguments as RFDETRTrainingArguments
    from .training.best import BestModel as BestModel
    from .training.callbacks import EarlyStopping as EarlyStopping
    from .training.console import log_to_console as log_to_console
    from .training.drop_path import DropPathSchedule as DropPathSchedule
    from .training.ema import ExponentialMovingAverage as ExponentialMovingAverage
    from .training.finetuning import add_lora as add_lora, freeze_encoder_blocks as freeze_encoder_blocks, load_class_rows as load_class_rows, load_parts as load_parts, merge_adapters as merge_adapters, part_of as part_of, train_only as train_only
    from .training.launching import resume_hint as resume_hint
    from .training.multi_scale import compute_scales as compute_scales
    from .training.optimization import build_optimizer as build_optimizer, build_param_groups as build_param_groups, build_scheduler as build_scheduler
    from .training.parts import TrainerParts as TrainerParts
    from .training.trainer import RFDETRTrainer as RFDETRTrainer


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rfdetr_hf' has no attribute {name!r}")
    return getattr(import_module(f"rfdetr_hf.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
