"""The official package itself reads what we write, and we read what it writes.

Needs it installed, with its training extra: `pip install "rfdetr[train]==1.11.2"`, then
`pytest -m slow tests/models/test_official_package.py`.
"""

import numpy as np
import pytest
import torch
from helpers.golden import golden_model
from PIL import Image

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection
from rfdetr_hf.models.files.official import official_labels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
rfdetr = pytest.importorskip("rfdetr", reason='needs pip install "rfdetr[train]==1.11.2"')
MODELS = dict.fromkeys(("nano", "small", "medium", "base", "large", "large-deprecated"), RFDETRForObjectDetection) | {
    "seg-nano": RFDETRForInstanceSegmentation,
    "keypoint-preview": RFDETRForKeypointDetection,
}
OUTPUTS = ("pred_boxes", "pred_masks", "pred_keypoints")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype("uint8"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [{0: "ant", 1: "bee", 2: "cat"}, official_labels(91)], ids=["own", "coco"])
def test_written_file_predicts_equally(name, labels, picture, tmp_path):
    model = golden_model(MODELS[name](RFDETRConfig.from_variant(name, id2label=labels))).float().eval()
    model.save_official(tmp_path / "model.pth")
    official = rfdetr.RFDETR.from_checkpoint(tmp_path / "model.pth", device="cpu")
    assert official.model_config.resolution == model.config.resolution
    assert official.class_names == [name for name in labels.values() if name != "N/A"]
    network = official.model.model.eval()
    for key, tensor in model.state_dict().items():
        assert torch.equal(network.state_dict()[key][: len(tensor)], tensor), key

    detections = official.predict(picture, threshold=threshold_of(name))
    assert len(detections) > 50 and (detections.class_id < len(labels)).all()

    # In float32 proposals of nearly equal rank change places, and with them the queries that they meet.
    side = model.config.resolution
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = model.double()(pixels), network.double()(pixels)
    torch.testing.assert_close(theirs["pred_logits"][..., : len(labels)], ours.logits, atol=1e-8, rtol=0)
    assert {key for key in theirs if key in OUTPUTS} == {key for key in OUTPUTS if key in ours}
    for key in filter(theirs.__contains__, OUTPUTS):
        torch.testing.assert_close(theirs[key], ours[key], atol=1e-8, rtol=0)
    assert (theirs["pred_logits"][..., len(labels) :] < -1000).all()


def threshold_of(name):
    """Scores of keypoint models hardly pass a half: the uncertainty of the keypoints is in them."""
    return 0.2 if name == "keypoint-preview" else 0.5


@pytest.mark.parametrize("name", MODELS)
def test_official_file_comes_back_equal(name, picture, tmp_path):
    """official -> ours -> official: equal tensors and equal predictions."""
    from rfdetr import config as official_configs
    from rfdetr.models.lwdetr import build_model_from_config

    # A named weights file is not read here; it keeps the builder from asking the Hub for DINOv2.
    settings = {"num_classes": 3, "pretrain_weights": "unused.pth", "device": "cpu"}
    official = RFDETRConfig.variants()[name].official_class
    fields = getattr(official_configs, f"{official}Config")(**settings)
    state = golden_model(build_model_from_config(fields)).float().state_dict()
    payload = {"model": state, "args": {"class_names": ["ant", "bee", "cat"]}, "model_name": official}
    torch.save({**payload, "model_config": fields.model_dump(mode="json")}, tmp_path / "first.pth")

    model = MODELS[name].from_official(tmp_path / "first.pth")
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "N/A"}
    model.save_official(tmp_path / "second.pth")
    first, second = (rfdetr.RFDETR.from_checkpoint(tmp_path / f"{n}.pth", device="cpu") for n in ("first", "second"))
    back = second.model.model.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert second.class_names == ["ant", "bee", "cat"]
    left, right = (side.predict(picture, threshold=threshold_of(name)) for side in (first, second))
    assert len(left) > 50 and type(left) is type(right)
    for field in ("xyxy", "xy", "confidence", "keypoint_confidence", "class_id", "mask"):
        assert np.array_equal(getattr(left, field, None), getattr(right, field, None)), field


@pytest.mark.parametrize(
    ("schema", "names", "classes"),
    [([0, 17], ["person"], 1), ([0, 17], None, 90), ([17], ["person"], 1), ([0, 3], ["bird"], 1), ([17], None, 90)],
)
def test_keypoint_files_have_the_official_names(schema, names, classes, picture, tmp_path):
    from rfdetr import config as official_configs
    from rfdetr.models.lwdetr import build_model_from_config

    settings = {"num_classes": classes, "num_keypoints_per_class": schema, "pretrain_weights": "unused.pth"}
    fields = official_configs.RFDETRKeypointPreviewConfig(**settings, device="cpu")
    network, row = golden_model(build_model_from_config(fields)).float(), len(schema) - 1
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "class_embed.bias" in name or ("enc_out_class_embed" in name and name.endswith("bias")):
                parameter.fill_(-8)[row] = 2
    payload = {"model": network.state_dict(), "args": {"class_names": names}, "model_name": "RFDETRKeypointPreview"}
    torch.save({**payload, "model_config": fields.model_dump(mode="json")}, tmp_path / "first.pth")
    RFDETRForKeypointDetection.from_official(tmp_path / "first.pth").save_official(tmp_path / "second.pth")
    first, second = (
        rfdetr.RFDETR.from_checkpoint(tmp_path / f"{name}.pth", device="cpu").predict(picture, threshold=0.3)
        for name in ("first", "second")
    )
    assert len(first) > 50 and np.array_equal(first.class_id, second.class_id) and set(first.class_id) == {row}
    ours = RFDETRForKeypointDetection.from_official(tmp_path / "first.pth", drop_unused_rows=True).config
    assert ours.num_keypoints_per_class == [max(schema)]
    (shown,) = set(second.data["class_name"])
    # A head of COCO's size without names: the official package has no name for row 0, its only one with keypoints.
    assert shown in ours.id2label.values() and (set(first.data["class_name"]) == {shown} or (row, names) == (0, None))
