"""Causal linear attention: matmuls inside chunks of tokens, a carried state between them.

    w_ts = q_t . k_s > 0               the weight of key s for query t; q and k are features
    out_t = sum_{s<=t} w_ts v_s / n_t,   n_t = sum_{s<=t} w_ts

Nothing of size T x T or T x F x D is made. The form is that of Yang et al. 2024, arXiv:2312.06635, section 4.
Shapes as in mechanisms/base.py; here N chunks of C tokens, X = B G, and R = H / G query heads on each key head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

CHUNK, SEGMENT = 64, 1024


class LinearState(NamedTuple):
    """All that linear attention remembers."""

    sums: Tensor
    """(B, G, F, D) sum of k v^T"""
    norm: Tensor
    """(B, G, F) sum of k"""


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
    outs, norms = [], []
    for q_part, k_part, v_part in zip(q.split(SEGMENT, 2), k.split(SEGMENT, 2), v.split(SEGMENT, 2), strict=True):
        phi_q, phi_k = maps[0](q_part), maps[1](k_part)
        out, norm, state = _segment(phi_q, phi_k, v_part.to(phi_k), state or empty_state(phi_k, v))
        outs.append(out)
        norms.append(norm)
    assert state is not None
    return (outs[0], norms[0], state) if len(outs) == 1 else (torch.cat(outs, 2), torch.cat(norms, 2), state)


def absorb(k: Tensor, v: Tensor, state: LinearState) -> LinearState:
    """The state with all tokens of k (B, G, T, F) and v (B, G, T, D) added."""
    return LinearState(state.sums + k.transpose(-1, -2) @ v, state.norm + k.sum(2))


def recall(q: Tensor, state: LinearState) -> tuple[Tensor, Tensor]:
    """out (B, H, T, D) and n (B, H, T) of q (B, H, T, F) over exactly the tokens in the state."""
    batch, heads, tokens, features = q.shape
    grouped = q.reshape(batch, state.norm.shape[1], -1, features)
    norm = grouped @ state.norm[..., None]
    return (grouped @ state.sums / norm).reshape(batch, heads, tokens, -1), norm.reshape(batch, heads, tokens)


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, state: LinearState | None = None
) -> tuple[Tensor, Tensor, LinearState]:
    """`linear_attention` by a loop over tokens."""
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


def _segment(q: Tensor, k: Tensor, v: Tensor, state: LinearState) -> tuple[Tensor, Tensor, LinearState]:
    """`linear_attention` of features over a few chunks at once."""
    if q.shape[2] == 1:
        state = absorb(k, v, state)
        return *recall(q, state), state
    batch, heads, tokens, _ = q.shape
    groups, size = k.shape[1], min(CHUNK, tokens)
    count, share = -(-tokens // size), heads // groups
    q, k, v = (_chunked(t, groups, count, size) for t in (q, k, v))
    weights = (q @ k.mT).view(-1, size, size).tril().view(-1, share * size, size)
    before, after = _carry(k.mT @ v, k.sum(1), state)
    total = torch.baddbmm(weights @ v, q, before.sums)
    norm = torch.baddbmm(weights.sum(-1, keepdim=True), q, before.norm[..., None])
    total, norm = (
        t.view(batch * groups, count, share, size, -1).transpose(1, 2).reshape(batch, heads, count * size, -1)
        for t in (total, norm)
    )
    total, norm = total[:, :, :tokens], norm[:, :, :tokens]
    return total / norm, norm[..., 0], after


def _chunked(x: Tensor, groups: int, count: int, size: int) -> Tensor:
    """(B, G R, T, F) -> (B G N, R C, F), padded with zeros; a view where it can be."""
    batch, heads, tokens, features = x.shape
    if count * size > tokens:
        x = nnf.pad(x, (0, 0, 0, count * size - tokens))
    x = x.reshape(batch * groups, heads // groups, count, size, features).transpose(1, 2)
    return x.reshape(batch * groups * count, -1, features)


def _carry(sums: Tensor, norm: Tensor, state: LinearState) -> tuple[LinearState, LinearState]:
    """The state before each chunk, (X N, F, D) and (X N, F), and the last, from what each chunk adds to it."""
    heads = state.norm.shape[0] * state.norm.shape[1]
    added = (sums.view(heads, -1, sums[0].numel()), norm.view(heads, -1, norm.shape[1]))
    count = added[0].shape[1]
    earlier = sums.new_ones(count, count).tril(-1).expand(heads, -1, -1)
    before = [torch.baddbmm(s.reshape(heads, 1, -1), earlier, a) for s, a in zip(state, added, strict=True)]
    after = [(b[:, -1] + a[:, -1]).view_as(s) for s, a, b in zip(state, added, before, strict=True)]
    return LinearState(before[0].view_as(sums), before[1].view_as(norm)), LinearState(*after)
