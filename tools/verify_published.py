"""Compare the published checkpoints on the Hub with what this package says of them; needs a network.

    python tools/verify_published.py                                     all variants: names of tensors, sizes, logits
    python tools/verify_published.py --variants nano seg-nano --coco path/to/coco      and AP beside the published one

For each variant: the tensors of the file are those of the model, no more and no fewer; the configuration has the sizes
of the variant and the published number of parameters; logits and boxes equal those of plain transformers on a random
picture; with `--coco` (a folder in COCO's layout with val2017) the AP is within `--tolerance` points of the published
one. The exit code is 1 where something differs or cannot be had.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image

from rfdetr_hf import TASKS, ImageDetector, RFDETRConfig, evaluate_detector, load_detection_dataset, load_model
from rfdetr_hf.models.files.auto import load_processor
from rfdetr_hf.models.files.layouts import official_names
from rfdetr_hf.models.files.pretrained import read_names
from rfdetr_hf.models.files.published import published_id

sys.path.insert(0, str(Path(__file__).parents[1] / "model_cards"))
RESULTS: Any = import_module("generate").RESULTS

PLAIN = {"detection": "RfDetrForObjectDetection", "segmentation": "RfDetrForInstanceSegmentation"}
LOGITS = 1e-3


class Check(NamedTuple):
    """One comparison: what was compared, whether it holds, and what was found."""

    what: str
    holds: bool
    found: str


def checks(variant: str, coco: str | None, limit: int | None, tolerance: float) -> Iterator[Check]:
    """What is compared of a variant, one after the other."""
    source, row = str(published_id(variant)), RFDETRConfig.variants()[variant]
    names = set(official_names(read_names(source)).values())
    model = load_model(source).eval()
    yield tensors(model, names)
    yield sizes(model.config, variant)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Check("parameters", count == row.parameters, f"{count:,}, published {row.parameters:,}")
    processor: Any = load_processor(source, row.resolution)
    yield logits(model, processor, getattr(transformers, PLAIN[row.task]).from_pretrained(source).eval())
    if coco is not None:
        yield precision(variant, source, processor, coco, limit, tolerance)


def tensors(model: Any, names: set[str]) -> Check:
    """Whether a file has the tensors of the model; packed projections count as their parts."""
    own = set(model.state_dict())
    packed = {name.replace(f".{letter}_proj.", ".in_proj_") for name in names for letter in "qkv"} & own
    missing = sorted(own - names - packed)
    unexpected = sorted(name for name in names - own if not any(f".{letter}_proj." in name for letter in "qkv"))
    found = f"{len(names)} in the file" + (f", missing {missing[:3]}" if missing else "")
    return Check("tensors", not missing and not unexpected, found + (f", more {unexpected[:3]}" if unexpected else ""))


def sizes(config: RFDETRConfig, variant: str) -> Check:
    """Whether a configuration has the fields of the variant."""
    wanted, found = RFDETRConfig.from_variant(variant), []
    for name in ("resolution", "d_model", "decoder_layers", "num_queries", "group_detr", "num_labels"):
        if getattr(config, name) != getattr(wanted, name):
            found.append(f"{name} {getattr(config, name)}, not {getattr(wanted, name)}")
    for name in ("hidden_size", "num_hidden_layers", "patch_size", "num_windows", "out_indices"):
        ours, theirs = getattr(config.backbone_config, name), getattr(wanted.backbone_config, name)
        found += [] if ours == theirs else [f"{name} {ours}, not {theirs}"]
    return Check("configuration", not found, "; ".join(found) or f"{config.resolution} pixels")


@torch.no_grad()
def logits(model: Any, processor: Any, plain: Any) -> Check:
    """Whether a random picture gives the numbers of plain transformers."""
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    batch = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    ours, theirs = model(batch), plain(batch)
    differences = {name: (ours[name] - theirs[name]).abs().max().item() for name in ("logits", "pred_boxes")}
    found = ", ".join(f"{name} differ by at most {value:.1e}" for name, value in differences.items())
    return Check("plain transformers", max(differences.values()) <= LOGITS, found)


def precision(variant: str, source: str, processor: Any, coco: str, limit: int | None, tolerance: float) -> Check:
    """The AP on COCO's validation images, in percent, beside the published one."""
    model: Any = load_model(source, drop_unused_rows=True)
    task: Any = TASKS[model.task]
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    dataset = load_detection_dataset(coco, task=task.name, class_names=names)["validation"]
    part = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    done = evaluate_detector(ImageDetector(model, processor), part, iou_types=task.iou_types)
    found, published = 100 * done.metrics[task.best_metric], RESULTS[variant].coco if variant in RESULTS else ()
    near = not published or any(abs(found - value) <= tolerance for value in published)
    beside = " or ".join(map(str, published)) or "none"
    return Check("COCO AP", near, f"{found:.1f} on {len(part)} images, published {beside}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    known = [name for name in RFDETRConfig.variants() if published_id(name) is not None]
    parser.add_argument("--variants", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--coco", help="folder in COCO's layout with val2017; adds the AP")
    parser.add_argument("--limit", type=int, help="score so many images only; the AP is then another one")
    parser.add_argument("--tolerance", type=float, default=0.3, help="points of AP that may lie between")


def main(argv: list[str]) -> int:
    """Check the variants, print a line for each comparison; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    failed = 0
    for variant in args.variants:
        print(f"{variant} ({published_id(variant)})")
        try:
            for check in checks(variant, args.coco, args.limit, args.tolerance):
                print(f"  {'ok' if check.holds else 'DIFFERS':<8} {check.what:<20} {check.found}", flush=True)
                failed += not check.holds
        except (OSError, ValueError) as error:
            print(f"  FAILED   {error}", flush=True)
            failed += 1
    print("all as published" if not failed else f"{failed} comparisons failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
