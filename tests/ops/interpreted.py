"""Run by test_dispatch.py under TRITON_INTERPRET=1: prints the largest deviation of the fused linear attention.

The interpreter lacks two things that these kernels use: a driver to tune them by, where the first choice will do, and
tensors for the numbers of a loop.
"""

import builtins
from collections.abc import Iterator

import torch
import triton.language as tl
from fla.ops.common import chunk_h
from triton.runtime.autotuner import Autotuner

from attnopt.ops import dispatch as kernels
from attnopt.ops.linear import gla

tuned = Autotuner.run


def first_choice(self, *args, **kwargs):
    self.configs = self.configs[:1]
    return tuned(self, *args, **kwargs)


def tensors(*limits) -> Iterator[tl.tensor]:
    return (tl.full([], i, tl.int32) for i in builtins.range(*map(int, limits)))


Autotuner.run = first_choice
chunk_h.range = tensors
worst = 0.0
for features, dim in ((16, 16), (33, 24)):
    leaves, call = gla.example(torch.empty(1, 1, 1, features), torch.empty(0), torch.empty(1, 1, 1, dim))
    got, expected = (kernels._with_gradients(f, leaves, call) for f in (gla.fused, gla.eager))
    worst = max(worst, *map(kernels._deviation, got, expected))
print(worst)
