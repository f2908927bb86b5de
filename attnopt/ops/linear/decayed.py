"""Causal linear attention whose state decays: matmuls inside chunks of tokens, a carried state between them.

    S_t = a_t S_{t-1} + k_t v_t^T,   out_t = q_t S_t        a_t = exp(log_decay_t) in (0, 1]

a_t is one factor per head, or one per head and feature (a row of S). Nothing is normalised: a normaliser that decays
along is one more column of values, all ones. Source: the chunkwise form of gated linear attention, Yang et al. 2024,
arXiv:2312.06635; retention is the same with a constant a, Sun et al. 2023, arXiv:2307.08621.

Within a chunk the weight of key j for query i is q_i . k_j exp(L_i - L_j), with L the running sums of log_decay, and no
exponent above zero is ever taken: of one factor per head the differences are formed first; of one per feature, where
that would be (C, C, F) numbers, sub-blocks of SUB queries are measured from a point in their midst, which keeps the
exponents within SUB / 2 steps of LOWEST each.

Shapes as in mechanisms/base.py; here N chunks of C tokens, X = B G, and R = H / G query heads on each key head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from attnopt.ops.linear.chunked import CPU_ROWS, ROWS
from attnopt.ops.output_pieces import Pieces

CHUNK, CHANNEL_CHUNK, SUB = 64, 32, 16
"""Tokens per chunk with a decay per head, and with one per feature; queries that share a point to measure from."""
LOWEST = -5.0
"""The least log decay of a step where there is one per feature: a state of which 1 / 150 is left has forgotten. SUB / 2
of them are exp(40), whose square still is a float32."""


@dataclass(frozen=True)
class Chunks:
    """How a segment is cut: `size` tokens to a chunk, the last of which is filled up with zeros."""

    batch: int
    groups: int
    tokens: int
    size: int

    @classmethod
    def of(cls, k: Tensor, size: int) -> "Chunks":
        """Chunks of `size` tokens, or one where there are fewer, for k (B, G, T, F)."""
        return cls(k.shape[0], k.shape[1], k.shape[2], min(size, k.shape[2]))

    @property
    def count(self) -> int:
        return -(-self.tokens // self.size)

    def cut(self, x: Tensor) -> Tensor:
        """(B, G, T, *) -> (X, N, C, *), (B, H, T, *) -> (X, N, R C, *)."""
        if missing := self.count * self.size - self.tokens:
            x = nnf.pad(x, (0, 0, 0, missing))
        x = x.reshape(self.batch * self.groups, -1, self.count, self.size, x.shape[3]).transpose(1, 2)
        return x.reshape(len(x), self.count, -1, x.shape[4])

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `cut`."""
        x = x.view(len(x), self.count, -1, self.size, x.shape[3]).transpose(1, 2)
        return x.reshape(self.batch, -1, self.count * self.size, x.shape[4])[:, :, : self.tokens]


def decayed_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The new tokens' outputs and the state after them; differentiable by everything, the state too.

    Args:
        q: (B, H, T, F). k: (B, G, T, F). v: (B, G, T, D). All of one dtype, float32 or float64.
        log_decay: (B, G, T, 1), at most 0 (their sums over a chunk are rounded, so none below -20); or
            (B, G, T, F), from LOWEST to 0.
        state: (B, G, F, D), what an earlier call returned; None for zeros.

    Returns: out (B, H, T, D), the state (B, G, F, D) in memory of its own.
    """
    state = empty_state(k, v) if state is None else state
    if q.shape[2] == 1:
        state = (state * log_decay.exp().mT).view(-1, *state.shape[2:])
        state = state.baddbmm_(k.reshape(-1, k.shape[3], 1), v.reshape(-1, 1, v.shape[3])).view(
            *k.shape[:2], *state.shape[1:]
        )
        return read(q, state), state
    pieces, parts = Pieces(q.shape[2]), segments(q, CHUNK, q, k, v, log_decay)
    for q_part, k_part, v_part, decay_part in parts:
        out, state = _segment(q_part, k_part, v_part, decay_part, state)
        pieces.add(out)
    return pieces.joined()[0], state


def decayed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`decayed_attention` by a loop over tokens, to test it against."""
    share, outs = q.shape[1] // k.shape[1], []
    state = empty_state(k, v) if state is None else state
    for t in range(q.shape[2]):
        state = state * log_decay[:, :, t, :, None].exp()
        state = state + torch.einsum("bgf,bgd->bgfd", k[:, :, t], v[:, :, t])
        outs.append(torch.einsum("bhf,bhfd->bhd", q[:, :, t], state.repeat_interleave(share, 1)))
    return torch.stack(outs, 2), state


