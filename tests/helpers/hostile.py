"""Data whose names would be markup."""

import json

from rfdetr_hf import make_shapes_dataset

HOSTILE = "<img src=x onerror=alert(1)> & $x$"


def write_coco(folder, splits):
    """A Roboflow export of shapes, one of whose classes has a hostile name."""
    for split, count in splits.items():
        (folder / split).mkdir(parents=True)
        rows = make_shapes_dataset(count, image_size=64, seed=len(split))
        names = [HOSTILE, "square", "triangle"]
        coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(names)]}
        for row in rows:
            name, objects = f"{row['image_id']}.png", row["objects"]
            (folder / split / name).write_bytes(row["image"]["bytes"])
            coco["images"].append({"id": row["image_id"], "file_name": name, "width": 64, "height": 64})
            for box, label in zip(objects["bbox"], objects["category"], strict=True):
                about = {"id": len(coco["annotations"]) + 1, "image_id": row["image_id"], "iscrowd": 0}
                coco["annotations"].append(about | {"bbox": box, "category_id": label, "area": box[2] * box[3]})
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco))
