"""Plain Trainer, pipelines, int8 quantisation, offloading and supervision work with our classes as with the native."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from PIL import Image
from transformers import Trainer, TrainingArguments

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    make_shapes_dataset,
)

NAMES = ("circle", "square", "triangle")
TASKS = {
    "detection": (RFDETRForObjectDetection, {}),
    "segmentation": (RFDETRForInstanceSegmentation, {}),
    "keypoints": (RFDETRForKeypointDetection, {"num_keypoints_per_class": [1, 4, 3]}),
}
# What follows the loss and its terms in all outputs of detectors of transformers.
FIRST = ["loss", "loss_dict", "logits", "pred_boxes"]


@pytest.fixture
def detector(tiny_config):
    """Builds a model of a task whose scores are spread around a half: `detector("segmentation")`."""

    def build(task="detection"):
        model_class, fields = TASKS[task]
        torch.manual_seed(0)
        model = model_class(tiny_config(**fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape) * 0.05
            model.class_embed.bias.fill_(0.0)
        return model

    return build


@pytest.fixture
def processor():
    return RFDETRImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8))


def labels_of(task, count=2):
    rng = torch.Generator().manual_seed(0)
    labels = []
    for index in range(count):
        each = {
            "class_labels": torch.tensor([0, 2]),
            "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.3], [0.6, 0.7, 0.3, 0.2]]),
            "image_id": torch.tensor([index]),
        }
        if task == "segmentation":
            each["masks"] = torch.rand(2, 64, 64, generator=rng) > 0.7
        if task == "keypoints":
            each["keypoints"] = torch.cat([torch.rand(2, 4, 2, generator=rng), torch.full((2, 4, 1), 2.0)], -1)
        labels.append(each)
    return labels


# ---------------------------------------------------------------------------------------------------- order of outputs


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_have_the_order_of_detectors_of_transformers(detector, task, training):
    model = detector(task).train(training)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    output = model(pixels, labels=labels_of(task))
    assert list(output.keys())[:4] == FIRST
    assert output[0] is output.loss and output[2] is output.logits and output[3] is output.pred_boxes
    torch.manual_seed(0)
    as_tuple = model(pixels, labels=labels_of(task), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output)
    torch.testing.assert_close(as_tuple[0], output.loss)
    torch.testing.assert_close(as_tuple[2], output.logits)
    torch.testing.assert_close(as_tuple[3], output.pred_boxes)
    without = model(pixels)
    assert list(without.keys())[:2] == ["logits", "pred_boxes"] and "loss" not in without


# ---------------------------------------------------------------------------------------------------- plain Trainer


class Pictures(torch.utils.data.Dataset):
    """Shapes as the image processor prepares them, in the way of the object-detection script of transformers."""

    def __init__(self, rows, processor):
        self.rows, self.processor = rows, processor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        boxes = row["objects"]["bbox"]
        objects = [
            {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(boxes, row["objects"]["category"], strict=True)
        ]
        found = self.processor(picture, annotations={"image_id": row["image_id"], "annotations": objects})
        return {"pixel_values": found["pixel_values"][0], "labels": found["labels"][0]}


def collate(rows):
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": [row["labels"] for row in rows],
    }


def plain_arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=3,
        remove_unused_columns=False, eval_do_concat_batches=False, report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_num_workers=0, logging_steps=1, **options,
    )  # fmt: skip


def test_the_plain_trainer_trains_evaluates_and_saves(tmp_path, detector, processor):
    """The metrics of the object-detection script read logits and boxes at places 1 and 2 of a batch's predictions.

    (Accelerate cuts each tensor of the labels of a last, smaller batch to as many rows as it has pictures, so that
    script and test have complete batches.)
    """
    rows, model, seen = make_shapes_dataset(6, image_size=64, seed=1), detector(), []

    def compute_metrics(prediction):
        for batch, targets in zip(prediction.predictions, prediction.label_ids, strict=True):
            logits, boxes = torch.tensor(batch[1]), torch.tensor(batch[2])
            assert logits.shape[-1] == 3 and boxes.shape[-1] == 4 and logits.shape[:2] == boxes.shape[:2]
            sizes = torch.stack([torch.tensor(target["orig_size"]) for target in targets])
            output = SimpleNamespace(logits=logits, pred_boxes=boxes)
            seen.extend(processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes))
        return {"pictures": len(seen)}

    trainer = Trainer(
        model=model,
        args=plain_arguments(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3),
        train_dataset=Pictures(rows, processor),
        eval_dataset=Pictures(rows, processor),
        data_collator=collate,
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = trainer.train()
    assert result.training_loss > 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert row["eval_pictures"] == 6 and np.isfinite(row["eval_loss"])

    again = RFDETRForObjectDetection.from_pretrained(tmp_path / "checkpoint-3")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    saved = RFDETRImageProcessor.from_pretrained(tmp_path / "checkpoint-3")
    assert saved.to_dict() == processor.to_dict()


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
def test_the_plain_trainer_trains_the_other_tasks(tmp_path, detector, task):
    rows = [
        {"pixel_values": torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i)), "labels": each}
        for i, each in enumerate(labels_of(task, 4))
    ]
    trainer = Trainer(
        model=detector(task), args=plain_arguments(tmp_path), train_dataset=rows, eval_dataset=rows,
        data_collator=collate,
    )  # fmt: skip
    assert np.isfinite(trainer.train().training_loss)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_the_plain_trainer_goes_on_from_its_checkpoint(tmp_path, detector, processor):
    rows = Pictures(make_shapes_dataset(8, image_size=64, seed=1), processor)

    def trainer(**options):
        return Trainer(
            model=detector(), args=plain_arguments(tmp_path, save_strategy="steps", save_steps=1, **options),
            train_dataset=rows, data_collator=collate,
        )  # fmt: skip

    straight = trainer()
    straight.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3
    for name, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_the_plain_trainer_uses_gradient_checkpointing(tmp_path, detector, processor):
    rows = Pictures(make_shapes_dataset(4, image_size=64, seed=1), processor)
    options = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    trainer = Trainer(
        model=detector(), args=plain_arguments(tmp_path, **options), train_dataset=rows, data_collator=collate
    )
    assert np.isfinite(trainer.train().training_loss)


# ---------------------------------------------------------------------------------------------------- pipelines


def test_the_detection_pipeline_takes_our_objects(detector, processor, picture):
    model = detector()
    pipe = transformers.pipeline("object-detection", model=model, image_processor=processor)
    found = pipe(picture, threshold=0.5)
    with torch.no_grad():
        output = model(**processor(picture))
    ours = processor.post_process_object_detection(output, threshold=0.5, target_sizes=[(90, 140)])[0]
    assert len(found) == len(ours["scores"]) > 0
    assert [each["label"] for each in found] == [NAMES[label] for label in ours["labels"].tolist()]
    boxes = torch.tensor([list(each["box"].values()) for each in found])
    assert (boxes - ours["boxes"]).abs().max() <= 1.0  # Theirs are cut to integers.


def test_the_detection_pipeline_takes_lists_of_pictures(detector, processor, picture):
    pipe = transformers.pipeline("object-detection", model=detector(), image_processor=processor)
    upright = picture.resize((60, 120))
    found = pipe([picture, upright], threshold=0.0)
    assert len(found) == 2
    assert all(box["box"]["xmax"] <= 60 and box["box"]["ymax"] <= 120 for box in found[1])
    batched = pipe([picture, upright], threshold=0.0, batch_size=2)
    for alone, together in zip(found, batched, strict=True):
        scores = [[each["score"] for each in pictures] for pictures in (alone, together)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("subtask", [None, "instance"])
def test_the_segmentation_pipeline_takes_our_objects(detector, processor, picture, subtask):
    model = detector("segmentation")
    pipe = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    found = pipe(picture, threshold=0.3, **({"subtask": subtask} if subtask else {}))
    with torch.no_grad():
        output = model(**processor(picture))
    ours = processor.post_process_instance_segmentation(output, threshold=0.3, target_sizes=[(90, 140)])[0]
    assert found and found[0]["label"] == NAMES[ours["labels"][0]]
    assert found[0]["score"] == pytest.approx(ours["scores"][0].item(), abs=1e-4)
    for each in found:
        assert each["mask"].size == picture.size
    # A pixel belongs to one object there; the best one keeps all of its own.
    shown = np.array(found[0]["mask"]) > 0
    assert (shown == ours["masks"][0].numpy()).mean() > 0.99


# ---------------------------------------------------------------------------------------------------- quantisation


@pytest.fixture
def pair(tmp_path, detector):
    """Our model and the native one from the same folder."""
    pytest.importorskip("transformers.models.rf_detr")
    detector().save_pretrained(tmp_path / "model")
    return [
        loader.from_pretrained(tmp_path / "model").eval()
        for loader in (RFDETRForObjectDetection, transformers.AutoModelForObjectDetection)
    ]


def logits_of(model):
    with torch.no_grad():
        return model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS)
def test_dynamic_int8(detector, task):
    """As far from the float model as rounding is: the tiny weights of a random model round coarsely."""
    model = detector(task)
    before = logits_of(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert any("quantized.dynamic" in str(type(module)) for module in quantised.modules())
    after = logits_of(quantised)
    assert after.shape == before.shape and after.isfinite().all()
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.5


@pytest.mark.filterwarnings("ignore")
def test_dynamic_int8_is_that_of_the_native_model(pair):
    found = [logits_of(torch.ao.quantization.quantize_dynamic(m, {torch.nn.Linear}, dtype=torch.qint8)) for m in pair]
    torch.testing.assert_close(found[0], found[1], atol=0.1, rtol=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS)
def test_torchao_int8_weights(detector, task):
    quantization = pytest.importorskip("torchao.quantization")
    model = detector(task)
    before = logits_of(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert (logits_of(model) - before).abs().max() < 0.1 * before.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS)
def test_torchao_int8_weights_and_activations(detector, task):
    quantization = pytest.importorskip("torchao.quantization")
    model = detector(task)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    assert logits_of(model).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_torchao_through_from_pretrained(tmp_path, detector):
    quantization = pytest.importorskip("torchao.quantization")
    model = detector()
    model.save_pretrained(tmp_path)
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantised = RFDETRForObjectDetection.from_pretrained(tmp_path, quantization_config=config).eval()
    before = logits_of(model)
    assert (logits_of(quantised) - before).abs().max() < 0.1 * before.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
def test_half_precision_predicts(detector, task, dtype):
    model = detector(task)
    before = logits_of(model)
    with torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
        output = model.to(dtype)(pixels)
    assert output.logits.isfinite().all() and output.pred_boxes.isfinite().all()
    # In the order of their size: rounding may change which query comes first.
    both = torch.stack([before.flatten().sort().values, output.logits.float().flatten().sort().values])
    assert torch.corrcoef(both)[0, 1] > 0.97


# ---------------------------------------------------------------------------------------------------- supervision


def test_supervision_takes_our_masks(detector, processor, picture):
    """With the masks of overlapping objects one by one, as transformers calls it; boxes are those of the masks."""
    supervision = pytest.importorskip("supervision")
    model = detector("segmentation")
    with torch.no_grad():
        output = model(**processor(picture))
    found = processor.post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(90, 140)], return_binary_maps=True
    )[0]
    detections = supervision.Detections.from_transformers(found, id2label=model.config.id2label)
    assert len(detections) == len(found["scores"]) > 0
    assert (np.asarray(detections.mask).astype(bool) == found["masks"].numpy()).all()
    assert detections.class_id.tolist() == found["labels"].tolist()
    np.testing.assert_allclose(detections.confidence, found["scores"].numpy(), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_supervision_takes_our_masks_with_the_boxes_of_the_model(detector, processor, picture, threshold, tmp_path):
    supervision = pytest.importorskip("supervision")
    model = detector("segmentation")
    with torch.no_grad():
        output = model(**processor(picture))
    options = {"threshold": threshold, "target_sizes": [picture.size[::-1]]}
    found = processor.post_process_instance_segmentation(output, **options)[0]
    names = model.config.id2label
    detections = supervision.Detections.from_transformers({**found, "masks": found["masks"][:, None]}, names)
    (maps,) = processor.post_process_instance_segmentation(output, return_binary_maps=True, **options)
    assert len(supervision.Detections.from_transformers(maps, names)) == len(maps["segments_info"])
    assert len(detections) == len(found["scores"]) == len(detections.mask) and bool(len(detections)) == (threshold < 1)
    np.testing.assert_array_equal(detections.xyxy, found["boxes"].numpy())
    np.testing.assert_array_equal(detections.mask, found["masks"].numpy())


def test_supervision_takes_our_boxes(detector, processor, picture):
    supervision = pytest.importorskip("supervision")
    model = detector()
    with torch.no_grad():
        output = model(**processor(picture))
    found = processor.post_process_object_detection(output, threshold=0.3, target_sizes=[(90, 140)])[0]
    detections = supervision.Detections.from_transformers(found, id2label=model.config.id2label)
    assert list(detections.data["class_name"]) == [NAMES[label] for label in found["labels"].tolist()]


@pytest.mark.parametrize("task", TASKS)
def test_offloaded_models_predict_as_they_did(task, tiny_config, tmp_path):
    """What a module has offloaded is here within its `forward` alone: tables, norms and joined layers too."""
    model_class, fields = TASKS[task]
    torch.manual_seed(0)
    model, pixels = model_class(tiny_config(**fields)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = model(pixels)
        for offload in (cpu_offload, lambda model, device: disk_offload(model, str(tmp_path), device)):
            found = offload(copy.deepcopy(model), torch.device("cpu"))(pixels)
            for name in expected:
                if name == "logits" or name.startswith("pred_"):
                    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
