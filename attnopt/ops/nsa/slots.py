"""Block-sparse causal attention, in three branches: near tokens, far blocks pooled into slots, far blocks picked.

Positions are cut into blocks of n tokens. To query t the last w tokens are near, and what is left of the block in which
they begin; the far(t) = floor((t + 1 - w) / n) blocks before are complete, and far: they are read as slots (one key and
value per block) or, where picked, token by token.
Each branch returns `out`, the mean of its values, and `lse`, the log of its total weight, for the caller to combine:

    near_attention     near tokens (in near.py)
    slot_attention     slots of far blocks; it also picks the best ones, and leaves those out where told to
    picked_attention   tokens of the picked blocks (in picked.py)

Shapes as in mechanisms/base.py; X = B G; R = H / G query heads share a key/value head; N blocks of n tokens; P picks
per query and key/value head. All of one dtype, float32 or float64; q comes scaled. A row without keys has a finite,
meaningless `out`, which the caller has to drop.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops.tensors import MASKED

TIE = 1e-3
"""Two slots are equally important where the logs of their importance differ by no more than this."""
GROUP = 32
"""Slots that are searched together for the best ones."""
SCORES = 2**20
"""Slot scores that are held at a time; never more than twice the numbers in q."""


class Layout(NamedTuple):
    """Where queries stand among the blocks.

    Attributes:
        seen: the position of the first query, which is how many tokens come before it.
        size: n, tokens per block.
        window: w, tokens that are near at least, the query's own among them.
    """

    seen: int
    size: int
    window: int

    def far(self, query: int) -> int:
        """How many blocks are far for one of the queries, counted from 0."""
        return max(0, (self.seen + query + 1 - self.window) // self.size)

    def far_of(self, queries: slice, device: Any = None) -> Tensor:
        """How many blocks are far for each of a run of queries, (T,)."""
        ends = torch.arange(self.seen + queries.start + 1, self.seen + queries.stop + 1, device=device)
        return ((ends - self.window) // self.size).clamp(min=0)

    @property
    def back(self) -> int:
        """How many tokens before a block are near to its first token: the window, rounded up to whole blocks."""
        return -(-(self.window - 1) // self.size) * self.size

    @property
    def start(self) -> int:
        """The first position that is near to any query."""
        return max(0, self.seen // self.size * self.size - self.back)


def softmax_lse(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of scores (..., s) over the last dimension, and the log of the sum of exponentials (...)."""
    weights = scores.softmax(-1)
    return weights, scores.amax(-1) - weights.amax(-1).log_()


def row_term(out: Tensor, d_out: Tensor, d_lse: Tensor) -> Tensor:
    """The term that softmax's backward pass takes off every weight's gradient in a row: (...).

    Args:
        out: (..., D), the row's output.
        d_out: (..., D), its gradient.
        d_lse: (...), the gradient of the row's log-sum-exp.
    """
    return (out * d_out).sum(-1) - d_lse


def score_gradient(weights: Tensor, d_weights: Tensor, row: Tensor) -> Tensor:
    """The gradient of the scores (..., s), written over that of the weights.

    Args:
        weights: (..., s), the softmax.
        d_weights: (..., s), the gradient of its weights; overwritten.
        row: (...), of `row_term`.
    """
    return d_weights.sub_(row[..., None]).mul_(weights)


def slot_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, picks: int, leave_out: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of each query to its far slots, and the best `picks` of them.

    The importance of a slot is its softmax weight, summed over the query heads of a key/value head (Yuan et al. 2025,
    equation 10). Of slots that TIE with the best, the earliest is picked: rounding must not decide.

    Args:
        q: (X, R, T, D).
        k, v: (X, N, D), N >= the far blocks of the last query, of which there is at least one.
        layout: where the queries stand.
        picks: P, how many of the best slots are wanted.
        leave_out: whether the attention is to the slots that were not picked.

    Returns: out (X, R, T, D), lse (X, R, T), picks (X, T, P) int64, -1 where a row has fewer slots.
    """
    count = layout.far(q.shape[2] - 1)
    k, v = k[:, :count], v[:, :count]
    if q.shape[2] > 1 and count > GROUP and count % GROUP:  # for one query it is less to pad what comes of the keys
        k, v = (F.pad(t, (0, 0, 0, -count % GROUP)) for t in (k, v))
    return _Slots.apply(q, k, v, layout, picks, leave_out)


def best_slots(scores: Tensor, picks: int) -> Tensor:
    """The slots (X, T, P) that `slot_attention` picks, -1 where there are fewer, from its scores (X, R, T, N)."""
    return _pick(_importance(scores), picks)


class _Slots(torch.autograd.Function):
    """`slot_attention` in chunks of queries, so that no more than SCORES scores exist; backwards they are made anew."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, picks: int, leave_out: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
        picked = torch.full((len(q), q.shape[2], picks), -1, device=q.device)
        for now, width in _chunks(q, k, layout):
            scores = _slot_scores(q[:, :, now], k[:, :width], layout, now)
            if picks:
                picked[:, now] = best_slots(scores, picks)
            if leave_out:
                _drop(scores, picked[:, now])
            weights, lse[:, :, now] = softmax_lse(scores)
            out[:, :, now] = _times(weights, v[:, :width])
        ctx.save_for_backward(q, k, v, out, picked if leave_out else picked[:, :, :0])
        ctx.layout = layout
        ctx.mark_non_differentiable(picked)
        return out, lse, picked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out, dropped = ctx.saved_tensors
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (k, v))
        for now, width in _chunks(q, k, ctx.layout):
            q_now, d_now = q[:, :, now], d_out[:, :, now]
            scores = _slot_scores(q_now, k[:, :width], ctx.layout, now)
            _drop(scores, dropped[:, now])
            weights = scores.softmax(-1)
            d_v[:, :width] += _summed(weights, d_now)
            d_weights = _times(d_now, v[:, :width].transpose(1, 2))
            d_scores = score_gradient(weights, d_weights, row_term(out[:, :, now], d_now, d_lse[:, :, now]))
            d_q[:, :, now] = _times(d_scores, k[:, :width])
            d_k[:, :width] += _summed(d_scores, q_now)
        return d_q, d_k, d_v, None, None, None


