"""Distillation losses on hidden states: the (tokens, vocabulary) logits exist one chunk at a time.

With p the teacher's and q the student's next-token distribution at temperature tau and s the student's logits, the
loss is tau^2 * divergence + ce_weight * CE, a mean over tokens (never over sequences). Gradients in s / tau:

    forward  KL(p || q)                     q - p
    reverse  KL(q || p)                     q (log q - log p - KL)
    jsd      KL(p || m) / 2 + KL(q || m) / 2, m = (p + q) / 2       q (log q - log m - KL(q || m)) / 2

Of a sparse teacher only forward KL is defined: the others weigh tokens by the student, which the teacher did not keep.
With a tail, all tokens that were not kept are one bucket of both distributions, P and Q there:

    forward  sum p log(p / q) + P log(P / Q)        q - p of a kept token, q (1 - P / Q) of another
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnopt.ops.divergence import Divergence, divergence
from attnopt.ops.tensors import wide
from attnopt.targets.targets import DenseTargets, SparseTargets, Targets
from attnopt.teacher.head import Head
from attnopt.training.params import Term, refuse_partial

CPU_CACHE_BYTES = 2**21
"""Logits that the passes over the vocabulary take at a time on a CPU: what stays in its cache."""


class LossSpec(NamedTuple):
    kl: Term = "forward"
    """none: the loss is cross-entropy alone, and the divergence that is reported the forward one."""
    ce_weight: float = 0.0
    temperature: float = 1.0
    chunk: int = 256

    @property
    def reported(self) -> Divergence:
        return "forward" if self.kl == "none" else self.kl


def sparse_divergence(targets: SparseTargets, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL from a sparse teacher, as `divergence`; without a tail the missing tokens have probability 0."""
    ids, p = targets.ids, targets.p.to(log_q.dtype)
    log_kept, q = log_q.gather(-1, ids), log_q.exp()
    negative_entropy = torch.xlogy(p, p).sum(-1) if targets.entropy is None else -targets.entropy.to(q.dtype)
    value = negative_entropy - (p * log_kept).sum(-1)
    if targets.tail is None:
        return value, q.mul_(p.sum(-1, keepdim=True)).scatter_add_(-1, ids, -p)
    tail = targets.tail.to(q.dtype)
    rest = q.scatter(-1, ids, 0).sum(-1).clamp_min(torch.finfo(q.dtype).tiny)
    value += torch.xlogy(tail, tail) - tail * rest.log()
    grad = q.mul_(1 - (tail / rest)[:, None])
    return value, grad.scatter_(-1, ids, log_kept.exp() - p)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients chunk by chunk in forward, so that backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        targets: Targets,
        labels: Tensor,
        spec: LossSpec,
    ) -> tuple[Tensor, Tensor]:
        tokens = len(hidden)
        inputs = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        grads = [torch.zeros_like(t) if t is not None and needed else None for t, needed in inputs]
        student, targets = Head(weight, bias, scale).to(_dtype(hidden)), targets.cast(_dtype(hidden))
        sums = torch.zeros(2, dtype=wide(hidden)[0].dtype, device=hidden.device)
        for i in range(0, tokens, spec.chunk):
            part = slice(i, i + spec.chunk)
            buffer, theirs = student(hidden[part]), targets[part]  # the logits, until their gradient takes their place
            for rows in _rows(buffer):
                values, grad = _loss(buffer[rows], theirs[rows], labels[part][rows], spec)
                sums += values
                buffer[rows] = grad.mul_(scale / tokens)
            _accumulate(grads, part, buffer, hidden[part], student.weight, scale)
        ctx.save_for_backward(*(g for g in grads if g is not None))
        ctx.filled = [g is not None for g in grads]
        loss, kl = sums / tokens
        return loss, kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * grad_loss if filled else None for filled in ctx.filled]
        return (*grads, None, None, None, None)


def _rows(logits: Tensor) -> list[slice]:
    """How the passes over the vocabulary cut a chunk: on a CPU into pieces that its cache holds."""
    n, vocab = logits.shape
    step = n if logits.is_cuda else max(1, CPU_CACHE_BYTES // (4 * vocab))
    return [slice(i, i + step) for i in range(0, n, step)]


def _loss(
    logits: Tensor, theirs: DenseTargets | SparseTargets, labels: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor]:
    """The sums over some tokens of (loss, divergence), and the loss's gradient to the logits, in at least float32."""
    tau, weight, trained = spec.temperature, spec.ce_weight, spec.kl != "none"
    log_q = _log_softmax(logits, tau)
    if isinstance(theirs, SparseTargets):
        value, grad = sparse_divergence(theirs, log_q)
    else:
        value, grad = divergence(_log_softmax(theirs.logits, tau), log_q, spec.reported)
    kl = value.sum()
    loss = tau**2 * kl * trained
    grad = grad.mul_(tau * trained)
    if weight:
        log_1 = log_q if tau == 1 else _log_softmax(logits, 1)
        loss = loss - weight * log_1.gather(-1, labels[:, None]).sum()
        grad.add_(log_1.exp(), alpha=weight)
        grad.scatter_add_(-1, labels[:, None], torch.full_like(grad[:, :1], -weight))
    return torch.stack([loss, kl]), grad


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
        if grad.dtype == grads[1].dtype:
            grads[1].addmm_(grad.T, hidden)
        else:
            grads[1] += grad.T @ hidden.to(grad.dtype)
    if grads[2] is not None:
        grads[2] += grad.sum(0) / scale


def distillation_loss(
    hidden: Tensor, head: Head, targets: Targets, labels: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor]:
    """The loss and its divergence part, both means over tokens.

    Args:
        hidden: (N, C) final hidden states of the student that predict `labels` (N,).
        head: its map to logits.
        targets: the teacher's distributions at the same N positions.
    Returns: scalars: the differentiable loss; the plain divergence in nats per token (at spec.temperature).
    Raises: UserError where targets are sparse and the loss is not defined on them.
    """
    assert len(hidden) == len(targets) == len(labels)
    if isinstance(targets, SparseTargets):
        refuse_partial(spec.kl, spec.temperature, "a sparse teacher")
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, head.scale, targets, labels, spec)


def distillation_loss_reference(
    hidden: Tensor, head: Head, targets: Targets, labels: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor]:
    """The same with all logits at once and autograd's own gradients."""
    tau, theirs = spec.temperature, targets[:]
    logits = head(hidden)
    log_q = torch.log_softmax(logits / tau, -1)
    if isinstance(theirs, SparseTargets):
        value = _sparse_reference(theirs, log_q).mean()
    else:
        value = divergence(torch.log_softmax(theirs.logits / tau, -1), log_q, spec.reported)[0].mean()
    ce = spec.ce_weight * torch.nn.functional.cross_entropy(logits, labels)
    return ce if spec.kl == "none" else tau**2 * value + ce, value


def _sparse_reference(targets: SparseTargets, log_q: Tensor) -> Tensor:
    """Forward KL (N,) over the tokens that were kept and, where there is a tail, the sum of all others."""
    p, kept = targets.p, log_q.gather(-1, targets.ids)
    cross = -(p * kept).sum(-1)
    entropy = -torch.xlogy(p, p).sum(-1) if targets.entropy is None else targets.entropy
    if targets.tail is not None:
        cross = cross - targets.tail * (1 - kept.exp().sum(-1)).log()
        entropy = entropy - torch.xlogy(targets.tail, targets.tail)
    return cross - entropy
