"""How the weights of a trainer are evaluated: the methods of `RFDETRTrainer` for it."""

import math
import time
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from ..arguments.training import RFDETRTrainingArguments
from ..data.rows import check_rows
from ..data.shards.dataset import ShardedDataset
from ..evaluation.run import compare_keypoints, joined_scores
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from .checks import check_kinds, check_split
from .compatibility import TransformersMethods
from .loaders import build_eval_loader
from .meters import EvalLossMeter, speeds
from .parallel import Parallel
from .preemption import PreemptionNotice
from .validation import Found, PredictionOutput, Validation
from .waiting import Batches


class EvaluationMethods(TransformersMethods):
    """`evaluate`, `predict` and the loader of their images."""

    args: RFDETRTrainingArguments
    eval_dataset: Dataset | Mapping[str, Dataset] | None
    model: RFDETRForObjectDetection
    splits: dict[str, Dataset]
    parallel: Parallel
    preemption: PreemptionNotice
    validation: Validation
    to_device: Callable[..., dict[str, Any]]
    log: Callable[[dict[str, float]], None]
    _in_training: bool
    _settle: Callable[[], None]

    def get_eval_dataloader(self, dataset: Dataset | str | None = None) -> DataLoader:
        """This rank's share of a data set, every image once over all ranks.

        Args:
            dataset: or the name of one, where several were given at construction; default: the one of construction.
        """
        if isinstance(dataset, str) and isinstance(self.eval_dataset, Mapping):
            dataset = self.eval_dataset.get(dataset, dataset)
        dataset = self.splits.get("eval_dataset") if dataset is None else dataset
        if not isinstance(dataset, (Dataset, ShardedDataset)):
            names = list(self.eval_dataset) if isinstance(self.eval_dataset, Mapping) else []
            remedy = f"give one of {', '.join(map(repr, names))}" if names else "give one, here or at construction"
            raise ValueError(f"get_eval_dataloader() needs a data set, and {dataset!r} is none; {remedy}")
        return build_eval_loader(dataset, self.args, self.model.config, self.image_processor, self.accelerator)

    def evaluate(
        self, eval_dataset: Dataset | Mapping[str, Dataset] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """COCO metrics: `eval_map`, the AP at IoU .50:.95 (101 recall points, at most 100 detections), `eval_map_50`, …

        During a training they are those of the EMA weights if the run has them; with `eval_raw_weights` those of the
        raw weights follow as `eval_raw_map`, …. Outside of training they are those of the model in memory.

        Args:
            eval_dataset: default: the one given at construction. Of several, each has its name behind the prefix.
            metric_key_prefix: first part of each name.
        """
        self._settle()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or (isinstance(dataset, Mapping) and not dataset):
            raise ValueError("evaluate() needs an eval_dataset, here or at construction")
        if isinstance(dataset, Mapping):
            parts = [self.evaluate(each, f"{metric_key_prefix}_{name}") for name, each in dataset.items()]
            return reduce(joined_scores, parts)
        self._follow_arguments()
        check_kinds(self.model, self.args, {"eval_dataset": dataset}, None)
        self._check_given(metric_key_prefix, dataset)
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        prefixes = self.args.evaluated_prefixes if self._in_training else ("",)
        for prefix in prefixes:
            folder, averaged = None, self._in_training and self.args.use_ema and not prefix
            if self._in_training:
                step = str(self.state.global_step)
                folder = self.directory.root / metric_key_prefix / step / ("ema" if averaged else "raw")
            losses = EvalLossMeter() if self.args.eval_loss else None
            with self.weights.averaged(averaged):
                scores = self._score(dataset, self._after_batch, folder, losses)
            named = {f"{metric_key_prefix}_{prefix}{name}": value for name, value in scores.items()}
            metrics = joined_scores(metrics, named)
        batches = math.ceil(len(dataset) / (self.args.eval_batch_size * self.accelerator.num_processes))
        passes = len(prefixes)
        taken = speeds(metric_key_prefix, time.perf_counter() - started, passes * len(dataset), passes * batches)
        metrics = joined_scores(metrics, taken)
        with self.parallel.together():
            self.log(metrics)
            self._fire("on_evaluate", metrics=metrics)
        return metrics

    def predict(self, dataset: Dataset, metric_key_prefix: str = "test") -> PredictionOutput:
        """Detections of every image of a data set by the model in memory, and the COCO metrics they give.

        Returns:
            predictions: a dict per image, in the order of the data: `image_id`, `scores` (n,), `labels` (n,), `boxes`
                (n, 4) xyxy in pixels, on the CPU; `masks` as run-lengths, or `keypoints`, of such a model.
        """
        self._follow_arguments()
        check_kinds(self.model, self.args, {"dataset of predict()": dataset}, None)
        self._check_given(metric_key_prefix, dataset)
        mine: list[dict[str, Any]] = []

        def keep(image_ids: list[int], found: Found) -> None:
            for image_id, each in zip(image_ids, found, strict=True):
                on_host = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in each.items()}
                mine.append({"image_id": image_id} | on_host)
            self._after_batch(image_ids, found)

        scores = self._score(dataset, keep)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        by_id = {each["image_id"]: each for each in gather_object(mine)}
        self._fire("on_predict", metrics=metrics)
        return PredictionOutput([by_id[image_id] for image_id in dataset["image_id"]], metrics)

    def _check_given(self, name: str, dataset: Dataset) -> None:
        """`check_split`, and the rows of a data set that was not given at construction, where they were checked."""
        check_split(self.model, name, dataset)
        known = any(dataset is each for each in self.splits.values())
        if not known:
            compare_keypoints(self.model.config.keypoint_schema, dataset, name)
        if not known and isinstance(dataset, Dataset):  # shards were checked when they were written
            check_rows(name, dataset)

    def _score(self, dataset: Dataset, on_batch: Callable[[list[int], Found], None], *options: Any) -> dict[str, float]:
        with self.parallel.together():
            loader = self.callback_handler.eval_dataloader = self.get_eval_dataloader(dataset)
            notice = self.preemption if self.preemption.listens else None
            batches = Batches(loader, notice, self.args.dataloader_timeout, saves=self._in_training)
        return self.validation.score(dataset, batches, self.to_device, on_batch, *options)

    def _after_batch(self, image_ids: list[int], found: Found) -> None:
        self._fire("on_prediction_step", image_ids=image_ids, detections=found)
