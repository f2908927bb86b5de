"""Attention of each query to the tokens of the blocks picked for it.

Blocks are not gathered per query. The (query, pick) pairs are sorted by block and cut into tiles of TILE pairs; a tile
is one small matrix product of its queries with its block (the loop order of Flash Sparse Attention, arXiv:2508.18224).
That moves n times fewer bytes, for blocks of n tokens. Shapes as in slots.py; Y rows of X at a time; W = n D.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops.nsa.slots import row_term, score_gradient, softmax_lse
from attnopt.ops.tensors import MASKED

TILE = 16
"""Pairs of a query and a pick per tile."""
PAIRS = 2**14
"""Pairs that are handled at a time."""


def picked_attention(q: Tensor, k: Tensor, v: Tensor, picks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Attention of each query to all tokens of its picked blocks.

    Args:
        q: (X, R, T, D).
        k, v: (X, N n, D), a whole number of blocks of `size` tokens; rows may lie apart in memory.
        picks: (X, T, P), the blocks of each query, -1 for none.
        size: n, tokens per block.

    Returns: out (X, R, T, D), lse (X, R, T).
    """
    k, v = (t.reshape(len(t), -1, size * t.shape[2]) for t in (k, v))
    out, lse = _Picked.apply(q.transpose(1, 2), picks, k, v)
    return out.transpose(1, 2), lse.transpose(1, 2)


