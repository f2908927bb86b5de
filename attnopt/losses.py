"""Distillation losses on hidden states: the (tokens, vocabulary) logits exist one chunk at a time.

With p the teacher's and q the student's next-token distribution at temperature tau and s the student's logits, the
loss is tau^2 * divergence + ce_weight * CE, a mean over tokens (never over sequences). Gradients in s / tau:

    forward  KL(p || q)                     q - p
    reverse  KL(q || p)                     q (log q - log p - KL)
    jsd      KL(p || m) / 2 + KL(q || m) / 2, m = (p + q) / 2       q (log q - log m - KL(q || m)) / 2
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from attnopt.mechanisms.base import wide
from attnopt.teacher import Head

Divergence = Literal["forward", "reverse", "jsd"]


class LossSpec(NamedTuple):
    kl: Divergence = "forward"
    ce_weight: float = 0.0
    temperature: float = 1.0
    chunk: int = 64


def divergence(log_p: Tensor, log_q: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Per token: the divergence (N,) of log-distributions (N, V), and its gradient (N, V) to the student's logits."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (p * (log_p - log_q)).sum(-1), q.sub_(p)
    if kind == "reverse":
        ratio = log_q - log_p
        value = (q * ratio).sum(-1)
        return value, q * (ratio - value[:, None])
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    to_p, to_q = (p * (log_p - log_m)).sum(-1), (q * (log_q - log_m)).sum(-1)
    return (to_p + to_q) / 2, q * (log_q - log_m - to_q[:, None]) / 2


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients chunk by chunk in forward, so that backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        teacher_hidden: Tensor,
        teacher: Head,
        targets: Tensor,
        spec: LossSpec,
    ) -> tuple[Tensor, Tensor]:
        tokens, tau = len(hidden), spec.temperature
        inputs = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        grads = [torch.zeros_like(t) if t is not None and needed else None for t, needed in inputs]
        student, teacher = Head(weight, bias, scale).to(_dtype(hidden)), teacher.to(_dtype(hidden))
        loss = kl = torch.zeros((), device=hidden.device)
        for i in range(0, tokens, spec.chunk):
            part = slice(i, i + spec.chunk)
            logits, log_p = student(hidden[part]), _log_softmax(teacher(teacher_hidden[part]), tau)
            log_q = _log_softmax(logits, tau)
            value, grad = divergence(log_p, log_q, spec.kl)
            kl = kl + value.sum()
            loss = loss + tau**2 * value.sum()
            grad *= tau
            if spec.ce_weight:
                log_1 = log_q if tau == 1 else _log_softmax(logits, 1)
                loss = loss - spec.ce_weight * log_1.gather(-1, targets[part, None]).sum()
                grad += spec.ce_weight * log_1.exp()
                grad.scatter_add_(-1, targets[part, None], torch.full_like(grad[:, :1], -spec.ce_weight))
            grad *= scale / tokens
            _accumulate(grads, part, grad.to(student.weight.dtype), hidden[part], student.weight, scale)
        ctx.save_for_backward(*(g for g in grads if g is not None))
        ctx.filled = [g is not None for g in grads]
        return loss / tokens, kl / tokens

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * grad_loss if filled else None for filled in ctx.filled]
        return (*grads, None, None, None, None, None)


def _dtype(hidden: Tensor) -> torch.dtype:
    """The precision of the matrix products: autocast's, cast once here and not once a chunk."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _log_softmax(logits: Tensor, tau: float) -> Tensor:
    """In at least float32."""
    (logits,) = wide(logits)
    return torch.log_softmax(logits if tau == 1 else logits / tau, -1)


def _accumulate(grads: list, part: slice, grad: Tensor, hidden: Tensor, weight: Tensor, scale: float) -> None:
    """Add one chunk's share to the gradients of hidden, weight and bias; `grad` is scale * d loss / d logits."""
    if grads[0] is not None:
        grads[0][part] = grad @ weight
    if grads[1] is not None:
        grads[1] += grad.T @ hidden.to(grad.dtype)
    if grads[2] is not None:
        grads[2] += grad.sum(0) / scale


def distillation_loss(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher: Head, targets: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor]:
    """The loss and its divergence part, both means over tokens.

    Args:
        hidden, teacher_hidden: (N, C) final hidden states that predict `targets` (N,), positions aligned.
        head, teacher: their maps to logits.
    Returns: scalars: the differentiable loss; the plain divergence in nats per token (at spec.temperature).
    """
    args = (head.scale, teacher_hidden, teacher, targets, spec)
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, *args)


def distillation_loss_reference(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher: Head, targets: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor]:
    """The same with all logits at once and autograd's own gradients."""
    tau = spec.temperature
    logits = head(hidden)
    log_q = torch.log_softmax(logits / tau, -1)
    log_p = torch.log_softmax(teacher(teacher_hidden) / tau, -1)
    value = divergence(log_p, log_q, spec.kl)[0].mean()
    ce = torch.nn.functional.cross_entropy(logits, targets)
    return tau**2 * value + spec.ce_weight * ce, value
