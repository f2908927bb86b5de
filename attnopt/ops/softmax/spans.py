"""What all forms of softmax attention share: dense attention to some keys, and ways to join such pieces.

Every form returns a `Part`, (out, lse): the softmax average over its own keys and the log-sum-exp of its scores, in at
least float32. `merge` joins parts into the one softmax over all their keys, so that a far branch of any kind (linear
attention: numerator / denominator and log denominator) can stand beside a band under one normaliser:

    out, lse = band_attention(q, k, v, window, scaling)
    out, lse = merge((out, lse), (numerator / denominator[..., None], denominator.log()))

Long runs of queries are taken in spans (`in_spans`), so that the scores of a few hundred queries exist at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnopt.ops.tensors import MASKED, wide

Part = tuple[Tensor, Tensor]
"""out (..., T, D), the mean of the values by softmax weight, and lse (..., T), the log-sum-exp of the scores. A row
without keys has an lse of about MASKED and a meaningless out: it merges as nothing, and `zero_empty` makes it zeros."""

BLOCK = 32
"""Queries that share one gathered stretch of keys."""
QUERY_SPAN = 512
"""Queries handled at a time: what they need stays in the cache."""


def in_spans(
    attend_span: Callable[..., Part],
    cut: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    count: int,
    step: int | None = None,
    dim: int = 2,
) -> Part:
    """Attention of many queries, computed span by span.

    Where there are several spans, a backward pass computes each once more rather than keep its scores.

    Args:
        attend_span: attend_span(start, stop, *cut(start, stop, *inputs)) gives the part of the queries start:stop.
        cut: cut(start, stop, *inputs) takes from each input a view of what the span needs. It is also applied to the
            inputs' gradients, to find where the span's gradients are to be added.
        inputs: the tensors that attention reads.
        count: the number of queries.
        step: queries per span; QUERY_SPAN where None.
        dim: the dimension that counts the queries in out and lse.

    Returns: the part of all queries.
    """
    step = step or QUERY_SPAN
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
    """The part of one softmax over the keys of all parts, each out (..., T, D), lse (..., T).

    The parts must hold the same queries; a key that is in two of them counts twice.
    """
    out, lse = parts[0]
    for other, other_lse in parts[1:]:
        out = torch.lerp(out, other, torch.sigmoid(other_lse - lse).unsqueeze(-1))
        lse = torch.logaddexp(lse, other_lse)
    return out, lse


def zero_empty(out: Tensor, lse: Tensor) -> Tensor:
    """out (..., T, D) with zeros in the rows that had no key, which their lse (..., T) tells."""
    return out.masked_fill((lse < MASKED / 2).unsqueeze(-1), 0.0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """Dense attention.

    Args:
        q: (..., M, D).
        k, v: (..., K, D).
        mask: added to the scores; broadcasts to (..., M, K).
        scaling: the factor on q . k.

    Returns: out (..., M, D), lse (..., M).
    """
    if q.is_cpu and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, mask))):
        return _flash(q, k, v, mask, scaling)
    scores = (q * scaling) @ k.mT + mask
    p = scores.softmax(-1)
    top, where = scores.max(-1, keepdim=True)
    return p @ v, (top - p.gather(-1, where).log()).squeeze(-1)


def attend_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """Dense attention with grouped heads.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, K, D).
        mask: (T, K) or (H or 1, T, K), added to the scores.
        scaling: the factor on q . k.

    Returns: out (B, H, T, D), lse (B, H, T).
    """
    q, k, v = wide(q, k, v)
    shape, group = q.shape, (k.shape[1], q.shape[1] // k.shape[1])
    mask = mask.to(q.dtype).expand(shape[1], *mask.shape[-2:]).unflatten(0, group).flatten(1, 2)
    out, lse = attend(q.unflatten(1, group).flatten(2, 3), k, v, mask[None], scaling)
    return out.unflatten(2, (group[1], -1)).reshape(shape), lse.unflatten(2, (group[1], -1)).reshape(shape[:3])


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Part:
    """`attend` by PyTorch's flash kernel for CPUs, which takes four dimensions, the last of them dense."""
    mask = mask.expand(*q.shape[:-3], *mask.shape[-3:])
    flat = [t.flatten(0, -4) for t in (q, k, v, mask)]
    flat = [t if t.stride(-1) == 1 else t.contiguous() for t in flat]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*flat[:3], attn_mask=flat[3], scale=scaling)
    return out.view_as(q), lse.view(q.shape[:-1])
