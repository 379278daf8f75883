"""The steps of rfdetr and of transformers' own model that `counts.py` counts beside ours.

Both have our numbers of labels, queries and groups, our resolution, bfloat16 autocast, fused AdamW over the parameter
groups of their own trainers, clipping, and an average of the weights. Left out, in their favour: copies of small arrays
to the device, and sums for the log. Where a peer reads a tensor back it is told that all is well.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from rfdetr_hf import RFDETRConfig

_MATCHERS = {
    "rfdetr": ["rfdetr.models.matcher"],
    "transformers": ["transformers.loss.loss_lw_detr", "transformers.loss.loss_rf_detr"],
}


def missing(way: str, variant: str) -> str:
    """Why a way has no row for a variant; empty if it has one."""
    if way == "rfdetr" and not find_spec("rfdetr"):
        return "rfdetr is not installed"
    if way == "rfdetr" and variant.startswith(("seg", "keypoint")):
        return "its losses of masks and keypoints go by values, which fake tensors have not"
    if way == "transformers":
        if not hasattr(import_module("transformers"), "RfDetrForObjectDetection"):
            return "this version of transformers has no RF-DETR"
        if variant.startswith("keypoint"):
            return "transformers has no keypoint model"
    return ""


@contextmanager
def matched_by_number(way: str) -> Iterator[None]:
    """Within it the solvers of a peer give every object the query of its number."""

    def solved(cost: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a cost (queries, objects)."""
        numbers = np.arange(min(cost.shape))
        return numbers, numbers

    with ExitStack() as stack:
        for module in _MATCHERS[way]:
            stack.enter_context(mock.patch.object(import_module(module), "linear_sum_assignment", solved))
        yield


class Rfdetr:
    """The official model and its criterion.

    Args:
        variant: by our name.
    """

    def __init__(self, variant: str) -> None:
        configs, lwdetr = import_module("rfdetr.config"), import_module("rfdetr.models.lwdetr")
        config = getattr(configs, "RFDETR" + "".join(part.title() for part in variant.split("-")) + "Config")
        labels = RFDETRConfig.from_variant(variant).num_labels
        config = config(num_classes=labels - 1, device="cpu", pretrain_weights=None)
        kinds = {"seg": "SegmentationTrainConfig", "keypoint": "KeypointTrainConfig"}
        options = getattr(configs, kinds.get(variant.split("-")[0], "TrainConfig"))(dataset_dir=".", output_dir=".")
        self.model: Any = lwdetr.build_model_from_config(config, options).train()
        self.criterion = lwdetr.build_criterion_from_config(config, options)[0].train()
        self.options = import_module("rfdetr._namespace")._namespace_from_configs(config, options)

    def groups(self) -> list[dict[str, Any]]:
        """Of parameters, for the optimizer."""
        return import_module("rfdetr.training.param_groups").get_param_dict(self.options, self.model)

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are counted apart."""
        backbone = self.model.backbone[0]
        return {"encoder": backbone.encoder, "projector": backbone.projector, "decoder": self.model.transformer.decoder}

    def loss(self, pixels: Tensor, labels: list[dict[str, Tensor]]) -> Tensor:
        """Of pixels (B, 3, H, W) and labels in our layout."""
        padding = torch.empty(len(pixels), *pixels.shape[2:], dtype=torch.bool)
        samples = import_module("rfdetr.utilities.tensors").NestedTensor(pixels, padding)
        targets = [{("labels" if name == "class_labels" else name): own[name] for name in own} for own in labels]
        terms, weights = self.criterion(self.model(samples, targets), targets), self.criterion.weight_dict
        return torch.stack([value * weights[name] for name, value in terms.items() if name in weights]).sum()


class Transformers:
    """The class of transformers, with the parameter groups of its trainer; see `Rfdetr`."""

    def __init__(self, variant: str) -> None:
        library = import_module("transformers")
        config = library.RfDetrConfig.from_dict(RFDETRConfig.from_variant(variant).to_dict())
        self.segments = variant.startswith("seg")
        kind = library.RfDetrForInstanceSegmentation if self.segments else library.RfDetrForObjectDetection
        self.model: Any = kind(config).train()

    def groups(self) -> list[dict[str, Any]]:
        """Of parameters, for the optimizer."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        plain = [parameter for parameter in trained if parameter.ndim <= 1]
        return [{"params": [p for p in trained if p.ndim > 1]}, {"params": plain, "weight_decay": 0.0}]

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are counted apart."""
        detector = self.model.model.model if self.segments else self.model.model
        backbone = detector.backbone
        return {"encoder": backbone.backbone, "projector": backbone.projector, "decoder": detector.decoder}

    def loss(self, pixels: Tensor, labels: list[dict[str, Tensor]]) -> Tensor:
        """Of pixels (B, 3, H, W) and labels in our layout."""
        return self.model(pixels, labels=labels).loss


PEERS = {"rfdetr": Rfdetr, "transformers": Transformers}


class PeerStep:
    """An optimizer step of a peer, whose model is on the device, over a batch."""

    def __init__(self, peer: Rfdetr | Transformers, pixels: Tensor, labels: list[dict[str, Tensor]]) -> None:
        self.peer, self.model, self.batch = peer, peer.model, (pixels, labels)
        self.optimizer = torch.optim.AdamW(peer.groups(), lr=1e-4, fused=True)
        self.shadow = [parameter.detach().clone() for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()  # makes its state
        self.optimizer.zero_grad()

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are counted apart."""
        return self.peer.parts()

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.peer.loss(*self.batch)

    def update(self) -> None:
        """Clip, step, and average."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.model.parameters()], 0.007)  # pyright: ignore
