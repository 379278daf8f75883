"""Pipelines of plain transformers on our folders; they need torchvision."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from rfdetr_hf import RFDETRForInstanceSegmentation, RFDETRForObjectDetection, RFDETRImageProcessor

pytest.importorskip("torchvision")
SMOOTHS_WHEN_SHRINKING = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)


@pytest.mark.skipif(SMOOTHS_WHEN_SHRINKING, reason="transformers before 5.18 resizes with antialiasing")
def test_pipeline_gives_our_detections(deep_config, tmp_path):
    torch.manual_seed(0)
    model = RFDETRForObjectDetection(deep_config(resolution=128, id2label=dict(enumerate("abcde")))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
        model.class_embed.bias.fill_(0.0)
    processor = RFDETRImageProcessor(size={"height": 128, "width": 128})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype("uint8"))

    with torch.no_grad():
        output = model(**processor(picture))
    ours = processor.post_process_object_detection(output, threshold=0.5, target_sizes=[(150, 200)])[0]
    theirs = transformers.pipeline("object-detection", model=str(tmp_path))(picture, threshold=0.5)

    assert len(theirs) == len(ours["scores"]) > 3
    assert [item["label"] for item in theirs] == [model.config.id2label[label] for label in ours["labels"].tolist()]
    scores, boxes = [item["score"] for item in theirs], [list(item["box"].values()) for item in theirs]
    torch.testing.assert_close(torch.tensor(scores), ours["scores"], atol=1e-4, rtol=0)
    assert (torch.tensor(boxes) - ours["boxes"]).abs().max() <= 1.0  # Theirs are cut to whole pixels.


@pytest.mark.skipif(SMOOTHS_WHEN_SHRINKING, reason="transformers before 5.18 resizes with antialiasing")
def test_pipeline_gives_our_masks(deep_config, tmp_path):
    """As docs/guides/model-files.md does it: from the name of a folder the pipeline looks for other classes."""
    torch.manual_seed(0)
    names = dict(enumerate("abcde"))
    model = RFDETRForInstanceSegmentation(deep_config(resolution=128, id2label=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
        model.class_embed.bias.fill_(0.0)
    processor = RFDETRImageProcessor(size={"height": 128, "width": 128})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype("uint8"))
    plain = transformers.AutoModelForInstanceSegmentation.from_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    found = transformers.pipeline("image-segmentation", model=plain, image_processor=theirs)(picture, threshold=0.3)

    with torch.no_grad():
        output = model(**processor(picture))
    ours = processor.post_process_instance_segmentation(output, threshold=0.3, target_sizes=[(150, 200)])[0]
    assert found[0]["label"] == names[ours["labels"][0].item()]
    assert found[0]["score"] == pytest.approx(ours["scores"][0].item(), abs=1e-4)
    # Theirs is a map in which each pixel belongs to one object of those that cover it.
    shown = np.array(found[0]["mask"]) > 0
    assert shown.sum() > 1000 and (shown & ~ours["masks"][0].numpy()).mean() < 0.002


@pytest.mark.parametrize("subtask", [None, "instance"])
def test_pipeline_on_our_own_classes(deep_config, subtask):
    torch.manual_seed(0)
    names = dict(enumerate("abcde"))
    model = RFDETRForInstanceSegmentation(deep_config(resolution=128, id2label=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
        model.class_embed.bias.fill_(0.0)
    processor = RFDETRImageProcessor(size={"height": 128, "width": 128})
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype("uint8"))
    pipeline = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    found = pipeline(picture, threshold=0.3, **({} if subtask is None else {"subtask": subtask}))
    with torch.no_grad():
        output = model(**processor(picture))
    options = {"threshold": 0.3, "target_sizes": [(150, 200)]}
    ours = processor.post_process_instance_segmentation(output, **options)[0]
    assert found[0]["label"] == names[ours["labels"][0].item()] and found[0]["mask"].size == (200, 150)
    assert np.array_equal(np.array(found[0]["mask"]) > 0, ours["masks"][0].numpy())
    covered = np.stack([np.array(each["mask"]) > 0 for each in found])
    assert (covered.sum(0) <= 1).all() and np.array_equal(covered.any(0), ours["masks"].any(0).numpy())
    maps = processor.post_process_instance_segmentation(output, **options, return_binary_maps=True)[0]
    assert torch.equal(maps["segmentation"], ours["masks"][ours["masks"].flatten(1).any(1)])
    assert [segment["id"] for segment in maps["segments_info"]] == list(range(len(maps["segmentation"])))
    with pytest.raises(ValueError, match="mask_threshold=1.5"):
        processor.post_process_instance_segmentation(output, **options, mask_threshold=1.5)
