"""Uploads of a run to the Hub, in the background, and checkpoints fetched from there."""

import json
import logging
import os
import queue
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainerCallback, TrainerControl, TrainerState

logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
LAST_CHECKPOINT, MANIFEST = "last-checkpoint", "manifest.json"
_RETRIED = (408, 429)
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w./-]+))?")
_CHECKPOINT_FILE = re.compile(r"(checkpoint-(\d+)|last-checkpoint)/manifest\.json")


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError if no repository of the Hub can have this name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"the Hub has no repository {repo_id!r} ({error}): set hub_model_id to user/name") from error


class _Upload(NamedTuple):
    folder: Path
    path_in_repo: str
    message: str
    source: Path


class HubUploader:
    """Uploads folders to one repository, one after the other, in a thread of its own.

    Folders are taken as they are when they are handed over (hard links, so it costs neither time nor space): the run
    may replace or delete them meanwhile. An upload that fails is tried again; one that fails for good is reported and
    kept in `failures`, and the run goes on. The thread ends with the process, so an interrupted run does not hang.

    Args:
        repo_id: "user/name", or "name" for a repository of the token's user; made when it does not exist.
        token: of the Hub; default: the one of the machine's login.
        private: whether a new repository is private; default: the account's setting.
        attempts: how often an upload is tried.
        delay: seconds before the second attempt, doubled for each further one.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        attempts: int = 4,
        delay: float = 2.0,
    ) -> None:
        self.repo_id = repo_id
        self.private = private
        self.attempts = attempts
        self.delay = delay
        self.failures: list[str] = []
        self._api = HfApi(token=token, library_name="rfdetr_hf")
        self._created = False
        self._queue: queue.Queue[_Upload] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._copies = 0

    def submit(self, folder: Path, message: str, path_in_repo: str = "", only: tuple[str, ...] | None = None) -> None:
        """Upload a folder in the background.

        Args:
            folder: what to upload, in a directory that this process may write to.
            message: of the commit.
            path_in_repo: where to put it; default: the root of the repository.
            only: names of the files to upload; default: all.
        """
        self._copies += 1
        # Trainers remove `.del-` directories when they start, so a killed run leaves nothing behind for long.
        copy = folder.with_name(f".del-push-{os.getpid()}-{self._copies}")
        _link_files(folder, copy, only)
        self._queue.put(_Upload(copy, path_in_repo, message, folder))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub-upload", daemon=True)
            self._thread.start()

    def drop_waiting(self) -> None:
        """Forget the uploads that have not begun; for those that the next one makes superfluous."""
        while True:
            try:
                upload = self._queue.get_nowait()
            except queue.Empty:
                return
            shutil.rmtree(upload.folder, ignore_errors=True)
            self._queue.task_done()

    def wait(self) -> None:
        """Return when everything that was submitted is uploaded or has failed for good."""
        if self._queue.unfinished_tasks:
            logger.info("waiting for uploads to %s", self.repo_id)
        self._queue.join()

    def push(self, folder: Path, message: str, path_in_repo: str = "") -> str:
        """Upload a folder now, after those that wait.

        Returns:
            The address of the commit.

        Raises:
            Exception: what the last attempt failed with.
        """
        self.wait()
        return self._try(lambda: self._upload(_Upload(folder, path_in_repo, message, folder)))

    def obstacle(self) -> str | None:
        """Why an upload would fail, as far as this machine knows; None where it may succeed."""
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        return None if self._api.token or get_token() else "there is no login (hf auth login)"

    def command(self, folder: Path, path_in_repo: str = "") -> str:
        """How to upload a folder by hand."""
        return shlex.join(["hf", "upload", self.repo_id, str(folder), *([path_in_repo] if path_in_repo else [])])

    def _work(self) -> None:
        while True:
            upload = self._queue.get()
            try:
                logger.info("uploaded %r: %s", upload.message, self._try(lambda item=upload: self._upload(item)))
            except Exception as error:  # noqa: BLE001 - whatever the network does, the training goes on
                self.failures.append(f"{upload.message}: {error}")
                logger.error(
                    "upload %r to %s failed, the run goes on: %s. The files are in %s; to upload them later: %s, or "
                    "trainer.push_to_hub() tries again",
                    upload.message, self.repo_id, error, upload.source,
                    self.command(upload.source, upload.path_in_repo),
                )  # fmt: skip
            finally:
                shutil.rmtree(upload.folder, ignore_errors=True)
                self._queue.task_done()

    def _upload(self, upload: _Upload) -> str:
        if (obstacle := self.obstacle()) is not None:
            raise PermissionError(obstacle)
        if not self._created:
            self.repo_id = self._api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
            self._created = True
        commit = self._api.upload_folder(
            repo_id=self.repo_id,
            folder_path=upload.folder,
            path_in_repo=upload.path_in_repo or None,
            commit_message=upload.message,
            # Of a model folder the manifest stays here; a checkpoint, which is resumed from, needs its own, and
            # none of the files of an earlier checkpoint in its place.
            ignore_patterns=None if upload.path_in_repo else [MANIFEST],
            delete_patterns="*" if upload.path_in_repo and (upload.folder / MANIFEST).is_file() else None,
        )
        return str(commit.commit_url)

    def _try(self, action: Callable[[], str]) -> str:
        delay = self.delay
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except Exception as error:
                if attempt == self.attempts or _is_final(error):
                    raise
                logger.warning(
                    "upload to %s, attempt %d of %d: %s; next in %.0f s",
                    self.repo_id, attempt, self.attempts, error, delay,
                )  # fmt: skip
                time.sleep(delay)
                delay *= 2
        raise AssertionError("attempts must be at least 1")


def _is_final(error: Exception) -> bool:
    """Whether another attempt would fail alike: the Hub has refused the request, or the model card."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _RETRIED
    return isinstance(error, (ValueError, PermissionError))