def empty_state(k: Tensor, v: Tensor) -> Tensor:
    """The state before the first token, (B, G, F, D), for keys (B, G, T, F) and values (B, G, T, D)."""
    return k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])


def read(q: Tensor, state: Tensor) -> Tensor:
    """q S of queries (B, H, T, F) and a state (B, G, F, D): (B, H, T, D)."""
    batch, heads, tokens, features = q.shape
    return (q.reshape(batch, state.shape[1], -1, features) @ state).view(batch, heads, tokens, -1)


def segments(q: Tensor, chunk: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors (B, *, T, *) in parts of as many tokens as a core's cache holds, a multiple of `chunk`."""
    rows = (CPU_ROWS if q.is_cpu else ROWS) // (q.shape[0] * q.shape[1])
    return list(zip(*(t.split(max(chunk, rows // chunk * chunk), 2) for t in tensors), strict=True))


def _segment(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`decayed_attention` over a few chunks at once."""
    chunks = Chunks.of(k, chunk_size(log_decay))
    q, k, v, sums = chunks.cut(q), chunks.cut(k), chunks.cut(v), chunks.cut(log_decay).cumsum(2)
    before, state = _carry(last_weighted(k, sums).mT @ v, sums[:, :, -1], state)
    out = pair_weights(q, k, sums) @ v + first_weighted(q, sums) @ before
    return chunks.join(out), state


def chunk_size(log_decay: Tensor) -> int:
    """C for decays (B, G, T, 1) or (B, G, T, F)."""
    return CHUNK if log_decay.shape[3] == 1 else CHANNEL_CHUNK


def pair_weights(q: Tensor, k: Tensor, sums: Tensor, diagonal: int = 0) -> Tensor:
    """q_i . k_j exp(L_i - L_j) of the pairs of a chunk, zero where j > i + diagonal.

    Args:
        q: (X, N, R C, F). k: (X, N, C, F).
        sums: L, (X, N, C, 1) or (X, N, C, F).

    Returns: (X, N, R C, C).
    """
    rows, size = q.shape[2] // k.shape[2], k.shape[2]
    if sums.shape[3] > 1:
        return _channel_weights(q, k, sums).unflatten(2, (rows, size)).tril(diagonal).flatten(2, 3)
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(diagonal + 1)
    decay = (sums - sums.mT).masked_fill(later, -torch.inf).exp()
    weights = q @ k.mT
    return weights * decay if rows == 1 else (weights.unflatten(2, (rows, size)) * decay[:, :, None]).flatten(2, 3)


def _channel_weights(q: Tensor, k: Tensor, sums: Tensor) -> Tensor:
    """`pair_weights` with sums (X, N, C, F), whose entries for j > i mean nothing, or are zero."""
    size, bands = k.shape[2], []
    q = q.unflatten(2, (-1, size))
    for start in range(0, size, SUB):
        stop = min(start + SUB, size)
        middle = (start + stop) // 2
        origin = sums[:, :, middle : middle + 1].detach()  # it may lie behind i, and cancels out
        near = q[:, :, :, start:stop] * (sums[:, :, start:stop] - origin).exp()[:, :, None]
        band = near.flatten(2, 3) @ (k[:, :, :stop] * (origin - sums[:, :, :stop]).exp()).mT
        bands.append(nnf.pad(band, (0, size - stop)).unflatten(2, (-1, stop - start)))
    return torch.cat(bands, 3).flatten(2, 3)


def pair_gradients(d_weights: Tensor, q: Tensor, k: Tensor, sums: Tensor, diagonal: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients by q and k of `pair_weights`, given those by the weights, (X, N, R C, C).

    Those by sums are their products with q and k: L_i only ever stands beside q_i, and -L_j beside k_j.
    """
    rows, size = q.shape[2] // k.shape[2], k.shape[2]
    if sums.shape[3] > 1:
        d_weights = d_weights.unflatten(2, (rows, size)).tril(diagonal)
        return _channel_gradients(d_weights, q, k, sums)
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(diagonal + 1)
    decay = (sums - sums.mT).masked_fill(later, -torch.inf).exp()
    d_products = (d_weights.unflatten(2, (rows, size)) * decay[:, :, None]).flatten(2, 3)
    return d_products @ k, d_products.mT @ q


def _channel_gradients(d_weights: Tensor, q: Tensor, k: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """`pair_gradients` with sums (X, N, C, F) and d_weights (X, N, R, C, C), zero where weights are."""
    size, d_k, d_q = k.shape[2], torch.zeros_like(k), []
    q = q.unflatten(2, (-1, size))
    for start in range(0, size, SUB):
        stop = min(start + SUB, size)
        middle = (start + stop) // 2
        origin = sums[:, :, middle : middle + 1]
        up, down = (sums[:, :, start:stop] - origin).exp(), (origin - sums[:, :, :stop]).exp()
        near = (q[:, :, :, start:stop] * up[:, :, None]).flatten(2, 3)
        d_band = d_weights[:, :, :, start:stop, :stop].flatten(2, 3)
        d_near = (d_band @ (k[:, :, :stop] * down)).unflatten(2, (-1, stop - start))
        d_q.append(d_near * up[:, :, None])
        d_k[:, :, :stop].addcmul_(d_band.mT @ near, down)
    return torch.cat(d_q, 3).flatten(2, 3), d_k


def first_weighted(q: Tensor, sums: Tensor) -> Tensor:
    """q_i exp(L_i): rows (X, N, R C, F) that read the state before their chunk, which has decayed until then."""
    decay = sums.exp()
    rows = q.shape[2] // sums.shape[2]
    return q * decay if rows == 1 else (q.unflatten(2, (rows, -1)) * decay[:, :, None]).flatten(2, 3)


def last_weighted(k: Tensor, sums: Tensor) -> Tensor:
    """k_j exp(L_C - L_j): keys (X, N, C, F) as the state after their chunk holds them."""
    return k * (sums[:, :, -1:] - sums).exp()


def _carry(added: Tensor, sums: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, (X, N, F, D), and after the last, (B, G, F, D).

    One product with the lower triangle of the decays between chunks, for each feature where it has its own.

    Args:
        added: what each chunk adds, (X, N, F, D).
        sums: the log decay over each chunk, (X, N, 1) or (X, N, F).
        start: the state before the first chunk, (B, G, F, D).
    """
    count = added.shape[1]
    total = nnf.pad(sums.mT.cumsum(2), (1, 0))  # (X, 1 or F, N + 1): the log decay from the start to before each chunk
    between = total[..., :, None] - total[..., None, 1:]
    later = torch.ones(count + 1, count, dtype=torch.bool, device=added.device).triu()
    factors = torch.cat([total[..., None], between.masked_fill(later, -torch.inf)], -1).exp()
    rows = torch.cat([start.reshape(-1, 1, *start.shape[2:]), added], 1)
    if sums.shape[2] == 1:
        states = (factors[:, 0] @ rows.flatten(2)).unflatten(2, start.shape[2:])
    else:
        states = (factors @ rows.transpose(1, 2)).transpose(1, 2)
    return states[:, :-1], states[:, -1].reshape(start.shape).clone()
