"""The table of what a checkpoint holds."""

import json

from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer, make_shapes_dataset
from rfdetr_hf.data.pipeline.order import ORDER
from rfdetr_hf.training.checkpoint.contents import TABLE
from rfdetr_hf.training.state import FORMAT


def test_a_checkpoint_holds_what_the_table_says(tmp_path, tiny_model):
    args = quick_arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, eval_strategy="no")
    RFDETRTrainer(tiny_model(), args, make_shapes_dataset(4, image_size=64)).train()
    found = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    rows = {name for entry in TABLE for name in (entry.file, *entry.beside)}
    of_other_launches = {"adapters.safetensors", "scaler.json"}
    assert rows - of_other_launches - {"curves.png"} == found - {"curves.png"}
    progress = json.loads((tmp_path / "checkpoint-1" / "progress.json").read_text())
    assert (progress["format"], progress["order"]) == (FORMAT, ORDER)


def test_every_row_says_who_writes_it():
    assert {entry.writer for entry in TABLE} <= {"main", "all", "launch"}
    assert len({entry.file for entry in TABLE}) == len(TABLE) and all(entry.holds for entry in TABLE)