class _Picked(torch.autograd.Function):
    """`picked_attention` of q (X, T, R, D) by picks (X, T, P), with keys and values (X, N, W)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, picks: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, saved = torch.empty_like(q), q.new_empty(q.shape[:3]), []
        for part in _parts(picks):
            tiles = _PairTiles(picks[part], keys.shape[1])
            k, v = tiles.blocks(keys[part], q), tiles.blocks(values[part], q)
            weights, lse[part] = tiles.softmax(tiles.queries(q[part]) @ k.transpose(1, 2))
            out[part] = tiles.sum_to_queries(weights, v)
            saved.append((tiles, weights))
        ctx.save_for_backward(q, picks, out, keys, values)
        ctx.saved = saved
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, picks, out, keys, values = ctx.saved_tensors
        d_q, row = torch.empty_like(q), row_term(out, d_out, d_lse)
        d_keys, d_values = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (keys, values))
        for part, (tiles, weights) in zip(_parts(picks), ctx.saved, strict=True):
            k, v = tiles.blocks(keys[part], q), tiles.blocks(values[part], q)
            q_tiles, d_tiles = tiles.queries(q[part]), tiles.queries(d_out[part])
            d_scores = score_gradient(weights, d_tiles @ v.transpose(1, 2), tiles.queries(row[part, ..., None])[..., 0])
            d_q[part] = tiles.sum_to_queries(d_scores, k)
            d_k, d_v = d_scores.transpose(1, 2) @ q_tiles, weights.transpose(1, 2) @ d_tiles
            d_keys[part], d_values[part] = tiles.sum_to_blocks(d_k), tiles.sum_to_blocks(d_v)
        return d_q, None, d_keys, d_values


def _parts(picks: Tensor) -> Iterator[slice]:
    """Runs of rows that hold about PAIRS pairs each."""
    step = max(1, PAIRS // picks[0].numel())
    return (slice(start, start + step) for start in range(0, len(picks), step))


class _PairTiles:
    """The pairs of picks (Y, T, P), numbered query by query, at places in tiles; a tile's pairs share a block.

    Attributes:
        block: (tiles,) its block, counted through all Y rows.
        query: (places,) the query at a place; any where it is empty.
        pair: (places,) the pair at a place; one past the last pair where it is empty.
        place: (pairs,) where a pair is; one past the last place where it picks nothing.
    """

    def __init__(self, picks: Tensor, blocks: int):
        self.shape, self.blocks_per_row = picks.shape, blocks
        rows, queries, count = picks.shape
        first = torch.arange(rows, device=picks.device)[:, None, None] * blocks
        block, order = torch.where(picks < 0, rows * blocks, picks + first).flatten().sort(stable=True)
        sizes = block.bincount(minlength=rows * blocks + 1)[:-1]
        tiles = (sizes + TILE - 1) // TILE
        used, total = torch.stack([sizes.sum(), tiles.sum()]).tolist()
        block, order = block[:used], order[:used]
        gaps = (tiles.cumsum(0) - tiles) * TILE - (sizes.cumsum(0) - sizes)
        places = torch.arange(used, device=picks.device) + gaps[block]
        self.place = torch.full((picks.numel(),), total * TILE, device=picks.device).index_copy_(0, order, places)
        self.pair = torch.full((total * TILE,), picks.numel(), device=picks.device).index_copy_(0, places, order)
        self.query = (self.pair // count).clamp_(max=rows * queries - 1)
        self.block = torch.arange(rows * blocks, device=picks.device).repeat_interleave(tiles, output_size=total)

    def queries(self, x: Tensor) -> Tensor:
        """Queries, or what belongs to them, tile by tile: (Y, T, R, D) to (tiles, TILE R, D)."""
        return x.reshape(-1, x.shape[2] * x.shape[3]).index_select(0, self.query).view(len(self.block), -1, x.shape[3])

    def blocks(self, table: Tensor, like: Tensor) -> Tensor:
        """Each tile's block, (tiles, n, D), in the precision of `like` (..., D), from a table (Y, N, W)."""
        if table.is_contiguous():
            found = table.flatten(0, 1).index_select(0, self.block)
        else:  # flattened it would be copied, however few blocks are read
            found = table[self.block // self.blocks_per_row, self.block % self.blocks_per_row]
        return found.view(len(self.block), -1, like.shape[-1]).to(like.dtype)

    def softmax(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax over the tokens of all picks of a query, whose scores lie in different tiles.

        Args:
            scores: (tiles, TILE R, n).

        Returns: weights (tiles, TILE R, n), zero at empty places; lse (Y, T, R).
        """
        rows, queries, picks = self.shape
        size, share = scores.shape[2], scores.shape[1] // TILE
        by_place = scores.view(-1, share * size)
        by_pair = by_place.index_select(0, self.place.clamp(max=len(by_place) - 1))
        by_pair[self.place == len(by_place)] = MASKED
        by_query = by_pair.view(-1, picks, share, size).transpose(1, 2).reshape(-1, share, picks * size)
        by_query, lse = softmax_lse(by_query)
        weights = scores.new_empty(len(self.place) + 1, share * size)
        weights[-1] = 0
        weights[:-1].view(-1, picks, share, size).copy_(by_query.view(-1, share, picks, size).transpose(1, 2))
        return weights.index_select(0, self.pair).view_as(scores), lse.view(rows, queries, share)

    def sum_to_queries(self, weights: Tensor, x: Tensor) -> Tensor:
        """The sum over a query's picks of weights (tiles, TILE R, n) @ x (tiles, n, D), (Y, T, R, D)."""
        rows, queries, picks = self.shape
        share, dim = weights.shape[1] // TILE, x.shape[2]
        by_place = x.new_empty(len(self.pair) + 1, share * dim)
        torch.bmm(weights, x, out=by_place[:-1].view(len(self.block), -1, dim))
        by_place[-1] = 0
        return F.embedding_bag(self.place.view(-1, picks), by_place, mode="sum").view(rows, queries, share, dim)

    def sum_to_blocks(self, x: Tensor) -> Tensor:
        """The sum of x (tiles, n, D) over the tiles of each block, (Y, N, W)."""
        total = x.new_zeros(self.shape[0] * self.blocks_per_row, x.shape[1] * x.shape[2])
        total.index_add_(0, self.block, x.flatten(1))
        return total.view(self.shape[0], self.blocks_per_row, -1)
