"""Names of the published checkpoints."""

import pytest

from rfdetr_hf.models.files import published as names


def test_names_of_checkpoints(tmp_path):
    assert names.checkpoint_of("seg-2xlarge") == "Roboflow/rf-detr-seg-xxlarge"
    assert names.checkpoint_of(tmp_path) == tmp_path and names.checkpoint_of("user/model") == "user/model"
    for name, file in (("keypoint-preview", "rf-detr-keypoint-preview-xlarge.pth"),
                       ("large-deprecated", "rf-detr-large.pth")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=f"the variant {name} has no checkpoint on the Hub.*{file}"):
            names.checkpoint_of(name)
