"""Causal linear attention: matmuls inside chunks of tokens, a carried state between them.

    w_ts = q_t . k_s > 0               the weight of key s for query t; q and k are features
    out_t = sum_{s<=t} w_ts v_s / n_t,   n_t = sum_{s<=t} w_ts

Nothing of size T x T or T x F x D is made. Source: the chunkwise parallel form of linear attention, as in Yang et al.
2024, arXiv:2312.06635, here with the normaliser n.
Shapes as in mechanisms/base.py; here N chunks of C tokens, X = B G, and R = H / G query heads on each key head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops import dispatch
from attnopt.ops.output_pieces import Pieces

CHUNK = 64
"""Tokens per chunk: within one all pairs are computed, between chunks the state is carried."""
CPU_ROWS, ROWS = 2**12, 2**18
"""Rows (tokens x heads x sequences) handled at a time: on a CPU what a core's cache holds, else to bound memory."""

LIMIT = 40.0
"""Bound on the exponents of features: products of two and sums of many stay far from float32's ends."""


class LinearState(NamedTuple):
    """All that linear attention remembers, in the dtype of the features.

    Attributes:
        sums: (B, G, F, D) the sum of k v^T over the tokens.
        norm: (B, G, F) the sum of k.
    """

    sums: Tensor
    norm: Tensor


Map = Callable[[Tensor], Tensor]
Maps = tuple[Map, Map]


def _same(x: Tensor) -> Tensor:
    return x


def empty_state(k: Tensor, v: Tensor) -> LinearState:
    """The state before the first token, for features k (B, G, T, F) and values v (B, G, T, D)."""
    shape = (*k.shape[:2], k.shape[3])
    return LinearState(k.new_zeros(*shape, v.shape[3]), k.new_zeros(shape))


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearState | None = None, maps: Maps = (_same, _same)
) -> tuple[Tensor, Tensor, LinearState]:
    """Causal linear attention over the new tokens and all in the state; differentiable, through the state too.

    Args:
        q: (B, H, T, *). k: (B, G, T, *). v: (B, G, T, D).
        state: what an earlier call returned, or None.
        maps: what turns q into features (B, H, T, F) and k into (B, G, T, F), float32 or float64; called on a segment
            of tokens at a time, so that features of a long sequence are never all in memory without gradients.
            Every feature product q_t . k_t must be positive.
    Returns: out (B, H, T, D) and n (B, H, T) in the features' dtype, the new state.
    """
    rows = (CPU_ROWS if q.is_cpu else ROWS) // (q.shape[0] * q.shape[1])
    segment = max(CHUNK, rows // CHUNK * CHUNK)
    pieces = Pieces(q.shape[2])
    for q_part, k_part, v_part in zip(q.split(segment, 2), k.split(segment, 2), v.split(segment, 2), strict=True):
        phi_q, phi_k = maps[0](q_part), maps[1](k_part)
        out, norm, state = feature_attention(phi_q, phi_k, v_part.to(phi_k), state or empty_state(phi_k, v))
        pieces.add(out, norm)
    assert state is not None
    out, norm = pieces.joined()
    return out, norm, state


def absorb(k: Tensor, v: Tensor, state: LinearState) -> LinearState:
    """The state after all tokens of k (B, G, T, F) and v (B, G, T, D); a new one."""
    return LinearState(state.sums + k.transpose(-1, -2) @ v, state.norm + k.sum(2))


def recall(q: Tensor, state: LinearState) -> tuple[Tensor, Tensor]:
    """Attention of queries q (B, H, T, F) to all tokens in the state: out (B, H, T, D) and n (B, H, T)."""
    batch, heads, tokens, features = q.shape
    grouped = q.reshape(batch, state.norm.shape[1], -1, features)
    norm = grouped @ state.norm[..., None]
    return (grouped @ state.sums / norm).reshape(batch, heads, tokens, -1), norm.reshape(batch, heads, tokens)


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, state: LinearState | None = None
) -> tuple[Tensor, Tensor, LinearState]:
    """`linear_attention` of features by a loop over tokens, to test it against."""
    share = q.shape[1] // k.shape[1]
    sums, norm = empty_state(k, v) if state is None else state
    outs, norms = [], []
    for t in range(q.shape[2]):
        sums = sums + torch.einsum("bgf,bgd->bgfd", k[:, :, t], v[:, :, t])
        norm = norm + k[:, :, t]
        norms.append(torch.einsum("bhf,bhf->bh", q[:, :, t], norm.repeat_interleave(share, 1)))
        total = torch.einsum("bhf,bhfd->bhd", q[:, :, t], sums.repeat_interleave(share, 1))
        outs.append(total / norms[-1][..., None])
    return torch.stack(outs, 2), torch.stack(norms, 2), LinearState(sums, norm)


def feature_attention(q: Tensor, k: Tensor, v: Tensor, state: LinearState) -> tuple[Tensor, Tensor, LinearState]:
    """`linear_attention` of the features of one segment: q (B, H, T, F), k (B, G, T, F), v (B, G, T, D)."""
    if q.shape[2] == 1:
        state = absorb(k, v, state)
        return *recall(q, state), state
    if dispatch.ON and dispatch.LINEAR.serves(q):
        return dispatch.LINEAR(q, k, v, state)
    out, norm, *after = _Segment.apply(q, k, v, *state)
    return out, norm, LinearState(*after)


