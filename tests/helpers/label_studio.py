"""Tasks and regions of Label Studio's JSON."""

FRAME = {"original_width": 64, "original_height": 48, "image_rotation": 0}


def region(kind="rectanglelabels", label="cat", name="r1", more=None, **value):
    """A result of an annotator: a shape with its label, in per cent of the picture."""
    labels = {kind: [label]} if label else {}
    return {"id": name, "type": kind, "value": {**value, **labels}, **FRAME, **(more or {})}


BOX = region(x=25, y=50, width=50, height=25, rotation=0)


def task(*results, image="/data/local-files/?d=images/a.jpg", **more):
    """A task of one annotation with these results."""
    return {"id": 7, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results), **more}]}