def _link_files(source: Path, target: Path, only: tuple[str, ...] | None) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir() or (only is not None and str(name) not in only):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target / name)
        except OSError:  # a file system without hard links
            shutil.copy2(path, target / name)


class HubCallback(TrainerCallback):
    """Uploads what a run saves, as `hub_strategy` says, from the main process.

    * "end": the model in memory at the end, from `best/` or `last/`.
    * "every_save": with each checkpoint also the best model so far, or the checkpoint's where none is chosen yet.
    * "checkpoint": "every_save", and the checkpoint as `last-checkpoint/`, from which any machine can resume.
    * "all_checkpoints": "every_save", and each checkpoint under its own name.

    Args:
        uploader: does the work.
        notify: called before each upload; the trainer fires `on_push_begin`.
        newest: gives the newest valid checkpoint of the run.

    Raises:
        ValueError: the repository cannot have this name.
    """

    def __init__(self, uploader: HubUploader, notify: Callable[[], None], newest: Callable[[], Path | None]) -> None:
        check_repo_id(uploader.repo_id)
        self.uploader = uploader
        self.notify = notify
        self.newest = newest

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        obstacle = self.uploader.obstacle()
        if obstacle is not None and state.is_world_process_zero:
            logger.warning(
                "push_to_hub: %s, so nothing can be uploaded to %s; the run keeps its files, and later: %s",
                obstacle, self.uploader.repo_id, self.uploader.command(Path(args.output_dir) / "best"),
            )  # fmt: skip

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.hub_strategy == "end" or not state.is_world_process_zero or self.uploader.obstacle() is not None:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        message = f"Training in progress, step {state.global_step}"
        self.notify()
        if args.hub_strategy != "all_checkpoints":
            self.uploader.drop_waiting()
        self._submit_model(state, checkpoint, message)
        if args.hub_strategy != "every_save":
            name = LAST_CHECKPOINT if args.hub_strategy == "checkpoint" else checkpoint.name
            self.uploader.submit(checkpoint, f"{message}, checkpoint", name)

    def _submit_model(self, state: TrainerState, checkpoint: Path, message: str) -> None:
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        if best is not None and best.is_dir():
            self.uploader.submit(best, message)
        else:
            self.uploader.submit(checkpoint, message, only=MODEL_FILES)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        folder = Path(best or Path(args.output_dir) / "last")
        self.notify()
        if args.hub_strategy != "all_checkpoints":
            self.uploader.drop_waiting()
        if args.hub_strategy == "checkpoint" and (newest := self.newest()) is not None:
            self.uploader.submit(newest, "End of training, checkpoint", LAST_CHECKPOINT)
        self.uploader.submit(folder, "End of training")
        self.uploader.wait()


def fetch_checkpoint(resume: bool | str | None, token: str | None = None) -> bool | str | None:
    """Download the checkpoint that `resume_from_checkpoint` names, if it names one on the Hub.

    Args:
        resume: "user/repo" for the newest of `last-checkpoint/` and `checkpoint-<step>/` in the repository, which is
            the last one of the time line that was saved last; "user/repo/checkpoint-<step>" for that one, each with
            "@revision" if need be. Anything else, a folder of that name in the first place, is returned unchanged.
        token: of the Hub, for a private repository.

    Returns:
        The folder of the download. Its files are yet to be verified against its manifest.

    Raises:
        FileNotFoundError: it is neither a folder nor on the Hub.
    """
    match = _HUB_NAME.fullmatch(resume) if isinstance(resume, str) else None
    if match is None or Path(match[0]).exists():
        return resume
    repo_id, folder, revision = match.groups()
    try:
        folder = folder or _newest_on_hub(repo_id, revision, token)
        root = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[f"{folder}/*"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"resume_from_checkpoint={resume!r} is no folder here, and cannot be fetched from the Hub: {error}"
        ) from error
    if not (Path(root) / folder).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: {repo_id} on the Hub has no folder {folder}")
    logger.info("checkpoint %s/%s is in %s", repo_id, folder, root)
    return str(Path(root) / folder)


def _newest_on_hub(repo_id: str, revision: str | None, token: str | None) -> str:
    files = HfApi(token=token).list_repo_files(repo_id, revision=revision)
    steps = {m[1]: int(m[2] or -1) for m in map(_CHECKPOINT_FILE.fullmatch, files) if m}
    if not steps:
        is_model = {"config.json", "model.safetensors"} <= set(files)
        remedy = f"it is a model: start a new run from its weights with model_name_or_path={repo_id}" if is_model else (
            "it would with hub_strategy 'checkpoint' or 'all_checkpoints'"
        )  # fmt: skip
        raise FileNotFoundError(f"{repo_id} holds no checkpoint; {remedy}")
    wanted = [f"{name}/{MANIFEST}" for name in steps]
    root = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=wanted)
    written: dict[str, tuple[int, Any]] = {}
    for name in steps:
        try:
            manifest = json.loads((Path(root) / name / MANIFEST).read_bytes())
            times = [int(entry["mtime_ns"]) for entry in manifest["files"].values()]
            written[name] = max(times), manifest.get("time_line")
            steps[name] = int(manifest["step"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            logger.info("%s/%s does not tell when it was saved (%r): its number counts", name, MANIFEST, error)
            written.setdefault(name, (-1, None))
    latest = max(steps, key=lambda name: (written[name][0], steps[name]))
    # Of the time line that was written last, the last step: clocks of machines differ a little.
    return max((name for name in steps if written[name][1] == written[latest][1]), key=steps.__getitem__)
