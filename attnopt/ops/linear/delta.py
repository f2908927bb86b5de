"""The gated delta rule: linear attention that decays, and erases what it knew under a key before it writes there.

    S'_t = a_t S_{t-1},   u_t = b_t (v_t - k_t S'_t),   S_t = S'_t + k_t u_t^T,   out_t = q_t S_t

a_t = exp(log_decay_t) is one factor per head (gated DeltaNet, Yang et al. 2024, arXiv:2412.06464), or one per head and
feature (Kimi Delta Attention, Kimi Team 2025, arXiv:2510.26692); b_t in [0, 1] is the write strength, and keys are to
be of unit length, so that b = 1 replaces what was there.

What a chunk writes depends on what it has written so far, which is one triangular system ("UT transform"):

    (I + A) U = b V - (b k e^L) S_before,   A_ij = b_i k_i . k_j exp(L_i - L_j) for j < i

(I + A)^-1 is applied to V and to the keys before any state is known, so that a chunk only waits for two products with
the state before it. Backwards, U = (I + A)^-1 G makes dG = (I + A)^-T dU and dA = -dG U^T.
Letters and the care about exponents as in `decayed.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops.linear.decayed import (
    CHANNEL_CHUNK,
    Chunks,
    empty_state,
    first_weighted,
    last_weighted,
    pair_gradients,
    pair_weights,
    segments,
)
from attnopt.ops.output_pieces import Pieces

CHUNK = CHANNEL_CHUNK
"""Tokens per chunk: a system of this size is solved for each, so fewer than without one."""


def delta_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The new tokens' outputs and the state after them; differentiable by everything, the state too.

    Args:
        q: (B, H, T, F). k: (B, G, T, F), of unit length. v: (B, G, T, D). All of one dtype, float32 or float64.
        log_decay: (B, G, T, 1), at most 0; or (B, G, T, F), from `decayed.LOWEST` to 0.
        strength: b, (B, G, T, 1), from 0 to 1.
        state: (B, G, F, D), what an earlier call returned; None for zeros.

    Returns: out (B, H, T, D), the state (B, G, F, D) in memory of its own.
    """
    state = empty_state(k, v) if state is None else state
    if q.shape[2] == 1:
        return _step(q, k, v, log_decay, strength, state)
    pieces = Pieces(q.shape[2])
    for part in segments(q, CHUNK, q, k, v, log_decay, strength):
        out, state = _Segment.apply(*part, state)
        pieces.add(out)
    return pieces.joined()[0], state


def delta_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`delta_attention` by a loop over tokens, to test it against."""
    share, outs = q.shape[1] // k.shape[1], []
    state = empty_state(k, v) if state is None else state
    for t in range(q.shape[2]):
        state = state * log_decay[:, :, t, :, None].exp()
        known = torch.einsum("bgf,bgfd->bgd", k[:, :, t], state)
        state = state + torch.einsum("bgf,bgd->bgfd", k[:, :, t], strength[:, :, t] * (v[:, :, t] - known))
        outs.append(torch.einsum("bhf,bhfd->bhd", q[:, :, t], state.repeat_interleave(share, 1)))
    return torch.stack(outs, 2), state


def _step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`delta_attention` of one token. The state is read once, for key and queries together, and written once."""
    rows = torch.cat([k, q.view(*k.shape[:2], -1, q.shape[3])], 2)
    decay = log_decay.exp()
    known = (rows * decay) @ state
    new = strength * (v - known[:, :, :1])
    out = known[:, :, 1:] + (rows[:, :, 1:] @ k.mT) * new
    after = (state * decay.mT).addcmul_(k.mT, new)
    return out.view(*q.shape[:3], -1), after


