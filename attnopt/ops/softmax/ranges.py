"""Softmax attention where each query attends a short range of a list of keys, in any order of the queries.

Queries whose ranges end in the same stretch of BLOCK keys are gathered into blocks of at most BLOCK, each with the keys
that its ranges can reach: about (M + S) (BLOCK + width) scores for M queries and S keys, whatever the ranges.
(out, lse) as in `spans`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.softmax.spans import BLOCK, QUERY_SPAN, Part, attend, in_spans
from attnopt.ops.tensors import MASKED, wide


class Blocks(NamedTuple):
    """N blocks of queries, of BLOCK places each. All indices count through all rows of the batch.

    Attributes:
        query: (N, BLOCK) the query at each place; some query, to be ignored, where the place is empty.
        key: (N,) the first key of the stretch in which the block's ranges end.
        place: (X M,) the place of each query, counted through all blocks.
    """

    query: Tensor
    key: Tensor
    place: Tensor


def range_attention(q: Tensor, k: Tensor, v: Tensor, start: Tensor, stop: Tensor, width: int, scaling: float) -> Part:
    """Each query attends the keys start:stop of its row.

    Args:
        q: (X, M, D), in any order.
        k, v: (X, S, D).
        start, stop: (X, M) with 0 <= start <= stop <= S and stop - start <= width.
        width: the longest range there may be.
        scaling: the factor on q . k.

    Returns: out (X, M, D), lse (X, M); an lse of about MASKED and a meaningless out for an empty range.
    """
    q, k, v = wide(q, k, v)
    shape, size = q.shape, k.shape[1]
    row = torch.arange(shape[0], device=q.device)[:, None] * size
    start, stop = (row + start).flatten(), (row + stop).flatten()
    blocks = group((stop - 1).clamp(min=0), k.shape[0] * size)
    start, stop = start[blocks.query], stop[blocks.query]
    reach, stretch = -(-(BLOCK + width - 1) // 16) * 16, blocks.key.tolist()

    def cut(first: int, last: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        keys = slice(max(0, stretch[first] + BLOCK - reach), stretch[last - 1] + BLOCK)
        return q[first:last], k[keys], v[keys]

    def attend_blocks(first: int, last: int, q: Tensor, k: Tensor, v: Tensor) -> Part:
        key = blocks.key[first:last, None] + torch.arange(BLOCK - reach, BLOCK, device=q.device)
        outside = (key[:, None] < start[first:last, :, None]) | (key[:, None] >= stop[first:last, :, None])
        mask = torch.zeros_like(outside, dtype=q.dtype).masked_fill(outside, MASKED)
        key = (key - max(0, stretch[first] + BLOCK - reach)).clamp(0, len(k) - 1)
        k, v = (t.index_select(0, key.flatten()).view(*key.shape, -1) for t in (k, v))
        out, lse = attend(q[None], k[None], v[None], mask[None], scaling)
        return out[0], lse[0]

    q = q.flatten(0, 1).index_select(0, blocks.query.flatten()).view(*blocks.query.shape, -1)
    out, lse = in_spans(attend_blocks, cut, (q, k.flatten(0, 1), v.flatten(0, 1)), len(stretch), QUERY_SPAN // 2, dim=0)
    out, lse = out.flatten(0, 1).index_select(0, blocks.place), lse.flatten().index_select(0, blocks.place)
    return out.view(shape), lse.view(shape[:2])


def group(last: Tensor, keys: int) -> Blocks:
    """Queries gathered into blocks by the stretch of BLOCK keys in which their ranges end.

    Args:
        last: (X M,) the last key of each query's range, counted through all rows.
        keys: X S, how many keys there are.
    """
    stretch = last // BLOCK
    order = stretch.argsort(stable=True)
    counts = torch.bincount(stretch, minlength=-(-keys // BLOCK))
    blocks = -(-counts // BLOCK)
    ends, first = blocks.cumsum(0), counts.cumsum(0) - counts
    rank = torch.arange(len(last), device=last.device) - first[stretch[order]]
    place = torch.empty_like(order)
    place[order] = (ends - blocks)[stretch[order]] * BLOCK + rank
    query = order.new_zeros(int(ends[-1]) * BLOCK).index_copy(0, place[order], order)
    key = torch.repeat_interleave(blocks) * BLOCK
    return Blocks(query.view(-1, BLOCK), key, place)
