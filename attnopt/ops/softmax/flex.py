"""`band_attention` by PyTorch's FlexAttention (arXiv:2412.05496): one kernel that keeps no scores, compiled on CUDA.

Only blocks of 128 x 128 pairs that the band touches are computed. 16-bit queries, keys and values are multiplied as
they are, with sums in float32; the output is rounded to them once.
"""

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from attnopt.ops.softmax.band import Prefix, band_attention
from attnopt.ops.softmax.spans import Part, merge
from attnopt.ops.tensors import MASKED, wide

BLOCK = 128
"""Queries and keys per block of FlexAttention's mask."""

PROGRAMS = 64
"""Most that one process may compile, by precision, bias, sharing of heads, and which of q, k, v take gradients."""

eager = band_attention


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scaling: float,
    *,
    bias: Tensor | None = None,
    prefix: Prefix | None = None,
) -> Part:
    """As `band.band_attention`; out in at least float32, from 16-bit products where the inputs are 16-bit."""
    if not q.dtype == k.dtype == v.dtype:
        q, k, v = wide(q, k, v)
    band = _band(k.shape[2] - q.shape[2], q.shape[2], k.shape[2], min(window, k.shape[2]), q.device)
    score_mod = None if bias is None else _by_distance(bias.float(), band.edges)
    grouped = q.shape[1] != k.shape[1]
    out, lse = _kernel(q.is_cuda)(
        q, k, v, score_mod=score_mod, block_mask=band.mask, scale=scaling, enable_gqa=grouped, **_lse_wanted()
    )
    part = out.float(), getattr(lse, "lse", lse).float().clamp(min=MASKED)
    return part if prefix is None else merge(part, prefix.attend(q, 0, scaling))


def example(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[list[Tensor], Any]:
    """A small case, as `dispatch.Kernel` says: 150 queries behind 20 past tokens, two query heads on each of two
    key heads, a window of 20, a bias."""
    generator, dim = torch.Generator().manual_seed(0), q.shape[3]
    shapes = (1, 4, 150, dim), (1, 2, 170, dim), (1, 2, 170, dim), (4, 20)
    leaves = [torch.randn(shape, generator=generator).to(q).requires_grad_() for shape in shapes]
    return leaves, lambda function: function(*leaves[:3], 20, dim**-0.5, bias=leaves[3])


class _Band(NamedTuple):
    """A band in FlexAttention's form.

    Attributes:
        mask: the blocks that the band touches, and the function that masks their entries.
        edges: (2,) past and window, as a tensor: the kernel reads them, so that other numbers need no other kernel.
    """

    mask: BlockMask
    edges: Tensor


@cache
def _kernel(cuda: bool) -> Any:
    """FlexAttention, compiled for CUDA.

    With fullgraph: without it a compiler that gives up would fall back to all scores in memory and not say so. It gives
    up after 8 programs for one function, which two mechanisms with and without gradients in two precisions exceed.
    """
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, PROGRAMS)
    return torch.compile(flex.flex_attention, fullgraph=True) if cuda else flex.flex_attention


def _lse_wanted() -> dict[str, Any]:
    """The arguments that ask for the log-sum-exp, which torch 2.9 changed."""
    return {"return_aux": flex.AuxRequest(lse=True)} if hasattr(flex, "AuxRequest") else {"return_lse": True}


def _by_distance(bias: Tensor, edges: Tensor) -> Any:
    """The function that adds bias (H or 1, window) to a score by its distance."""

    def score_mod(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = head if bias.shape[0] > 1 else torch.zeros_like(head)
        return score + bias[row, (edges[0] + query - key).clamp(0, bias.shape[1] - 1)]

    return score_mod


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _band(past: int, queries: int, keys: int, window: int, device: torch.device) -> _Band:
    """The band of `queries` queries behind `past` tokens over `keys` keys.

    It is made from the blocks that hold a key, as FlexAttention's own `create_block_mask` looks at all pairs.
    """
    edges = torch.tensor([past, window], device=device)
    rows, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    first_query = torch.arange(rows, device=device, dtype=torch.int32) * BLOCK
    last_query = (first_query + BLOCK).clamp(max=queries) - 1
    first = (past + first_query - window + 1).clamp(min=0) // BLOCK
    last = (past + last_query).clamp(max=keys - 1).div(BLOCK, rounding_mode="floor")
    indices = (first[:, None] + torch.arange(columns, device=device, dtype=torch.int32)) % columns

    def mask_mod(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = edges[0] + query - key
        return (distance >= 0) & (distance < edges[1])

    counts = (last - first + 1).clamp(min=0).to(torch.int32)
    mask = BlockMask.from_kv_blocks(
        counts[None, None],
        indices[None, None].to(torch.int32).contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(queries, keys),
    )
    return _Band(mask, edges)