class _Segment(torch.autograd.Function):
    """`delta_attention` of q, k, v, log_decay, strength and a state over a few chunks at once.

    It keeps its inputs, the systems' inverses, what the chunks wrote and the states before them; weights are computed
    anew backwards.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        chunks = Chunks.of(inputs[1], CHUNK)
        q, k, v, log_decay, strength = (chunks.cut(t) for t in inputs[:5])
        sums = log_decay.cumsum(2)
        strong = k * strength
        inverse = _inverse(pair_weights(strong, k, sums, diagonal=-1))
        own, erased = inverse @ (v * strength), inverse @ first_weighted(strong, sums)
        writes, before, state = _scan(own, erased, last_weighted(k, sums).mT, sums[:, :, -1, :, None].exp(), inputs[5])
        out = pair_weights(q, k, sums) @ writes + first_weighted(q, sums) @ before
        ctx.save_for_backward(*inputs[:5], writes, before, erased, inverse)
        return chunks.join(out), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_after: Tensor) -> tuple[Tensor, ...]:
        *inputs, writes, before, erased, inverse = ctx.saved_tensors
        chunks = Chunks.of(inputs[1], CHUNK)
        q, k, v, log_decay, strength = (chunks.cut(t) for t in inputs)
        d_out, sums, strong = chunks.cut(d_out).contiguous(), log_decay.cumsum(2), k * strength
        kept, decay = last_weighted(k, sums), sums[:, :, -1, :, None].exp()
        d_read, d_last = pair_weights(q, k, sums).mT @ d_out, first_weighted(q, sums).mT @ d_out
        d_writes, d_later, d_start = _scan_back(d_read, d_last, erased, kept, decay, d_after)

        d_given = inverse.mT @ d_writes
        d_q, d_k = pair_gradients(d_out @ writes.mT, q, k, sums)
        d_strong, d_k_system = pair_gradients(-d_given @ writes.mT, strong, k, sums, diagonal=-1)
        d_q += first_weighted(d_out @ before.mT, sums)
        d_strong -= first_weighted(d_given @ before.mT, sums)
        d_kept = last_weighted(writes @ d_later.mT, sums)
        d_k = d_k.add_(d_k_system).add_(d_kept)

        rows = (q * d_q).unflatten(2, (-1, k.shape[2])).sum(2) + strong * d_strong - k * d_k
        rows[:, :, -1] += (k * d_kept).sum(2) + (before * d_later * decay).sum(3)
        d_sums = rows if sums.shape[3] > 1 else rows.sum(3, keepdim=True)
        d_decay = d_sums.flip(2).cumsum(2).flip(2)
        d_strength = (d_given * v).sum(3, keepdim=True) + (d_strong * k).sum(3, keepdim=True)
        found = (d_q, d_k.addcmul_(d_strong, strength), d_given * strength, d_decay, d_strength)
        return *(chunks.join(t) for t in found), d_start


def _inverse(system: Tensor) -> Tensor:
    """(I + A)^-1 for A strictly lower triangular, (X, N, C, C)."""
    one = torch.eye(system.shape[3], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(system, one.expand_as(system), upper=False, unitriangular=True)


def _scan(own: Tensor, erased: Tensor, k: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What every chunk writes, (X, N, C, D), and the state before it, (X, N, F, D); and after the last, (B, G, F, D).

    Args:
        own: what it would write on an empty state, (X, N, C, D).
        erased: what it takes from the state before, (X, N, C, F).
        k: its keys as the state after it holds them, (X, N, F, C).
        decay: over the chunk, (X, N, 1 or F, 1).
        state: (B, G, F, D).
    """
    now, writes, before = state.flatten(0, 1), [], []
    for chunk_own, chunk_erased, chunk_k, chunk_decay in zip(
        *(t.unbind(1) for t in (own, erased, k, decay)), strict=True
    ):
        new = torch.baddbmm(chunk_own, chunk_erased, now, alpha=-1)
        writes.append(new)
        before.append(now)
        now = torch.baddbmm(now * chunk_decay, chunk_k, new)
    return torch.stack(writes, 1), torch.stack(before, 1), now.view(state.shape)


def _scan_back(
    d_read: Tensor, d_before: Tensor, erased: Tensor, kept: Tensor, decay: Tensor, d_after: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by what every chunk writes and the state after it, (X, N, *, D), and by the first state, (B, G, F, D).

    Args:
        d_read: by what a chunk writes as its own queries read it, (X, N, C, D).
        d_before: by the state before a chunk as its queries read it, (X, N, F, D).
        erased: (X, N, C, F) and decay, (X, N, 1 or F, 1), as in `_scan`.
        kept: its keys as the state after it holds them, (X, N, C, F).
        d_after: by the state after the last chunk, (B, G, F, D).
    """
    now, d_writes, d_later = d_after.flatten(0, 1), [], []
    parts = (t.unbind(1)[::-1] for t in (d_read, d_before, erased, kept, decay))
    for chunk_read, chunk_before, chunk_erased, chunk_kept, chunk_decay in zip(*parts, strict=True):
        d_later.append(now)
        d_writes.append(torch.baddbmm(chunk_read, chunk_kept, now))
        now = torch.baddbmm(torch.addcmul(chunk_before, now, chunk_decay), chunk_erased.mT, d_writes[-1], alpha=-1)
    return torch.stack(d_writes[::-1], 1), torch.stack(d_later[::-1], 1), now.view(d_after.shape)