class _Segment(torch.autograd.Function):
    """`feature_attention` over a few chunks at once. It keeps its inputs and n; the rest is computed anew backwards."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        chunks = _Chunks(q, k, v, LinearState(*state))
        norm = torch.baddbmm(chunks.weights.sum(-1, keepdim=True), chunks.q, chunks.before.norm[..., None])
        total = torch.baddbmm(chunks.weights @ chunks.v, chunks.q, chunks.before.sums)
        out, norm = chunks.join(total.div_(norm)), chunks.join(norm)
        ctx.save_for_backward(q, k, v, norm, *state)
        return out, norm[..., 0], *chunks.after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_norm: Tensor, *d_after: Tensor) -> tuple[Tensor, ...]:
        q, k, v, norm, *state = ctx.saved_tensors
        chunks = _Chunks(q, k, v, LinearState(*state))
        d_total = chunks.cut(d_out / norm)
        d_weights, d_q = d_total @ chunks.v.mT, d_total @ chunks.before.sums.mT
        spent = (d_weights * chunks.weights).sum(-1, keepdim=True) + (d_q * chunks.q).sum(-1, keepdim=True)
        row = chunks.cut(d_norm[..., None] - chunks.join(spent) / norm)
        d_weights = chunks.masked_(d_weights.add_(row))
        d_q.addcmul_(row, chunks.before.norm[:, None]).baddbmm_(d_weights, chunks.k)
        added = LinearState(chunks.q.mT @ d_total, (chunks.q.mT @ row)[..., 0])
        d_later, d_state = _carry(added, LinearState(*d_after), backwards=True)
        d_k = torch.baddbmm(d_later.norm[:, None], chunks.v, d_later.sums.mT).baddbmm_(d_weights.mT, chunks.q)
        d_v = (chunks.k @ d_later.sums).baddbmm_(chunks.weights.mT, d_total)
        return chunks.join(d_q), chunks.join(d_k), chunks.join(d_v), *d_state


class _Chunks:
    """q (Y, R C, F), k (Y, C, F) and v (Y, C, D) of one segment in chunks, Y = X N, and what attention makes of them.

    Attributes:
        weights: (Y, R C, C) the weights of a chunk's own keys, zero for later ones.
        before: the state before each chunk, sums (Y, F, D) and norm (Y, F). after: the state after the last.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, state: LinearState):
        self.batch, self.groups, self.tokens, _ = k.shape
        self.size = min(CHUNK, self.tokens)
        self.count = -(-self.tokens // self.size)
        self.q, self.k, self.v = self.cut(q), self.cut(k), self.cut(v)
        self.weights = self.masked_(self.q @ self.k.mT)
        self.before, self.after = _carry(LinearState(self.k.mT @ self.v, self.k.sum(1)), state)

    def cut(self, x: Tensor) -> Tensor:
        """(B, G or H, T, *) -> (Y, C or R C, *), padded with zeros; a view where it can be."""
        x = nnf.pad(x, (0, 0, 0, self.count * self.size - self.tokens))
        x = x.reshape(self.batch * self.groups, -1, self.count, self.size, x.shape[3]).transpose(1, 2)
        return x.reshape(self.batch * self.groups * self.count, -1, x.shape[4])

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `cut`."""
        x = x.view(self.batch * self.groups, self.count, -1, self.size, x.shape[2]).transpose(1, 2)
        return x.reshape(self.batch, -1, self.count * self.size, x.shape[4])[:, :, : self.tokens]

    def masked_(self, weights: Tensor) -> Tensor:
        """(Y, R C, C) with zeros, in place, where the key comes after the query."""
        weights.view(-1, self.size, self.size).tril_()
        return weights


def _carry(added: LinearState, start: LinearState, backwards: bool = False) -> tuple[LinearState, LinearState]:
    """The state before each chunk, and after the last: running sums of what the chunks add, without their own share.

    Args:
        added: what each chunk adds, sums (Y, F, D) and norm (Y, F).
        start: the state before the first chunk, sums (B, G, F, D) and norm (B, G, F).
        backwards: whether the sums run from the last chunk to the first, as gradients do.

    Returns: the running sums, shaped as `added`, and the last of them with its chunk, shaped as `start`.
    """
    running, last = [], []
    for new, first in zip(added, start, strict=True):
        rows = new.reshape(start.norm.shape[0] * start.norm.shape[1], -1, first[0, 0].numel())
        ones = rows.new_ones(rows.shape[1], rows.shape[1])
        others = (ones.triu(1) if backwards else ones.tril(-1)).expand(len(rows), -1, -1)
        sums = torch.baddbmm(first.reshape(len(rows), 1, -1), others, rows)
        edge = 0 if backwards else -1
        running.append(sums.view_as(new))
        last.append((sums[:, edge] + rows[:, edge]).view_as(first))
    return LinearState(*running), LinearState(*last)
