"""Pictures with objects whose class is a name: turned shapes and pictures that are looked for."""

import logging

import numpy as np
import pytest
from helpers.label_studio import BOX, region, task

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


def test_turned_rectangles_and_ellipses(studio):
    # A quarter turn clockwise around the corner at (32, 12): what was right of it is below, what was below is left.
    turned = region(x=50, y=25, width=25, height=12.5, rotation=90)
    oval = region("ellipselabels", name="r2", x=50, y=50, radiusX=25, radiusY=12.5, rotation=90)
    objects = load_detection_dataset(studio(task(turned, oval)))["train"][0]["objects"]
    np.testing.assert_allclose(objects["bbox"], [[26, 12, 6, 16], [26, 8, 12, 32]], atol=1e-9)


def test_folders_in_addresses_count(studio, write_image, caplog):
    caplog.set_level(logging.INFO)
    local = "/data/local-files/?d=cams/"
    two = [task(BOX, image=f"{local}one/a.jpg"), task(BOX, image=f"{local}two/b c.jpg")]
    with pytest.raises(DetectionDataError, match="none of its images"):
        load_detection_dataset(studio(*two))  # they lie in images/, and their folders differ
    for camera in ("one", "two"):
        for name in ("a.jpg", "b c.jpg"):
            write_image(studio() / "images" / camera / name)
    train = load_detection_dataset(studio(*two))["train"]
    assert train["file_name"] == ["one/a.jpg", "two/b c.jpg"]
    assert "found 2 images without the leading 'cams'" in caplog.text
    uploads = [task(image=f"/data/upload/{number}/0123abc{number}-a.jpg") for number in (1, 2)]
    with pytest.raises(DetectionDataError, match=r"upload/1/0123abc1-a.jpg' and '.*-a.jpg' both lead to a.jpg"):
        load_detection_dataset(studio(*uploads))
    assert load_detection_dataset(studio(uploads[0], two[0]))["train"]["file_name"] == ["a.jpg", "one/a.jpg"]
    assert "found 1 image without the hash before their names" in caplog.text
