"""The official package itself reads what we write, and we read what it writes.

Needs it installed, with its training extra: `pip install "rfdetr[train]==1.11.2"`, then
`pytest -m slow tests/models/test_official_package.py`.
"""

import numpy as np
import pytest
import torch
from parity import golden_model
from PIL import Image

from rfdetr_hf.models.checkpoints import OFFICIAL_CLASSES, official_labels
from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig
from rfdetr_hf.models.image_processing_rfdetr import RFDETRImageProcessor
from rfdetr_hf.models.modeling_rfdetr import RFDETRForObjectDetection

pytestmark = pytest.mark.slow
rfdetr = pytest.importorskip("rfdetr", reason='needs pip install "rfdetr[train]==1.11.2"')
DETECTORS = ("nano", "small", "medium", "base", "large", "large-deprecated")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype("uint8"))


def our_detections(model, picture, threshold):
    side = model.config.resolution
    processor = RFDETRImageProcessor(size={"height": side, "width": side})
    with torch.no_grad():
        output = model.eval()(**processor(picture))
    return processor.post_process_object_detection(output, threshold=threshold, target_sizes=[picture.size[::-1]])[0]


def assert_same_detections(found, wanted):
    """`found` of ours, `wanted` a supervision.Detections."""
    assert len(wanted) == len(found["scores"]) > 50
    np.testing.assert_allclose(found["scores"], wanted.confidence, atol=1e-5)
    matching = found["labels"].numpy() == wanted.class_id
    assert matching.mean() > 0.99  # Neighbours in a ranking with equal scores may change places.
    np.testing.assert_allclose(found["boxes"].numpy()[matching], wanted.xyxy[matching], atol=0.05)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("labels", [{0: "ant", 1: "bee", 2: "cat"}, official_labels(91)], ids=["own", "coco"])
def test_written_file_predicts_equally(name, labels, picture, tmp_path):
    model = golden_model(RFDETRForObjectDetection(RFDETRConfig.from_variant(name, id2label=labels))).float()
    model.save_official(tmp_path / "model.pth")
    official = rfdetr.RFDETR.from_checkpoint(tmp_path / "model.pth", device="cpu")
    assert official.model_config.resolution == model.config.resolution
    assert official.class_names == [name for name in labels.values() if name != "N/A"]
    state = official.model.model.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(state[key][: len(tensor)], tensor), key
    wanted = official.predict(picture, threshold=0.5)
    assert_same_detections(our_detections(model, picture, 0.5), wanted)
    assert (wanted.class_id < len(labels)).all()
    assert [labels[index] for index in wanted.class_id] == list(wanted.data["class_name"]) or "N/A" in labels.values()


@pytest.mark.parametrize("name", DETECTORS)
def test_official_file_comes_back_equal(name, picture, tmp_path):
    """official -> ours -> official: equal tensors and equal predictions."""
    import rfdetr.variants as variants

    torch.manual_seed(0)
    settings = {"num_classes": 3, "pretrain_weights": None, "device": "cpu"}
    first = getattr(variants, OFFICIAL_CLASSES[name])(**settings)
    golden_model(first.model.model).float()
    first.model.class_names = ["ant", "bee", "cat"]
    fields = first.model_config.model_dump(mode="json")
    state = first.model.model.state_dict()
    payload = {"model": state, "args": {"class_names": first.model.class_names}, "model_config": fields}
    torch.save({**payload, "model_name": OFFICIAL_CLASSES[name]}, tmp_path / "first.pth")

    model = RFDETRForObjectDetection.from_official(tmp_path / "first.pth")
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "N/A"}
    model.save_official(tmp_path / "second.pth")
    second = rfdetr.RFDETR.from_checkpoint(tmp_path / "second.pth", device="cpu")
    back = second.model.model.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert second.class_names == ["ant", "bee", "cat"]
    left, right = (side.predict(picture, threshold=0.5) for side in (first, second))
    assert len(left) > 50 and np.array_equal(left.xyxy, right.xyxy)
    assert np.array_equal(left.confidence, right.confidence) and np.array_equal(left.class_id, right.class_id)
