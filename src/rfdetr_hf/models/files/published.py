"""Which checkpoint a name means, and what to do where the Hub does not give it."""

import difflib
import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, try_to_load_from_cache
from huggingface_hub.utils import get_session, validate_repo_id

from ...choices import VARIANTS, is_official

logger = logging.getLogger(__name__)

_NOT_ON_HUB = ("large-deprecated", "keypoint-preview")
_ON_HUB = {name: f"Roboflow/rf-detr-{name}" for name in VARIANTS if name not in _NOT_ON_HUB}
_ON_HUB["seg-2xlarge"] = "Roboflow/rf-detr-seg-xxlarge"
_FILES = {
    "large": "rf-detr-large-2026.pth", "large-deprecated": "rf-detr-large.pth",
    "keypoint-preview": "rf-detr-keypoint-preview-xlarge.pth", "seg-2xlarge": "rf-detr-seg-xxlarge.pt",
}  # fmt: skip
_PREFIX = re.compile(r"^(roboflow/)?rf[-_]?detr[-_]?", re.IGNORECASE)
_SECONDS = 10.0  # for an answer


class CheckpointUnavailable(FileNotFoundError):
    """A checkpoint is not here, and the Hub does not give it; the message says why and how to go on.

    Args:
        reason: why, as a sentence without its full stop.
        source: a variant or a Hub id, of which `ways_on` tells; None where nothing can be told.
        trains: whether random weights would do, as for a training.
    """

    def __init__(self, reason: str, source: str | None = None, trains: bool = True) -> None:
        super().__init__(reason if source is None else f"{reason}. {ways_on(source, trains)}")
        self.reason, self.source = reason, source

    def for_use(self) -> "CheckpointUnavailable":
        """The same error for whoever wants to use a model, not to train one."""
        return CheckpointUnavailable(self.reason, self.source, trains=False)


def published_id(variant: str) -> str | None:
    """The repository of a variant's published checkpoint on the Hub, None where there is none."""
    return _ON_HUB.get(variant)


def official_file(variant: str) -> str:
    """The name of a variant's published checkpoint as a file of the official package."""
    return _FILES.get(variant, f"rf-detr-{variant}.{'pt' if variant.startswith('seg-') else 'pth'}")


def checkpoint_of(source: Any) -> Any:
    """What a name stands for: of a variant, such as "nano", its published checkpoint; others stand for themselves.

    A folder with the name of a variant wins if it is a model folder; the log says which of them is taken.

    Raises:
        CheckpointUnavailable: the variant has no checkpoint on the Hub.
    """
    if not isinstance(source, str) or source not in VARIANTS:
        return source
    found = published_id(source)
    if (Path(source) / "config.json").is_file():
        _say_once(f"{source!r} is the folder {Path(source).resolve()} here, not the published {found or 'checkpoint'}")
        return source
    if found is None:
        raise CheckpointUnavailable(f"the variant {source} has no checkpoint on the Hub", source)
    if Path(source).exists():
        _say_once(f"{source!r} is {found} on the Hub: {Path(source).resolve()} has no config.json")
    return found


@functools.cache
def _say_once(text: str) -> None:
    logger.warning(text)


def ways_on(source: str, trains: bool = True) -> str:
    """How to go on without a checkpoint of the Hub, as a sentence.

    Args:
        source: a variant or a Hub id.
        trains: whether random weights are a way.
    """
    variant = next((name for name, found in _ON_HUB.items() if found == source), source)
    variant = variant if variant in VARIANTS else "nano"
    folder, file = "a model folder (config.json and model.safetensors)", "a file of the official package such as"
    if not trains:
        return f"Give {folder} or {file} {official_file(variant)}"
    return (
        f"Go on with {folder}, with {file} {official_file(variant)}, or to train with random weights: --from_scratch "
        f"--model {variant}, in Python <class of the model>(RFDETRConfig.from_variant({variant!r}, ...))"
    )


def require_hub(source: str, name: str, hub_options: Mapping[str, Any]) -> None:
    """Ask once whether the Hub answers, before a client that repeats its questions for half a minute.

    Args:
        source: a Hub id.
        name: of a file; one in the cache needs no Hub.
        hub_options: of the download.

    Raises:
        CheckpointUnavailable: the name has one word, and no model on the Hub has.
        Exception: of the HTTP client, when nothing answers.
    """
    place = {key: hub_options.get(key) for key in ("cache_dir", "revision")}
    if not is_hub_name(source) or isinstance(try_to_load_from_cache(source, name, **place), str):
        return
    if "/" not in source and not is_official(source):
        near = _meant(source)
        raise CheckpointUnavailable(
            f"{source}: there is no such folder here, and no variant has this name{_question(near)}. The variants are "
            f"{', '.join(VARIANTS)}",
            near or source,
        )
    if constants.HF_HUB_OFFLINE or hub_options.get("local_files_only"):
        return
    get_session().head(constants.ENDPOINT, timeout=_SECONDS)


def unavailable(source: str, error: BaseException) -> CheckpointUnavailable:
    """The error to raise where a checkpoint cannot be had from the Hub.

    Args:
        source: a Hub id.
        error: of transformers or huggingface_hub.
    """
    if not is_hub_name(source) or is_official(source):
        return CheckpointUnavailable(f"{source} does not exist")
    folder = "" if source.startswith("Roboflow/") else "there is no such folder here, and "
    question = _question(_meant(source)) if _PREFIX.match(source) and source not in _ON_HUB.values() else ""
    reason = f"{folder}{_reason(source, error)}{question}"
    return CheckpointUnavailable(f"{source} cannot be loaded: {reason}", source)


def _meant(source: str) -> str | None:
    """The variant whose name is next to a wrong one."""
    names = {name: name for name in VARIANTS} | {_PREFIX.sub("", found): name for name, found in _ON_HUB.items()}
    near = difflib.get_close_matches(_PREFIX.sub("", source).lower().replace("_", "-"), names, n=1)
    return names[near[0]] if near else None


def _question(variant: str | None) -> str:
    return f" (did you mean {variant!r}?)" if variant else ""


def _reason(source: str, error: BaseException) -> str:
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache of the Hub, and HF_HUB_OFFLINE forbids to ask the Hub"
    cause: BaseException = error
    while True:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.GatedRepoError) or status == 403:
            return (
                f"the Hub gives it to those alone who have accepted its terms (HTTP {status}); accept them at "
                f"https://huggingface.co/{source} and log in with `hf auth login`"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return "the repository has no such revision"
        if isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 404):
            return (
                f"the Hub knows no such repository or keeps it private (HTTP {status}); for a private one log "
                "in with `hf auth login`"
            )
        if status is not None:
            return f"the Hub answers with HTTP {status}"
        if cause.__cause__ is None:
            line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            return f"the connection to {constants.ENDPOINT} failed ({line}); a broken download goes on next time"
        cause = cause.__cause__


def is_hub_name(source: str) -> bool:
    """Whether a text has the form of a Hub id."""
    try:
        validate_repo_id(source)
    except errors.HFValidationError:
        return False
    return True
