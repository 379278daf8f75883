"""Transformers' common tests, filled with our classes; run by test_transformers_common.py in a process of its own."""

import unittest

import torch
from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
)

BACKBONE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64,
    "patch_size": 16, "num_windows": 2, "out_indices": [1, 2],
}  # fmt: skip
FIELDS = {
    "resolution": 64, "num_labels": 3, "d_model": 32, "decoder_layers": 2, "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4, "decoder_ffn_dim": 48, "num_queries": 6, "group_detr": 2,
}  # fmt: skip


class ModelTester:
    """What the mixin asks of each model: a small configuration and inputs."""

    is_training = True
    batch_size = 3
    num_hidden_layers = FIELDS["decoder_layers"]
    num_attention_heads = FIELDS["decoder_self_attention_heads"]
    hidden_size = FIELDS["d_model"]
    seq_length = FIELDS["num_queries"]
    fields: dict = {}

    def get_config(self):
        return RFDETRConfig(backbone_config=dict(BACKBONE), **FIELDS, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        # The same picture always: where two proposals are nearly equal, half precision may swap them.
        pixels = torch.rand([self.batch_size, 3, 64, 64], generator=torch.Generator().manual_seed(0))
        return self.get_config(), {"pixel_values": pixels.to(torch_device)}

    def objects(self):
        """Two objects of a picture."""
        boxes = torch.tensor([[0.3, 0.3, 0.2, 0.3], [0.6, 0.7, 0.3, 0.2]])
        return {"class_labels": torch.tensor([0, 2]), "boxes": boxes}

    def labels(self):
        return [{k: v.to(torch_device) for k, v in self.objects().items()} for _ in range(self.batch_size)]


class SegmentationTester(ModelTester):
    def objects(self):
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 10:30, 12:26] = masks[1, 38:50, 28:48] = True
        return {**super().objects(), "masks": masks}


class KeypointTester(ModelTester):
    fields = {"num_keypoints_per_class": [2, 0, 3]}

    def objects(self):
        keypoints = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
        keypoints[..., 2] = 2.0
        return {**super().objects(), "keypoints": keypoints}


class Models(ModelTesterMixin):
    model_tester_class = ModelTester
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = self.model_tester_class()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": self.model_tester.labels()} if return_labels else inputs

    def test_config(self):
        tester = ConfigTester(self, config_class=RFDETRConfig, has_text_modality=False)
        tester.create_and_test_config_to_json_string()
        tester.create_and_test_config_to_json_file()
        tester.create_and_test_config_from_and_save_pretrained()
        tester.create_and_test_config_from_and_save_pretrained_subfolder()
        tester.create_and_test_config_from_and_save_pretrained_composite()
        tester.create_and_test_config_with_num_labels()
        tester.check_config_can_be_init_without_params()
        tester.check_config_arguments_init()


class DetectionModelTest(Models, unittest.TestCase):
    all_model_classes = (RFDETRForObjectDetection,)


class SegmentationModelTest(Models, unittest.TestCase):
    all_model_classes = (RFDETRForInstanceSegmentation,)
    model_tester_class = SegmentationTester


class KeypointModelTest(Models, unittest.TestCase):
    all_model_classes = (RFDETRForKeypointDetection,)
    model_tester_class = KeypointTester


class ProcessorTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 18, "width": 20})
        kwargs.setdefault("max_resolution", 80)
        super().__init__(parent, do_resize=True, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, **kwargs)

    def _get_image_processing_classes(self):
        return {"torch": RFDETRImageProcessor}


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ProcessorTester
    test_cast_dtype = True
