"""`feature_attention` by flash-linear-attention's chunked Triton kernels (`chunk_simple_gla` without a gate).

The normaliser is computed as one more column of values, all ones. So it is rounded exactly as the numerator is, and an
average of equal values is that value.
"""

from typing import Any

import torch
from torch import Tensor

from attnopt.ops.linear.chunked import LinearState, feature_attention
from attnopt.ops.tensors import repeat_heads

eager = feature_attention


def fused(q: Tensor, k: Tensor, v: Tensor, state: LinearState) -> tuple[Tensor, Tensor, LinearState]:
    """As `chunked.feature_attention`. Key heads are repeated, as the kernels want one for each query head."""
    from fla.ops.simple_gla import chunk_simple_gla

    heads = q.shape[1]
    with_ones = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    total, after = chunk_simple_gla(
        *(repeat_heads(x, heads).transpose(1, 2) for x in (q, k, with_ones)),
        scale=1.0,
        initial_state=repeat_heads(torch.cat([state.sums, state.norm[..., None]], -1), heads),
        output_final_state=True,
    )
    total, after = total.transpose(1, 2), after[:, :: heads // k.shape[1]]
    out, norm = total[..., :-1] / total[..., -1:], total[..., -1].contiguous()
    return out, norm, LinearState(after[..., :-1].contiguous(), after[..., -1].contiguous())


def example(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[list[Tensor], Any]:
    """A small case, as `dispatch.Kernel` says: 150 tokens after a state, two query heads on each of two key heads,
    features and values as wide as those given."""
    generator, (features, dim) = torch.Generator().manual_seed(0), (q.shape[3], v.shape[3])
    shapes = (1, 4, 150, features), (1, 2, 150, features), (1, 2, 150, dim), (1, 2, features, dim), (1, 2, features)
    centres = (0, 0, 0.5, 0.5, 0)
    drawn = [torch.rand(shape, generator=generator) - centre for shape, centre in zip(shapes, centres, strict=True)]
    leaves = [t.to(q).requires_grad_() for t in drawn]

    def call(function: Any) -> tuple[Tensor, ...]:
        out, norm, state = function(*leaves[:3], LinearState(*leaves[3:]))
        return out, norm, *state

    return leaves, call
