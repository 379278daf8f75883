"""COCO metrics of a trained model on one split of a data set, and what is wrong with it.

    python examples/evaluate.py --model_name_or_path outputs/quickstart/best --split test
    python examples/evaluate.py --model_name_or_path outputs/bccd/best --dataset_name bccd --split test \\
        --output_dir evaluation/bccd --report

The output folder gets metrics.json, per_class.csv, errors.txt, predictions.json (COCO results with the category ids of
the source) and, with `--report`, curves, the worst images and report.html.
"""

import sys
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, load_detection_dataset
from rfdetr_hf.evaluation.inference import AugmentedDetector, Detector, ImageDetector, TiledDetector
from rfdetr_hf.evaluation.suite import evaluate_detector
from rfdetr_hf.training.arguments import DataArguments, parse_arguments
from rfdetr_hf.training.console import log_to_console


@dataclass
class EvaluateArguments:
    """Which model, which split, how to look, where to write."""

    model_name_or_path: str = field(metadata={"help": "A model folder or Hub id."})
    split: str = field(default="validation", metadata={"help": "Split of the data set."})
    batch_size: int = field(default=8, metadata={"help": "Images (or tiles) of a batch."})
    device: str | None = field(default=None, metadata={"help": "Default: cuda where there is one."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the results; new or empty."})
    report: bool = field(default=False, metadata={"help": "Also curves, worst images and report.html."})
    max_dets: int = field(default=100, metadata={"help": "A limit of detections beside COCO's 100."})
    backend: str = field(default="auto", metadata={"help": "Who scores: auto, pycocotools or ultrafast."})
    flip: bool = field(default=False, metadata={"help": "Fuse the detections of the mirrored image."})
    scales: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Fuse these input sizes."})
    tile: int = field(default=0, metadata={"help": "Side of the tiles of large images in pixels; 0: no tiles."})
    tile_overlap: float = field(default=0.2, metadata={"help": "Share of a tile that its neighbour covers."})


def build_detector(args: EvaluateArguments) -> tuple[Detector, list[str]]:
    """The model with its views and tiles, and its class names."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = RFDETRForObjectDetection.from_pretrained(args.model_name_or_path).to(device)
    processor = RFDETRImageProcessor.from_pretrained(args.model_name_or_path)
    top_k = model.config.num_queries
    detect: Detector = ImageDetector(model, processor, model.config.size_divisor)
    if args.flip or args.scales != [1.0]:
        detect = AugmentedDetector(detect, args.flip, args.scales, top_k=top_k)
    if args.tile:
        detect = TiledDetector(detect, args.tile, args.tile_overlap, top_k=top_k, batch_size=args.batch_size)
    return detect, [model.config.id2label[i] for i in range(model.config.num_labels)]


def main(argv: list[str]) -> None:
    """Load, evaluate, print."""
    log_to_console()
    args, data_args = parse_arguments((EvaluateArguments, DataArguments), argv, prog="evaluate.py")
    detect, names = build_detector(args)
    dataset = load_detection_dataset(**data_args.load_options(), class_names=names)
    if args.split not in dataset:
        raise ValueError(f"--split {args.split}: {data_args.dataset_name} has {', '.join(dataset)}")
    split = dataset[args.split]
    with tqdm(total=len(split), desc="evaluating", leave=False) as bar:
        result = evaluate_detector(
            detect,
            split,
            batch_size=args.batch_size,
            max_dets=args.max_dets,
            backend=args.backend,
            output_dir=args.output_dir,
            report=args.report,
            title=f"{args.model_name_or_path} on {data_args.dataset_name}, {args.split}",
            progress=lambda done, total: bar.update(done - bar.n),
        )
    print(result.tables())
    if args.output_dir:
        print(f"\nresults are in {args.output_dir}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
