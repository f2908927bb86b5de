"""Attention to near tokens: the last w up to the token itself, and what is left of the block in which they begin.

Queries are cut into tiles; a tile is one small matrix product with its keys, which are its own tokens and the `back`
before them. Shapes as in slots.py; a region is the L tokens that end with the last query.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops.nsa.slots import Layout, row_term, score_gradient, softmax_lse
from attnopt.ops.tensors import MASKED

TILE = 32
"""Queries per tile, rounded to whole blocks."""


def near_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Attention of each query to its near tokens.

    Args:
        q: (X, R, T, D).
        k, v: (X, L, D), the region that begins at `layout.start`.
        layout: where the queries stand.

    Returns: out (X, R, T, D), lse (X, R, T).
    """
    return _Near.apply(q, k, v, layout)


class _Near(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        tiles = _QueryTiles(q, k, layout)
        q, k, v = tiles.of_queries(q), tiles.of_region(k), tiles.of_region(v)
        weights, lse = softmax_lse(tiles.masked(q @ k.transpose(1, 2)))
        out = weights @ v
        ctx.save_for_backward(q, k, v, weights, out)
        ctx.tiles = tiles
        return tiles.to_queries(out), tiles.to_queries(lse[..., None])[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out = ctx.saved_tensors
        tiles: _QueryTiles = ctx.tiles
        d_out, d_lse = tiles.of_queries(d_out), tiles.of_queries(d_lse[..., None])[..., 0]
        d_scores = score_gradient(weights, d_out @ v.transpose(1, 2), row_term(out, d_out, d_lse))
        d_q, d_k, d_v = d_scores @ k, d_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ d_out
        return tiles.to_queries(d_q), tiles.to_region(d_k), tiles.to_region(d_v), None


class _QueryTiles:
    """How queries and keys are cut into tiles.

    Attributes:
        size, count: a row of X has `count` tiles of `size` queries.
        lead, padding: how many of a row's first and last queries are padding, so that tiles begin with blocks.
        back: how many tokens before a tile are among its keys; its own tokens are the others.

    A few queries are one tile without padding, whose keys are the whole region.
    """

    def __init__(self, q: Tensor, k: Tensor, layout: Layout):
        self.rows, self.share, self.new, _ = q.shape
        self.region, self.layout = k.shape[1], layout
        before, size = self.region - self.new, max(TILE // layout.size * layout.size, layout.size, layout.back)
        if self.region <= size or self.new <= TILE - layout.size:
            self.size, self.count, self.lead, self.back = self.new, 1, 0, before
        else:
            self.size, self.count, self.lead, self.back = size, -(-self.region // size), before, layout.back
        self.padding = self.count * self.size - self.lead - self.new

    def of_queries(self, x: Tensor) -> Tensor:
        """Queries, or what belongs to them, tile by tile: (X, R, T, i) to (X count, R size, i)."""
        if self.lead or self.padding:
            x = F.pad(x, (0, 0, self.lead, self.padding))
        return x.unflatten(2, (self.count, self.size)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def to_queries(self, x: Tensor) -> Tensor:
        """The inverse of `of_queries`."""
        x = x.view(self.rows, self.count, self.share, self.size, -1).transpose(1, 2).flatten(2, 3)
        return x[:, :, self.lead : self.lead + self.new]

    def of_region(self, x: Tensor) -> Tensor:
        """Keys or values tile by tile: (X, L, D) to (X count, back + size, D), a view in which tiles overlap.

        Before a row's first tile stands the end of the row before, which is never read.
        """
        if self.count == 1:
            return x
        dim = x.shape[2]
        joined = x.new_zeros(self.back + self.rows * self.count * self.size, dim)
        joined[self.back :].view(self.rows, -1, dim)[:, : self.region] = x
        shape = (self.rows * self.count, self.back + self.size, dim)
        return joined.as_strided(shape, (self.size * dim, dim, 1))

    def to_region(self, x: Tensor) -> Tensor:
        """Gradients of keys or values summed over the tiles that share them: (X count, back + size, D) to (X, L, D)."""
        if self.count == 1:
            return x
        own, before = x[:, self.back :], x[:, : self.back]
        own[:-1, self.size - self.back :] += before[1:]
        return own.reshape(self.rows, -1, x.shape[2])[:, : self.region]

    def masked(self, scores: Tensor) -> Tensor:
        """The scores (X count, R size, back + size), in place, with MASKED for tokens that are not near."""
        one, layout = self.count == 1, self.layout
        query = torch.arange(self.size, device=scores.device)[:, None] + (self.back if one else 0)
        key = torch.arange(self.back + self.size, device=scores.device) - (0 if one else self.back)
        mask = (key > query) | (key < (query + 1 - layout.window) // layout.size * layout.size)
        by_tile = scores.view(-1, self.count, self.share, *mask.shape).masked_fill_(mask, MASKED)
        if not one:
            by_tile[:, 0, ..., : self.back] = MASKED
        return scores
