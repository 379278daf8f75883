"""How long a step that saves is held up, at once and in the background (`async_save`).

    python benchmarks/saving.py --output-dir outputs/saving

Short trainings of RF-DETR nano, on small images so that a step is short, save every `--every` steps. The time of each
save is taken, for the background with what it waits for the checkpoint before, and that of the whole training. The two
ways alternate; `--output-dir` decides which disk is measured.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForObjectDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    make_shapes_dataset,
)


def trainer_of(folder: Path, async_save: bool, options: argparse.Namespace) -> RFDETRTrainer:
    names = ("circle", "square", "triangle")
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    config = RFDETRConfig.from_variant("nano", resolution=128, **labels)
    args = RFDETRTrainingArguments(
        output_dir=str(folder),
        max_steps=options.every * options.saves + options.every // 2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        multi_scale="off",
        dataloader_num_workers=0,
        audit="off",
        eval_strategy="no",
        save_strategy="steps",
        save_steps=options.every,
        async_save=async_save,
        logging_steps=1000,
        disable_tqdm=True,
    )
    return RFDETRTrainer(RFDETRForObjectDetection(config), args, make_shapes_dataset(8, image_size=128))


def measure(async_save: bool, options: argparse.Namespace) -> tuple[list[float], float]:
    """The seconds of each save, and of the loop."""
    folder = Path(tempfile.mkdtemp(dir=options.output_dir))
    trainer, saves = trainer_of(folder, async_save, options), []
    save = trainer.checkpointer.save

    def timed(*args: object) -> None:
        start = time.perf_counter()
        save(*args)
        saves.append(time.perf_counter() - start)

    trainer.checkpointer.save = timed
    runtime = trainer.train().metrics["train_runtime"]
    newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    options.size = sum(path.stat().st_size for path in newest.iterdir())
    shutil.rmtree(folder)
    return saves, runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=None, help="where to save; default: the temporary directory")
    parser.add_argument("--every", type=int, default=4, help="steps from one save to the next")
    parser.add_argument("--saves", type=int, default=3, help="of each training")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.output_dir is not None:
        options.output_dir.mkdir(parents=True, exist_ok=True)
    saves: dict[bool, list[float]] = {False: [], True: []}
    loops: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.rounds):
        for way in saves:
            seconds, loop = measure(way, options)
            saves[way] += seconds
            loops[way].append(loop)
    print(f"a checkpoint of {options.size / 1e6:.0f} MB, {options.every} steps from save to save")
    for way, name in ((False, "at once"), (True, "background")):
        held = f"{statistics.median(saves[way]):.2f} s (largest {max(saves[way]):.2f})"
        print(f"{name:10}  a step that saves waits {held}, the training takes {statistics.median(loops[way]):.1f} s")


if __name__ == "__main__":
    main()
