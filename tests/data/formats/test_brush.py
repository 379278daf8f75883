"""Brush strokes of Label Studio, decoded to their pixels."""

import json

import numpy as np
import pytest
from helpers.annotation_tools import run_tools
from helpers.label_studio import region, task

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.formats.brush import decode_brush
from rfdetr_hf.data.masks import rasterise
from rfdetr_hf.data.schema import coco_segmentation

ENCODE = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import mask2rle
print(json.dumps(mask2rle(np.array(json.loads(sys.argv[1]), np.uint8) * 255)))
"""


def pack(pixels, lengths=(3, 4, 8, 16)):
    """Brush strokes as runs of equal words, and one run of words that differ."""
    words = np.repeat(np.where(pixels.ravel(), 255, 0), 4).tolist()
    bits = f"{len(words):032b}{8 - 1:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    bits += f"0{0:02b}{5 - 1:03b}" + "".join(f"{word:08b}" for word in words[:5])
    start = 5
    while start < len(words):
        end = start
        while end < len(words) and words[end] == words[start] and end - start < 2**16:
            end += 1
        count = end - start - 1
        index = next(i for i, length in enumerate(lengths) if count < 2**length)
        bits += f"1{index:02b}{count:0{lengths[index]}b}{words[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def stroke():
    pixels = np.zeros((48, 64), np.uint8)
    pixels[10:30, 5:40], pixels[12:15, 8:12], pixels[0, 0] = 1, 0, 1
    return pixels


def check_brush(studio, rle):
    row = load_detection_dataset(studio(task(region("brushlabels", format="rle", rle=rle))), task="segmentation")[
        "train"
    ][0]
    column = np.empty(1, object)
    column[:] = [coco_segmentation(row["objects"]["segmentation"][0], 48, 64)]
    assert (rasterise(column, (0, 0, 64, 48), (48, 64))[0] == stroke().astype(bool)).all()
    assert row["objects"]["bbox"] == [[0, 0, 40, 30]] and row["objects"]["area"] == [stroke().sum()]


def test_brush_strokes(studio):
    check_brush(studio, pack(stroke()))
    with pytest.raises(ValueError, match=r"of 3072 pixels, but the picture has 64 x 40"):
        decode_brush(pack(stroke()), (64, 40))


def test_brush_strokes_of_the_sdk(studio):
    check_brush(studio, json.loads(run_tools(ENCODE, json.dumps(stroke().tolist()))))
