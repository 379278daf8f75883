import hashlib

import numpy as np
import pytest

from rfdetr_hf import audit_dataset, make_shapes_dataset
from rfdetr_hf.data.schema import decode_image, detection_features
from rfdetr_hf.data.synthetic import _mask


def digest(dataset):
    sha = hashlib.sha256()
    for row in dataset:
        sha.update(np.asarray(decode_image(row)).tobytes())
        sha.update(repr((row["objects"]["bbox"], row["objects"]["category"])).encode())
    return sha.hexdigest()[:16]


def test_pixels_and_boxes_of_a_seed_never_change():
    assert digest(make_shapes_dataset(12, 64, seed=3, crowd_share=0.5)) == "b26133ec5b55b4c7"


def test_images_depend_on_seed_split_and_index_alone():
    few, many = make_shapes_dataset(3), make_shapes_dataset(6)
    assert digest(few) == digest(many.select(range(3)))
    others = [
        make_shapes_dataset(3, seed=1),
        make_shapes_dataset(3, split="validation"),
        make_shapes_dataset(3, split="test"),
    ]
    assert len({digest(few), *map(digest, others)}) == 4


def test_schema_and_contents():
    dataset = make_shapes_dataset(200, crowd_share=0.2)
    assert dataset.features == detection_features(["circle", "square", "triangle"])
    report = audit_dataset(dataset)
    assert report.num_images == 200 and 2 <= report.num_empty_images <= 20
    assert all(count > 50 for count in report.boxes_per_class.values())
    assert 20 <= report.num_crowds <= 60 and report.small > 50 and report.medium > 50
    for objects in dataset["objects"]:
        boxes = np.array(objects["bbox"]).reshape(-1, 4)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 96).all()


def test_boxes_fit_the_painted_pixels():
    """A lone shape differs from its background by far more than the noise, exactly inside its box."""
    lone = [row for row in make_shapes_dataset(80) if len(row["objects"]["id"]) == 1]
    assert len(lone) > 5
    for row in lone:
        pixels = np.asarray(decode_image(row)).astype(int)
        x, y, w, h = (int(value) for value in row["objects"]["bbox"][0])
        corner = (0, 0) if x > 2 or y > 2 else (-1, -1)
        # Levels go around at 256, and at 0 and 255 the noise is cut off.
        away = np.abs(pixels - pixels[corner]).max(axis=-1) > 60
        columns, rows = np.flatnonzero(away.any(axis=0)), np.flatnonzero(away.any(axis=1))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x, y, x + w, y + h)


@pytest.mark.parametrize("side", [4, 5, 12, 33])
@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)])
def test_shapes_touch_all_edges_and_have_their_area(shape, share, side):
    mask = _mask(shape, side)
    assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
    assert mask.mean() == pytest.approx(share, abs=1.2 / side)
    assert (mask == mask[:, ::-1]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ["star"]},
        {"classes": []},
        {"classes": ["circle", "circle"]},
        {"image_size": 16},
        {"seed": -1},
        {"split": "dev"},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_shapes_dataset(2, **options)
