"""The words that options choose among, and how a model is recognised by its name; plain Python alone."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

# The published variants; their rows are in models/configuration_rfdetr.py.
VARIANTS = (
    "nano", "small", "medium", "base", "large", "large-deprecated", "seg-preview", "seg-nano", "seg-small",
    "seg-medium", "seg-large", "seg-xlarge", "seg-2xlarge", "keypoint-preview",
)  # fmt: skip
OFFICIAL_SUFFIXES = (".pth", ".pt", ".ckpt")
# What becomes of class rows when a model gets other classes.
CLASS_INITS = ("prior", "tile", "new")
BoxFormat = Literal[
    "xywh", "xyxy", "cxcywh", "xywhn", "xyxyn", "cxcywhn", "yxhw", "yxyx", "cycxhw", "yxhwn", "yxyxn", "cycxhwn"
]  # fmt: skip
BOX_FORMATS: tuple[str, ...] = get_args(BoxFormat)
# How often training images are drawn, where not each once.
Sampling = Literal["repeat_factor", "class_balanced"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
OWN_SCHEDULES = ("constant", "step", "cosine")
# Those of transformers that need a metric, which no schedule here gets.
METRIC_DRIVEN_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = (
    *OWN_SCHEDULES, "linear", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
DROP_PATH_MODES = ("standard", "early", "late")
DROP_PATH_SCHEDULES = ("constant", "linear")
MULTI_SCALE_MODES = ("per_batch", "per_sample", "off")
PARAM_GROUPS = ("default", "official")
RECIPES = ("default", "official")
PRECISIONS = ("auto", "no", "bf16", "fp16")
AUDITS = ("full", "headers", "off")
# Presets of augmentation; what they hold: data/pipeline/presets.py.
AUGMENTATIONS = ("none", "default", "conservative", "aggressive", "aerial", "industrial")
# When something happens, as transformers names it (IntervalStrategy, SaveStrategy).
INTERVALS = ("no", "steps", "epoch")
SAVES = (*INTERVALS, "best")
HUB_STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
# Who computes COCO's scores.
BACKENDS = ("pycocotools", "ultrafast", "auto")
PREDICTION_FORMATS = ("pictures", "json", "jsonl", "coco", "yolo", "crops")
# Who reads JPEG files; the first one reads all others too.
IMAGE_DECODERS = ("pillow", "simplejpeg")
# Where decoded pictures are kept.
PICTURE_CACHES = ("none", "ram", "disk")
PICTURE_CACHE = "~/.cache/rfdetr_hf/pictures"
SHARD_CACHE = "~/.cache/rfdetr_hf/shards"
DATA_FORMATS = ("parquet", "webdataset", "folder")
# With the suffix of their files.
EXPORT_FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


def is_official(source: str | Path) -> bool:
    """Whether `source` is named like a file of the official package (`.pth`, `.pt`, `.ckpt`, in any case)."""
    return Path(source).suffix.lower() in OFFICIAL_SUFFIXES


def install_hint(extra: str) -> str:
    """How to install an extra; while there is no release, that is from a clone."""
    return f"install the extra {extra!r}: python -m pip install -e '.[{extra}]' in the clone of rfdetr_hf"


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """A text for a line of a log or a page, with a sign for each line break and terminal code in it."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


_VERBS = {"is": "are", "has": "have", "was": "were", "reaches": "reach"}


def counted(number: float, noun: str, verb: str = "") -> str:
    """A number with its noun, and a verb that agrees: "1 box", "2 boxes", "2 pictures have", "1.5 epochs"."""
    if number != 1:
        verb = _VERBS.get(verb, verb.removesuffix("s"))
        if noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch"):
            noun += "es"
        else:
            noun = f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"
    return f"{f'{number:g}' if isinstance(number, float) else number} {noun} {verb}".rstrip()


def plain_name(name: str) -> str:
    """What is left of the name of a class without its case and blanks."""
    return "".join(name.split()).casefold()


def names_alike(names: Iterable[str], kind: Callable[[str], str] = plain_name) -> list[str]:
    """The first names that `kind` makes equal, [] where it makes none so; equal names count once."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(kind(name), []).append(name)
    return next((each for each in alike.values() if len(each) > 1), [])