def _chunks(q: Tensor, k: Tensor, layout: Layout) -> Iterator[tuple[slice, int]]:
    """Runs of queries, and for each how many slots its last query may read: 1 at least, and whole groups of them.

    Runs are short, so that few scores are spent on slots that only the last queries of a run may read.
    """
    rows, share, new, _ = q.shape
    step = max(1, min(SCORES, 2 * q.numel()) // (rows * share * k.shape[1]))
    step = min(step, max(new // 8, 128))
    for start in range(0, new, step):
        stop = min(new, start + step)
        most = max(1, layout.far(stop - 1))
        yield slice(start, stop), min(k.shape[1], -(-most // GROUP) * GROUP)


def _slot_scores(q: Tensor, k: Tensor, layout: Layout, now: slice) -> Tensor:
    """Scores (X, R, T, N) of the queries `now`, q (X, R, T, D), with k (X, N, D), MASKED for slots that are not far."""
    scores = _times(q, k.transpose(1, 2))
    sure = layout.far(now.start)
    unread = torch.arange(sure, k.shape[1], device=k.device) >= layout.far_of(now, k.device)[:, None]
    scores[..., sure:].masked_fill_(unread, MASKED)
    return scores


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product (X, R, T, j) of a (X, R, T, i) and b (X, i, j)."""
    return (a.flatten(1, 2) @ b).unflatten(1, a.shape[1:3])


def _summed(a: Tensor, b: Tensor) -> Tensor:
    """The product of a (X, R, T, i) and b (X, R, T, j), summed over heads and queries: (X, i, j)."""
    return a.flatten(1, 2).transpose(1, 2) @ b.flatten(1, 2)


def _importance(scores: Tensor) -> Tensor:
    """The log of the weights summed over heads, up to a constant per query: (X, T, N) from scores (X, R, T, N).

    MASKED for slots that must not be read; always a new tensor, which the caller may overwrite.
    """
    if scores.shape[1] == 1:
        return scores[:, 0].clone()
    total = scores.softmax(-1).sum(1).clamp_(min=torch.finfo(scores.dtype).tiny)
    return total.log_().masked_fill_(scores[:, 0] == MASKED, MASKED)


def _pick(importance: Tensor, picks: int) -> Tensor:
    """The indices (X, T, P) of the `picks` best slots, -1 where there are fewer; overwrites `importance` (X, T, N).

    The best is sought among the maxima of groups of slots, and a group's maximum is renewed when a slot of it was
    picked: so all slots are read once, not once for each pick.
    """
    size = min(GROUP, importance.shape[-1])
    if short := -importance.shape[-1] % size:
        importance = F.pad(importance, (0, short), value=MASKED)
    groups = importance.view(-1, size)
    maxima = groups.amax(-1).view(-1, importance.shape[-1] // size)
    row = torch.arange(len(maxima), device=maxima.device) * maxima.shape[1]
    found = []
    for _ in range(picks):
        best = maxima.amax(-1, keepdim=True)
        group = (maxima >= best - TIE).max(-1).indices
        members = groups.index_select(0, row + group)
        member = (members >= best - TIE).max(-1).indices
        found.append(torch.where(best[:, 0] > MASKED, group * size + member, -1))
        members.scatter_(1, member[:, None], MASKED)
        groups.index_copy_(0, row + group, members)
        maxima.scatter_(1, group[:, None], members.amax(-1, keepdim=True))
    return torch.stack(found, dim=-1).view(*importance.shape[:2], picks)


def _drop(scores: Tensor, picked: Tensor) -> None:
    """Set the scores (X, R, T, N) of the slots `picked` (X, T, P) to MASKED, in place.

    A pick of -1 is taken for slot 0: it stands only where all far slots are picked, so slot 0 is masked anyhow.
    """
    index = picked.clamp(min=0)[:, None].expand(-1, scores.shape[1], -1, -1)
    scores.scatter_(-1, index, MASKED)
