"""Random points that depend on their image and layer, not on the batch: a counter-based generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# SplitMix64's constants, as signed numbers: torch multiplies int64 modulo 2**64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_COORDINATE_BITS = 24  # of a float32 in [0, 1)


def scramble(numbers: Tensor) -> Tensor:
    """The step of SplitMix64 from a state to a random number: one to one, every bit depends on every bit.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

    Args:
        numbers: int64 of any shape.

    Returns:
        int64 of the same shape; the same on every device.
    """
    mixed = numbers + _GAMMA
    for bits, factor in _FACTORS:
        mixed = mixed.bitwise_xor_(_shift_right(mixed, bits)).mul_(factor)
    return mixed.bitwise_xor_(_shift_right(mixed, 31))


def _shift_right(numbers: Tensor, bits: int) -> Tensor:
    """With zeros for what comes in at the left, which `>>` fills with the sign."""
    return (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers, the order of which matters; computed on the host."""
    seed = 0
    for number in numbers:
        seed = (seed + number + _GAMMA) % 2**64
        for bits, factor in _FACTORS:
            seed = (seed ^ seed >> bits) * factor % 2**64
        seed ^= seed >> 31
    return seed - 2**64 if seed >= 2**63 else seed


def draw_points(keys: Tensor, count: int) -> Tensor:
    """The first points of one random stream per key.

    Args:
        keys: (M,) int64.
        count: points of each stream.

    Returns:
        (M, count, 2) float32, uniform in [0, 1).
    """
    counter = torch.arange(count, device=keys.device) * _GAMMA
    bits = scramble(keys[:, None] + counter)
    x = _shift_right(bits, 64 - _COORDINATE_BITS)
    y = _shift_right(bits, 64 - 2 * _COORDINATE_BITS).bitwise_and_((1 << _COORDINATE_BITS) - 1)
    return torch.stack((x.float(), y.float()), dim=-1).mul_(2.0**-_COORDINATE_BITS)


class RandomPoints(NamedTuple):
    """The random points of the images of a batch.

    Those of an image are the same in every batch that it is in, alone or beside others, on any process.

    Attributes:
        keys: (B,) int64, from the seed and the image.
    """

    keys: Tensor

    @classmethod
    def of(cls, targets: Sequence[Mapping[str, Tensor]], seed: int, device: torch.device) -> RandomPoints:
        """The points of some images under a seed.

        Args:
            targets: per image `image_id`, one integer; without it the position in the batch stands for it.
            seed: changes from step to step, and is the same for all parts of a step.
            device: where the points are made.
        """
        if all("image_id" in target for target in targets):
            numbers = torch.cat([target["image_id"].to(device, torch.int64).reshape(1) for target in targets])
        else:
            numbers = torch.arange(len(targets), device=device)
        return cls(scramble(numbers + derive_seed(seed)))

    def for_images(self, layers: int, count: int) -> Tensor:
        """(layers, B, count, 2): the points that all queries of an image share in each layer."""
        keys = self.keys + 2 * torch.arange(layers, device=self.keys.device)[:, None]  # (layers, B)
        return draw_points(scramble(keys.flatten()), count).unflatten(0, (layers, -1))

    def for_pairs(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """(M,) keys of each pair's own points, for `draw`.

        Args:
            layer, image, query: (M,) int64, layer, image and row of each pair.
        """
        return scramble(scramble(self.keys[image] + (2 * layer + 1)) + query)

    @staticmethod
    def draw(keys: Tensor, count: int) -> Tensor:
        """(M, count, 2), see `draw_points`."""
        return draw_points(keys, count)
