"""In which number format the forward pass of a run computes: weights, box geometry, losses and EMA stay float32."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..arguments.training import RFDETRTrainingArguments
from .checkpoint.contents import PROGRESS, read_content
from .checkpoint.reading import CheckpointFiles

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(args: RFDETRTrainingArguments) -> bool:
    """Write what the arguments, the launcher and the device decide into `mixed_precision`, `bf16` and `fp16`.

    Explicit arguments come first, then bf16 or fp16 of the launcher, then the device. "no" of the launcher is what it
    says without a word of the user, so it decides nothing.

    Args:
        args: of a run, changed in place.

    Returns:
        Whether the device decided.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    asked = args.precision_asked
    if asked is not None:
        if launched not in ("no", asked):
            logger.warning("mixed_precision: %s of the arguments wins over %s of the launcher", asked, launched)
        args.use_precision(asked)
    else:
        args.use_precision(_of_the_device(_device()) if launched == "no" else launched)
    return asked is None and launched == "no"


def keep_precision(args: RFDETRTrainingArguments, checkpoint: Path, device: torch.device) -> bool:
    """Take up the precision of a checkpoint, which this device would not have chosen.

    Args:
        args: of the run that goes on, settled by the device; changed in place.
        checkpoint: its folder.
        device: of this process.

    Returns:
        Whether it is another one.
    """
    written = read_content(CheckpointFiles(checkpoint), PROGRESS)["arguments"]
    before = "bf16" if written.get("bf16") else "fp16" if written.get("fp16") else "no"
    now = args.mixed_precision
    if before == now:
        return False
    if before == "fp16" and device.type == "cpu":
        logger.warning("mixed_precision: the run was in fp16, which a CPU does not have; it goes on in float32")
        return False
    names = (_name(before), _name(now))
    logger.warning("mixed_precision: the run goes on in %s, as it began; on this device auto would take %s", *names)
    args.use_precision(before)
    return True


def _of_the_device(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "no" if is_set("ACCELERATE_USE_DEEPSPEED") else "fp16"  # under DeepSpeed it is refused
    return "bf16" if device.type in ("cuda", "xpu") else "no"


def _device() -> torch.device:
    """Where Accelerate will put this process, which has no state yet when its precision is chosen."""
    if PartialState._shared_state:
        device: Any = PartialState().device
        return device
    if named := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        return torch.device(named)
    found = None if is_set("ACCELERATE_USE_CPU") else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def is_set(variable: str) -> bool:
    """Whether a variable of the launcher's environment says yes."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def _name(precision: str) -> str:
    return "float32" if precision == "no" else precision
