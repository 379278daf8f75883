"""Rebuild the models and inputs of the golden numbers (`tests/golden/*.pt`), in float64.

The goldens hold outputs only. Weights and inputs come from seeded generators, by the rules that made them:

* the seed of a parameter is the CRC-32 of its name, xor 1; its values are standard normal noise, scaled by
  0.8 / sqrt(fan in) for matrices and kernels, by 0.1 if the last part of the name contains "embed", and by 0.05 around
  1 (vectors named weight, lambda1 or layer_scale) or around 0 (other vectors);
* a batch takes from one generator the pixels first, then for each image: centres, sizes, classes, and for keypoint
  models positions and states of the keypoints; a true mask is the inside of its box.

Everything is float64. For the training numbers of the segmentation models the casts to float32 in the official
criterion and matcher were turned into casts to float64; those in the model, which are its own, were left.

To keep the files small, the masks of the golden evaluation are every other row and column of the first 4 queries (of
seg-nano; of the larger models every 4th to 6th of the first 2), and the keypoints those of the first 25.
"""

import math
import zlib

import torch
from torch import Tensor, nn


def golden_parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of the parameter `name`."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ 1)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) == 1:
        around_one = name.endswith(("weight", "lambda1", "layer_scale"))
        return noise * 0.05 + float(around_one)
    is_table = "embed" in name.rsplit(".", 1)[-1]
    return noise * (0.1 if is_table else 0.8 / math.sqrt(math.prod(shape[1:])))


def golden_model(model: nn.Module) -> nn.Module:
    """Give `model` (turned to float64 in place) the golden weights."""
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(golden_parameter(name, tuple(parameter.shape)))
    return model


def golden_batch(golden: dict, step: int | None = None) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Pixels and labels of the golden evaluation and training numbers, or of a step of the golden training curve."""
    seed = golden["seed"] + 1 + (0 if step is None else 1000 * (step + 1))
    generator = torch.Generator().manual_seed(seed)
    side, images = golden["resolution"], len(golden["boxes"])
    pixels = torch.randn(images, 3, side, side, generator=generator, dtype=torch.float64)
    labels = []
    for count in golden["boxes"]:
        centres = 0.15 + 0.7 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        sizes = 0.03 + 0.25 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        classes = torch.randint(0, golden["num_classes"], (count,), generator=generator)
        labels.append({"boxes": torch.cat([centres, sizes], 1), "class_labels": classes})
        if golden["task"] == "segmentation":
            labels[-1]["masks"] = box_masks(labels[-1]["boxes"], side)
        if golden["task"] == "keypoints":
            keypoints = torch.rand(count, 17, 3, generator=generator, dtype=torch.float64)
            keypoints[..., 2] = torch.randint(0, 3, (count, 17), generator=generator)
            labels[-1]["keypoints"] = keypoints
    return pixels, labels


def box_masks(boxes: Tensor, side: int) -> Tensor:
    """(n, side, side) bool, the pixels whose upper left corner is inside the box."""
    grid = torch.arange(side, dtype=boxes.dtype) / side
    x, y = ((grid - boxes[:, None, axis]).abs() < boxes[:, None, 2 + axis] / 2 for axis in (0, 1))
    return y[:, :, None] & x[:, None, :]


def golden_wide_batch(golden: dict) -> tuple[Tensor, Tensor]:
    """Two wide images, the second padded on its right third, and their pixel mask."""
    generator = torch.Generator().manual_seed(golden["seed"] + 1 + 100)
    height = golden["resolution"]
    width = height + 2 * golden["config"]["patch_size"] * golden["config"]["num_windows"]
    pixels = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, height, width, dtype=torch.int64)
    mask[1, :, 2 * width // 3 :] = 0
    return pixels * mask[:, None], mask
