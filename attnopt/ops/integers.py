"""Numbers as small integers: a grid of 2^bits levels over each group of numbers, and levels packed into bytes.

    level = round((x - low) / step),   x ~ low + step level,   low = min x,  step = (max x - low) / (2^bits - 1)

low and step are kept in float16, rounded so that the grid still covers the group: no number is further from its level
than step / 2. Numbers beyond float16's largest are cut off there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.tensors import wide

LARGEST = 65504.0
"""The largest number of float16."""


class Grid(NamedTuple):
    """The levels of groups of numbers.

    Attributes:
        low: the lowest level of each group, float16.
        step: from a level to the next, float16; 0 where all numbers of a group are the same.
    """

    low: Tensor
    step: Tensor


@torch.no_grad()
def grid_of(x: Tensor, dim: int, bits: int) -> Grid:
    """The grid of the numbers of x along a dimension, which has size 1 in it."""
    (x,) = wide(x)
    least, most = (t.clamp(-LARGEST, LARGEST) for t in (x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)))
    low = _half(least, up=False)
    return Grid(low, _half((most - low.to(x.dtype)) / (2**bits - 1), up=True))


@torch.no_grad()
def to_levels(x: Tensor, grid: Grid, bits: int) -> Tensor:
    """The nearest levels, uint8 of x's shape."""
    (x,) = wide(x)
    step = grid.step.to(x.dtype)
    level = (x - grid.low.to(x.dtype)) / step.where(step > 0, 1)
    return level.round().clamp(0, 2**bits - 1).to(torch.uint8)


def from_levels(level: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The numbers that levels stand for, computed in `dtype`, float32 or float64."""
    return grid.low.to(dtype) + grid.step.to(dtype) * level.to(dtype)


def pack(level: Tensor, bits: int) -> Tensor:
    """Levels (..., n), uint8, in (..., n bits / 8) bytes; with 4 bits the even places are the low halves. n is even."""
    return level if bits == 8 else level[..., ::2] | (level[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    return packed if bits == 8 else torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def hadamard(size: int, like: Tensor) -> Tensor:
    """The normalised Hadamard matrix (size, size), symmetric and its own inverse. `size` is a power of two."""
    one = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while len(one) < size:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    return one * size**-0.5


def _half(x: Tensor, up: bool) -> Tensor:
    """x in float16, rounded up or down; numbers that it holds stay."""
    near, sign = x.half(), 1 if up else -1
    missed = sign * (x - near.to(x.dtype)) > 0
    beyond = (x + sign * (x.abs() * 2**-10 + 2**-24)).clamp(-LARGEST, LARGEST).half()
    return torch.where(missed, beyond, near)
