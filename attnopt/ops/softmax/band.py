"""Softmax attention over a band of recent tokens, and the pieces that join it with other branches.

Every function returns (out, lse): the softmax average over its own keys and the log-sum-exp of its scores, in at least
float32. `merge` joins such pairs into the one softmax over all their keys, so that a far branch of any kind (linear
attention: numerator / denominator and log denominator) can stand beside the band under one normaliser:

    out, lse = band_attention(q, k, v, window, scaling)
    out, lse = merge((out, lse), (numerator / denominator[..., None], denominator.log()))

Where autograd is not recording, CPU scores are never materialised (PyTorch's flash kernel); otherwise they take
T (window + BLOCK) entries. Shapes as in `mechanisms.base`; M query rows, K keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops import dispatch as kernels
from attnopt.ops.tensors import wide

EMPTY = -1e30
"""Added to a score to take the key out. A row without keys has an lse of about this, and merges as nothing."""

Part = tuple[Tensor, Tensor]
"""out (..., T, D), lse (..., T)."""

BLOCK = 32
"""Queries that share one gathered stretch of keys."""
SPAN = 512
"""Queries handled at a time: what they need stays in the cache."""


@dataclass(frozen=True)
class Prefix:
    """The first tokens of the sequence ("sinks"), attended next to a band.

    Attributes:
        k, v: (B, G, f, D) the sequence's first f tokens.
        start: position in the sequence of the first query.
        gap: a query sees only first tokens at least this far back; the band's window keeps the two apart.
        bias: (H or 1, f) added to the scores.
    """

    k: Tensor
    v: Tensor
    start: int
    gap: int = 0
    bias: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.k, self.v) if self.bias is None else (self.k, self.v, self.bias)

    def attend(self, q: Tensor, at: int, scaling: float) -> Part:
        """Queries q (B, H, T, D), the first of which stands `at` tokens after the first query.

        Scores are laid out (..., f, T), as reductions over a few keys are fast only where the queries lie side by side.
        """
        q, k, v = wide(q, self.k, self.v)
        group, position = (k.shape[1], q.shape[1] // k.shape[1]), torch.arange(q.shape[2], device=q.device)
        hidden = position + self.start + at - torch.arange(k.shape[2], device=q.device)[:, None] < self.gap
        scores = (k * scaling) @ q.unflatten(1, group).flatten(2, 3).mT
        scores = scores.unflatten(3, (group[1], -1)).transpose(2, 3).flatten(1, 2)
        scores = scores if self.bias is None else scores + self.bias[..., None]
        scores = scores.masked_fill(hidden, EMPTY)
        lse = scores.logsumexp(2)
        p = (scores - lse.unsqueeze(2)).exp().mT
        return (p.unflatten(1, group).flatten(2, 3) @ v).unflatten(2, (group[1], -1)).reshape(q.shape), lse


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scaling: float,
    *,
    bias: Tensor | None = None,
    prefix: Prefix | None = None,
) -> Part:
    """Each query attends its own token and the window - 1 before it: O(T (window + BLOCK)) time, O(T) memory.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, P + T, D): the queries' own tokens are the last T, behind P past ones. P may be negative: query t
            attends the window that ends with key P + t, where there is one.
        bias: (H or 1, window), added to the scores by distance: bias[:, o] for the key o tokens back. EMPTY or less
            takes a distance out. Differentiable.
        prefix: the sequence's first tokens, joined under the same softmax.
    Returns: out (B, H, T, D), lse (B, H, T). A row without keys has an lse of about EMPTY and a meaningless out.
    """
    if kernels.ON and kernels.BAND.serves(q):
        return kernels.BAND(q, k, v, window, scaling, bias=bias, prefix=prefix)
    past = k.shape[2] - q.shape[2]
    q, k, v = wide(q, k, v)
    window = min(window, k.shape[2])
    bias = q.new_zeros(1, window) if bias is None else bias.to(q.dtype)[:, :window]
    mask = _band_mask(bias, min(BLOCK, q.shape[2])).expand(q.shape[1], -1, -1)
    lead = mask.shape[2] - mask.shape[1]

    def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        reach = slice(max(0, past + start - lead), max(0, past + stop))
        return q[:, :, start:stop], k[:, :, reach], v[:, :, reach], *others

    def attend_span(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *first: Tensor) -> Part:
        part = _blocks(q, k, v, min(past + start, lead), mask, scaling)
        if prefix is None:
            return part
        own = replace(prefix, k=first[0], v=first[1], bias=first[2] if len(first) > 2 else None)
        return merge(part, own.attend(q, start, scaling))

    others = () if prefix is None else prefix.tensors()
    return in_spans(attend_span, cut, (q, k, v, mask, *others), q.shape[2])


def in_spans(
    attend_span: Callable[..., Part],
    cut: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    count: int,
    step: int | None = None,
    dim: int = 2,
) -> Part:
    """(out, lse) of queries 0:count, from those of spans start:stop of `step` (SPAN) queries, joined along `dim`.

    Where there are several spans, a backward pass computes each once more, rather than keep its scores for it.

    Args:
        attend_span: attend_span(start, stop, *cut(start, stop, *inputs)) gives a span's (out, lse).
        cut: takes from each input a view of what the span needs, and from an input's gradient where that belongs.
    """
    step = step or SPAN
    if count <= step:
        return attend_span(0, count, *cut(0, count, *inputs))
    return _Spans.apply(attend_span, cut, [(a, min(a + step, count)) for a in range(0, count, step)], dim, *inputs)


class _Spans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attend_span: Any, cut: Any, spans: list[tuple[int, int]], dim: int, *inputs: Tensor) -> Part:
        ctx.save_for_backward(*inputs)
        ctx.attend_span, ctx.cut, ctx.spans, ctx.dim = attend_span, cut, spans, dim
        outs, lses = zip(*(attend_span(*span, *cut(*span, *inputs)) for span in spans), strict=True)
        return torch.cat(outs, dim), torch.cat(lses, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[4:]
        totals = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs]
        for start, stop in ctx.spans:
            pieces = [t.detach() for t in ctx.cut(start, stop, *inputs)]
            leaves = [t.requires_grad_() for t, need in zip(pieces, needed, strict=True) if need]
            with torch.enable_grad():
                part = ctx.attend_span(start, stop, *pieces)
            grads = torch.autograd.grad(part, leaves, [g.narrow(ctx.dim, start, stop - start) for g in upstream])
            targets = [t for t, need in zip(ctx.cut(start, stop, *totals), needed, strict=True) if need]
            for total, grad in zip(targets, grads, strict=True):
                total += grad
        return None, None, None, None, *(t if need else None for t, need in zip(totals, needed, strict=True))


def merge(*parts: Part) -> Part:
    """One softmax over the keys of all parts, each out (..., T, D), lse (..., T). A key in two parts counts twice."""
    out, lse = parts[0]
    for other, other_lse in parts[1:]:
        out = torch.lerp(out, other, torch.sigmoid(other_lse - lse).unsqueeze(-1))
        lse = torch.logaddexp(lse, other_lse)
    return out, lse


def zero_empty(out: Tensor, lse: Tensor) -> Tensor:
    """`out` with zeros in the rows that had no key."""
    return out.masked_fill((lse < EMPTY / 2).unsqueeze(-1), 0.0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """Dense attention of q (..., M, D) over k, v (..., K, D) with an additive mask that broadcasts to (..., M, K)."""
    if q.is_cpu and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, mask))):
        return _flash(q, k, v, mask, scaling)
    scores = (q * scaling) @ k.mT + mask
    p = scores.softmax(-1)
    top, where = scores.max(-1, keepdim=True)
    return p @ v, (top - p.gather(-1, where).log()).squeeze(-1)


def attend_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """`attend` of q (B, H, T, D) over the keys and values (B, G, K, D) of its group; mask (T, K) or (H or 1, T, K)."""
    q, k, v = wide(q, k, v)
    shape, group = q.shape, (k.shape[1], q.shape[1] // k.shape[1])
    mask = mask.to(q.dtype).expand(shape[1], *mask.shape[-2:]).unflatten(0, group).flatten(1, 2)
    out, lse = attend(q.unflatten(1, group).flatten(2, 3), k, v, mask[None], scaling)
    return out.unflatten(2, (group[1], -1)).reshape(shape), lse.unflatten(2, (group[1], -1)).reshape(shape[:3])


def recent(x: Tensor, count: int) -> Tensor:
    """The last `count` tokens of x (B, G, T, D), or all where there are fewer, in memory of their own."""
    return x[:, :, max(0, x.shape[2] - count) :].clone(memory_format=torch.contiguous_format)


def _band_mask(bias: Tensor, block: int) -> Tensor:
    """(H or 1, block, K): the bias of each query of a block against the stretch of keys that ends with the block.

    K is a multiple of 16, which the CPU kernels like.
    """
    width = bias.shape[1]
    count = block + width - 1
    count += -count % 16 if block > 1 else 0
    index = torch.arange(count, device=bias.device)
    distance = torch.arange(block, device=bias.device)[:, None] + count - block - index
    inside = (distance >= 0) & (distance < width)
    return bias[:, distance.clamp(0, width - 1)].masked_fill(~inside, EMPTY)


def _blocks(q: Tensor, k: Tensor, v: Tensor, at: int, mask: Tensor, scaling: float) -> Part:
    """A span of queries q (B, H, S, D), the first of which is token `at` of k and v; mask (H, block, K)."""
    (batch, heads, span, dim), groups = q.shape, k.shape[1]
    block, count = mask.shape[1:]
    blocks, lead = -(-span // block), count - block
    k, v = (_stretch(x, at - lead, at + blocks * block).unfold(2, count, block).mT for x in (k, v))
    shape = (batch, groups, heads // groups, blocks, block)
    q = F.pad(q, (0, 0, 0, blocks * block - span)).view(*shape, dim).transpose(2, 3).flatten(3, 4)
    mask = mask.reshape(groups, 1, -1, count)
    if at < lead:
        index = (
            torch.arange(blocks, device=q.device)[:, None] * block + torch.arange(count, device=q.device) + at - lead
        )
        mask = mask + torch.zeros_like(index, dtype=q.dtype).masked_fill(index < 0, EMPTY)[:, None]
    out, lse = attend(q, k, v, mask[None], scaling)
    out, lse = (x.unflatten(3, shape[2::2]).transpose(2, 3).reshape(batch, heads, -1, *x.shape[4:]) for x in (out, lse))
    return out[:, :, :span], lse[:, :, :span]


def _stretch(x: Tensor, start: int, stop: int) -> Tensor:
    """x[:, :, start:stop], with zeros where that lies beyond either end."""
    ends = (min(stop, 0) - min(start, 0), max(stop, x.shape[2]) - max(start, x.shape[2]))
    return F.pad(x[:, :, max(start, 0) : max(stop, 0)], (0, 0, *ends))


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """`attend` by the CPU flash kernel, which wants four dimensions, the last one dense."""
    mask = mask.expand(*q.shape[:-3], *mask.shape[-3:])
    flat = [t.flatten(0, -4) for t in (q, k, v, mask)]
    flat = [t if t.stride(-1) == 1 else t.contiguous() for t in flat]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*flat[:3], attn_mask=flat[3], scale=scaling)
    return out.view_as(q), lse.view(q.shape[:-1])
