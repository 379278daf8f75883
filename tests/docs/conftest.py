"""Stand-ins for what the documents name: `path/to/dataset`, `path/to/model`, `photo.jpg`, Hub ids, variants."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForInstanceSegmentation,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    RFDETRTrainingArguments,
    class_names,
    decode_image,
    make_shapes_dataset,
)
from rfdetr_hf.choices import VARIANTS

TINY_BACKBONE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "out_indices": [1, 2, 3]}
TINY_BACKBONE |= {"patch_size": 8, "num_windows": 2}
TINY = {
    "resolution": 64, "d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 1, "num_queries": 10, "group_detr": 2,
    "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4,
}  # fmt: skip
HURRY = {
    "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0,
    "disable_tqdm": True, "bf16": False, "plots": False,
}  # fmt: skip


def write_coco(root: Path) -> None:
    """Synthetic shapes in the layout of a Roboflow COCO export."""
    for seed, (split, count) in enumerate({"train": 10, "valid": 2, "test": 2}.items()):
        dataset = make_shapes_dataset(count, image_size=64, seed=seed)
        folder = root / split
        folder.mkdir(parents=True)
        names = class_names(dataset)
        coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(names)]}
        for row in dataset:
            file_name = f"{row['image_id']}.png"
            decode_image(row).save(folder / file_name)
            image = {"id": row["image_id"], "file_name": file_name, "width": row["width"], "height": row["height"]}
            coco["images"].append(image)
            fields = zip(row["objects"]["bbox"], row["objects"]["category"], row["objects"]["area"], strict=True)
            for box, category, area in fields:
                number = len(coco["annotations"])
                annotation = {"id": number, "image_id": row["image_id"], "category_id": category, "iscrowd": 0}
                coco["annotations"].append(annotation | {"bbox": list(box), "area": area})
        (folder / "_annotations.coco.json").write_text(json.dumps(coco))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """The folder in which everything that the documents name exists."""
    root = tmp_path_factory.mktemp("docs")
    write_coco(root / "path" / "to" / "dataset")
    torch.manual_seed(0)
    names = dict(enumerate(("circle", "square", "triangle")))
    config = RFDETRConfig.from_variant("nano", **TINY, backbone_config=TINY_BACKBONE, id2label=names)
    for folder in (root / "path" / "to" / "model", root / "Roboflow" / "rf-detr-nano"):
        RFDETRForObjectDetection(config).save_pretrained(folder)
        RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    folder = root / "path" / "to" / "segmentation-model"
    config = RFDETRConfig.from_variant("seg-nano", **TINY, backbone_config=TINY_BACKBONE, id2label=names)
    RFDETRForInstanceSegmentation(config).save_pretrained(folder)
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    Image.new("RGB", (80, 60), "grey").save(root / "photo.jpg")
    return root


@pytest.fixture
def workplace(stand_ins, tmp_path, monkeypatch):
    """A copy of the stand-ins as the current folder, with tiny variants, short runs and a Hub that is a folder."""
    root = tmp_path / "work"
    shutil.copytree(stand_ins, root)
    monkeypatch.chdir(root)
    from_variant, from_pretrained = RFDETRConfig.from_variant, RFDETRForObjectDetection.from_pretrained.__func__

    def tiny_variant(name, **overrides):
        backbone = TINY_BACKBONE | dict(overrides.pop("backbone_config", {}))
        return from_variant(name, **{**TINY, **overrides, "resolution": 64}, backbone_config=backbone)

    def local(cls, name, *args, **kwargs):
        published = name in VARIANTS or str(name).startswith("Roboflow/")
        return from_pretrained(cls, root / "Roboflow" / "rf-detr-nano" if published else name, *args, **kwargs)

    post_init = RFDETRTrainingArguments.__post_init__

    def hurry(self):
        for name, value in HURRY.items():
            setattr(self, name, value)
        post_init(self)

    monkeypatch.setattr(RFDETRConfig, "from_variant", tiny_variant)
    monkeypatch.setattr(RFDETRForObjectDetection, "from_pretrained", classmethod(local))
    monkeypatch.setattr(RFDETRTrainingArguments, "__post_init__", hurry)
    return root
