"""Train RF-DETR on Transformers, Accelerate and Datasets."""
# ruff: noqa: I001 - the imports below are aliases, by which type checkers know public names

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name comes from; modules are imported when one of their names is first used.
PUBLIC_NAMES = {
    "models.configuration_rfdetr": ("RFDETRBackboneConfig", "RFDETRConfig"),
    "models.modeling_rfdetr": ("RFDETRForObjectDetection", "RFDETRObjectDetectionOutput"),
    "models.files.pretrained": ("RFDETRPreTrainedModel",),
    "models.segmentation": ("RFDETRForInstanceSegmentation", "RFDETRInstanceSegmentationOutput"),
    "models.keypoints": ("RFDETRForKeypointDetection", "RFDETRKeypointDetectionOutput"),
    "models.image_processing_rfdetr": ("RFDETRImageProcessor",),
    "models.adapters": ("add_lora", "merge_adapters"),
    "models.files.auto": ("load_model", "load_processor", "model_class"),
    "losses.criterion": ("RFDETRCriterion",),
    "losses.matcher": ("HungarianMatcher",),
    "data.sources": ("load_detection_dataset",),
    "data.shards.writer": ("convert_dataset",),
    "data.synthetic": ("make_shapes_dataset",),
    "data.audit": ("audit_dataset",),
    "data.schema": ("category_ids", "class_names", "label_table"),
    "data.keypoints": ("KeypointSchema",),
    "data.pipeline.pixels": ("decode_image",),
    "data.pipeline.user_augmentation": ("adapt_augmentation",),
    "training.trainer": ("RFDETRTrainer",),
    "arguments.training": ("RFDETRTrainingArguments",),
    "arguments.model": ("ModelArguments",),
    "arguments.data": ("DataArguments",),
    "arguments.evaluate": ("EvaluateArguments", "EvaluationArguments", "TrainedModelArguments"),
    "arguments.predict": ("PredictArguments",),
    "arguments.views": ("ViewArguments",),
    "arguments.demo": ("DemoArguments",),
    "arguments.export": ("ExportArguments",),
    "arguments.convert": ("ConvertArguments",),
    "arguments.data_convert": ("DataConvertArguments",),
    "arguments.preview": ("PreviewArguments",),
    "arguments.audit": ("AuditArguments",),
    "data.findings": ("audit_data", "notes_of_reading"),
    "evaluation.audit_page": ("write_audit_page",),
    "arguments.status": ("StatusArguments",),
    "arguments.launch": ("LaunchArguments",),
    "arguments.words": ("explain_verb",),
    "arguments.command_line": ("parse_arguments", "read_options", "to_words"),
    "training.callbacks": ("EarlyStopping",),
    "training.best": ("BestModel",),
    "training.ema": ("ExponentialMovingAverage",),
    "training.drop_path": ("DropPathSchedule",),
    "training.optimization": ("build_optimizer", "build_param_groups", "build_scheduler"),
    "training.multi_scale": ("compute_scales",),
    "training.finetuning": (
        "freeze_encoder_blocks", "load_class_rows", "load_parts", "part_of", "train_only",
    ),
    "training.console": ("log_to_console",),
    "training.launching": ("check_run_directory", "resume_hint"),
    "training.preview": ("draw_preview",),
    "training.parent": ("end_with_launcher",),
    "training.processes": ("run_processes",),
    "training.status": ("STATUS_EXIT_CODES", "read_status", "status_line"),
    "evaluation.evaluator": ("CocoEvaluator",),
    "choices": ("BACKENDS", "install_hint", "is_official"),
    "evaluation.run": ("DetectorEvaluation", "check_output", "evaluate_detector"),
    "evaluation.analysis": ("DetectionAnalysis",),
    "evaluation.by_image": ("predictions_by_image", "truth_by_image"),
    "inference.detector": ("ImageDetector", "load_detector"),
    "inference.views": ("AugmentedDetector", "TiledDetector", "with_views"),
    "inference.images": ("NamedImage", "find_images"),
    "inference.predict": ("predict",),
    "inference.demo": ("build_demo",),
    "hub.space": ("push_space", "write_space"),
    "export.exporter": ("ExportReport", "export_model"),
    "drawing": ("DrawingStyle", "draw_detections"),
    "options": ("Range", "UsageError", "message_text", "option", "settle_options", "to_yaml"),
    "tasks": ("TASKS", "Task", "TaskName"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in PUBLIC_NAMES.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:  # the same for editors and type checkers, which read and do not run
    from .models.configuration_rfdetr import RFDETRBackboneConfig as RFDETRBackboneConfig, RFDETRConfig as RFDETRConfig
    from .models.modeling_rfdetr import RFDETRForObjectDetection as RFDETRForObjectDetection
    from .models.modeling_rfdetr import RFDETRObjectDetectionOutput as RFDETRObjectDetectionOutput
    from .models.files.pretrained import RFDETRPreTrainedModel as RFDETRPreTrainedModel
    from .models.segmentation import RFDETRForInstanceSegmentation as RFDETRForInstanceSegmentation
    from .models.segmentation import RFDETRInstanceSegmentationOutput as RFDETRInstanceSegmentationOutput
    from .models.keypoints import RFDETRForKeypointDetection as RFDETRForKeypointDetection
    from .models.keypoints import RFDETRKeypointDetectionOutput as RFDETRKeypointDetectionOutput
    from .models.image_processing_rfdetr import RFDETRImageProcessor as RFDETRImageProcessor
    from .models.adapters import add_lora as add_lora, merge_adapters as merge_adapters
    from .models.files.auto import load_model as load_model, load_processor as load_processor
    from .models.files.auto import model_class as model_class
    from .losses.criterion import RFDETRCriterion as RFDETRCriterion
    from .losses.matcher import HungarianMatcher as HungarianMatcher
    from .data.sources import load_detection_dataset as load_detection_dataset
    from .data.shards.writer import convert_dataset as convert_dataset
    from .data.synthetic import make_shapes_dataset as make_shapes_dataset
    from .data.audit import audit_dataset as audit_dataset
    from .data.schema import category_ids as category_ids, class_names as class_names, label_table as label_table
    from .data.keypoints import KeypointSchema as KeypointSchema
    from .data.pipeline.pixels import decode_image as decode_image
    from .data.pipeline.user_augmentation import adapt_augmentation as adapt_augmentation
    from .training.trainer import RFDETRTrainer as RFDETRTrainer
    from .arguments.training import RFDETRTrainingArguments as RFDETRTrainingArguments
    from .arguments.model import ModelArguments as ModelArguments
    from .arguments.data import DataArguments as DataArguments
    from .arguments.evaluate import EvaluateArguments as EvaluateArguments, EvaluationArguments as EvaluationArguments
    from .arguments.evaluate import TrainedModelArguments as TrainedModelArguments
    from .arguments.predict import PredictArguments as PredictArguments
    from .arguments.views import ViewArguments as ViewArguments
    from .arguments.demo import DemoArguments as DemoArguments
    from .arguments.export import ExportArguments as ExportArguments
    from .arguments.convert import ConvertArguments as ConvertArguments
    from .arguments.data_convert import DataConvertArguments as DataConvertArguments
    from .arguments.preview import PreviewArguments as PreviewArguments
    from .arguments.audit import AuditArguments as AuditArguments
    from .data.findings import audit_data as audit_data
    from .data.findings import notes_of_reading as notes_of_reading
    from .evaluation.audit_page import write_audit_page as write_audit_page
    from .arguments.status import StatusArguments as StatusArguments
    from .arguments.launch import LaunchArguments as LaunchArguments
    from .arguments.words import explain_verb as explain_verb
    from .arguments.command_line import parse_arguments as parse_arguments, read_options as read_options
    from .arguments.command_line import to_words as to_words
    from .training.callbacks import EarlyStopping as EarlyStopping
    from .training.best import BestModel as BestModel
    from .training.ema import ExponentialMovingAverage as ExponentialMovingAverage
    from .training.drop_path import DropPathSchedule as DropPathSchedule
    from .training.optimization import build_optimizer as build_optimizer, build_param_groups as build_param_groups
    from .training.optimization import build_scheduler as build_scheduler
    from .training.multi_scale import compute_scales as compute_scales
    from .training.finetuning import freeze_encoder_blocks as freeze_encoder_blocks
    from .training.finetuning import load_class_rows as load_class_rows, load_parts as load_parts
    from .training.finetuning import part_of as part_of, train_only as train_only
    from .training.console import log_to_console as log_to_console
    from .training.launching import check_run_directory as check_run_directory, resume_hint as resume_hint
    from .training.preview import draw_preview as draw_preview
    from .training.parent import end_with_launcher as end_with_launcher
    from .training.processes import run_processes as run_processes
    from .training.status import STATUS_EXIT_CODES as STATUS_EXIT_CODES, read_status as read_status
    from .training.status import status_line as status_line
    from .evaluation.evaluator import CocoEvaluator as CocoEvaluator
    from .choices import BACKENDS as BACKENDS, install_hint as install_hint, is_official as is_official
    from .evaluation.run import DetectorEvaluation as DetectorEvaluation, check_output as check_output
    from .evaluation.run import evaluate_detector as evaluate_detector
    from .evaluation.analysis import DetectionAnalysis as DetectionAnalysis
    from .evaluation.by_image import predictions_by_image as predictions_by_image, truth_by_image as truth_by_image
    from .inference.detector import ImageDetector as ImageDetector, load_detector as load_detector
    from .inference.views import AugmentedDetector as AugmentedDetector, TiledDetector as TiledDetector
    from .inference.views import with_views as with_views
    from .inference.images import NamedImage as NamedImage, find_images as find_images
    from .inference.predict import predict as predict
    from .inference.demo import build_demo as build_demo
    from .hub.space import push_space as push_space, write_space as write_space
    from .export.exporter import ExportReport as ExportReport, export_model as export_model
    from .drawing import DrawingStyle as DrawingStyle, draw_detections as draw_detections
    from .options import Range as Range, UsageError as UsageError, message_text as message_text, option as option
    from .options import settle_options as settle_options, to_yaml as to_yaml
    from .tasks import TASKS as TASKS, Task as Task, TaskName as TaskName


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rfdetr_hf' has no attribute {name!r}")
    return getattr(import_module(f"rfdetr_hf.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
