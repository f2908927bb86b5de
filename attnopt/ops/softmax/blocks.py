"""Attention by blocks of positions: each query to its own block, exactly, and to what stands for the blocks before it.

Positions are cut into blocks of n tokens, counted from the start of the sequence. The block in which a query stands is
open to it: it reads the tokens up to itself. The blocks before are complete, and read in whatever form they are kept.
(out, lse) as in `spans`. O(T n) and O(T S') time, for S' keys that stand for the complete blocks; O(T + S') memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.ops.softmax.spans import QUERY_SPAN, Part, attend, attend_heads, in_spans
from attnopt.ops.tensors import MASKED, wide


def own_block_attention(q: Tensor, k: Tensor, v: Tensor, size: int, scaling: float) -> Part:
    """Attention of each query to its own block, up to itself.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, S, D), from the start of the block in which the first query stands to the last query.
        size: n, tokens per block.
        scaling: the factor on q . k.

    Returns: out (B, H, T, D), lse (B, H, T).
    """
    q, k, v = wide(q, k, v)
    tokens, count, group = q.shape[2], k.shape[2], (k.shape[1], q.shape[1] // k.shape[1])
    if count <= size:
        mask = torch.full((tokens, count), MASKED, dtype=q.dtype, device=q.device).triu(count - tokens + 1)
        return attend_heads(q, k, v, mask, scaling)
    behind = -count % size
    q = F.pad(q, (0, 0, count - tokens, behind)).unflatten(2, (-1, size)).unflatten(1, group).transpose(2, 3)
    k, v = (F.pad(t, (0, 0, 0, behind)).unflatten(2, (-1, size)) for t in (k, v))
    mask = torch.full((size, size), MASKED, dtype=q.dtype, device=q.device).triu(1).repeat(1, 1, 1, group[1], 1)
    out, lse = attend(q.flatten(3, 4), k, v, mask, scaling)
    out, lse = (t.unflatten(3, (group[1], size)).transpose(2, 3).flatten(3, 4).flatten(1, 2) for t in (out, lse))
    return out[:, :, count - tokens : count], lse[:, :, count - tokens : count]


def earlier_blocks_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: int, size: int, slots: int, scaling: float, mass: float = 0.0
) -> Part:
    """Attention of each query to what stands for all blocks before its own.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, N m, D), m keys and values for each of N >= 1 complete blocks.
        seen: the position of the first query.
        size: n, tokens per block.
        slots: m, keys that stand for a block.
        scaling: the factor on q . k.
        mass: added to the scores.

    Returns: out (B, H, T, D), lse (B, H, T); no key for queries in the first block.
    """

    def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        count = max(1, (seen + stop - 1) // size) * slots
        return q[:, :, start:stop], k[:, :, :count], v[:, :, :count]

    def attend_span(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> Part:
        before = torch.arange(seen + start, seen + stop, device=q.device)[:, None] // size * slots
        hidden = torch.arange(k.shape[2], device=q.device) >= before
        mask = torch.full_like(hidden, mass, dtype=q.dtype).masked_fill(hidden, MASKED)
        return attend_heads(q, k, v, mask, scaling)

    return in_spans(attend_span, cut, wide(q, k, v), q.shape[2], QUERY_SPAN // 2)
