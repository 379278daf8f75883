"""What a trainer makes of its arguments, at construction and where they are set later."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import DefaultFlowCallback

from ..hub.push import HubUploader
from ..models.adapters import merge_adapters
from .batch_size import settle_batch
from .best import BestModel
from .callbacks import own_callbacks
from .checkpoint.checkpointer import Checkpointer
from .checkpoint.run_directory import RunDirectory
from .checks import check_arguments, init_model
from .ending import EndingMethods
from .multi_scale import compute_scales
from .pictures import RunPictures
from .precision import settle_precision

AT_CONSTRUCTION = ("square_resize", "image_decoder", "mixed_precision", "bf16", "fp16", "ddp_timeout")
"""What the image processor and Accelerate are made by, once."""


class ArrangementMethods(EndingMethods):
    """The parts of a run that follow from its arguments alone."""

    given_best: BestModel | None
    model_init: Any
    stateful: dict[str, Any]
    scales: list[int]
    _in_run = False
    _arranged_for: dict[str, Any] = {}  # the arguments that the parts were made by
    _hub_of: tuple[Any, ...] = ()
    _own: Sequence[Any] = (DefaultFlowCallback(),)  # without one, a handler of callbacks warns

    def _follow_arguments(self) -> None:
        """Take up the arguments as they are by now; those of a run that has begun stay until its end.

        Raises:
            ValueError: one is not valid, or comes too late for this trainer.
        """
        if self._in_run:
            return
        args, before = self.args, self._arranged_for
        if args is not self.validation.args:  # others were put in their place
            settle_precision(args)
            self.validation.args = self.parallel.args = args
        late = [name for name in AT_CONSTRUCTION if getattr(args, name) != before.get(name, getattr(args, name))]
        if late:
            changes = ", ".join(f"{name} {before[name]!r} -> {getattr(args, name)!r}" for name in late)
            raise ValueError(
                f"{changes}: set on trainer.args, and this trainer was made by the former; make another trainer, with "
                "arguments that have it"
            )
        args.follow(self.model.task, self.eval_dataset)
        settle_batch(args, self.parallel)
        if Path(args.output_dir) != self.directory.root:
            self.directory = RunDirectory(args.output_dir)
        hub_of = args.hub_model_id or self.directory.root.resolve().name, args.hub_token, args.hub_private_repo
        if hub_of != self._hub_of:
            self._hub_of, self.hub = hub_of, HubUploader(*hub_of)

    def _arrange(self) -> None:
        """Make the parts of a run by arguments that have been taken up; what was given or removed in Python stays."""
        args, directory, config, handler = self.args, self.directory, self.model.config, self.callback_handler
        others = [each for each in handler.callbacks if each not in self._own]
        check_arguments(self.model, args, self.splits, others, self.validation.score_names)
        parts = directory, self.accelerator, self.parallel, self.weights
        self.checkpointer = Checkpointer(*parts, self.stateful, keep=args.save_total_limit, background=args.async_save)
        if self.model_init is not None and self._arranged_for.get("seed", args.seed) != args.seed:
            merge_adapters(self.model)
            self.model.load_state_dict(init_model(self.model_init, args.seed).state_dict())
        side, backbone = config.resolution, config.backbone_config
        self.scales = compute_scales(side, backbone.patch_size, backbone.num_windows, args.expanded_scales)
        self.pictures = RunPictures(directory, self.accelerator.is_main_process, args.plots)
        rules: Any = args.metric_for_best_model, args.greater_is_better, args.skip_best_epochs, args.smooth_alpha
        self.state.best = self.given_best or BestModel(*rules, smooth_ema=not args.is_official)
        self.state.best.use_ema = args.use_ema
        self.validation.directory = directory
        removed = {type(each) for each in self._own if each not in handler.callbacks}
        self._own = own_callbacks(args, directory, self.hub, self._fire)
        handler.callbacks = [*(each for each in self._own if type(each) not in removed), *others]
        self._arranged_for = dataclasses.asdict(args)
