"""Divergences between two next-token distributions, from their logarithms, in nats per token.

With p the teacher's distribution and q the student's, over a vocabulary of V tokens:

    forward   KL(p || q) = sum_v p_v (log p_v - log q_v)
    reverse   KL(q || p)
    jsd       KL(p || m) / 2 + KL(q || m) / 2,   m = (p + q) / 2        (Lin 1991)

All functions take log-probabilities and compute in their dtype; callers pass float32 or wider.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "jsd"]


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each token.

    Args:
        log_p: (..., V) log-probabilities of the teacher.
        log_q: (..., V) log-probabilities of the student.

    Returns: (...) nats, differentiable.
    """
    return _kl(log_p.exp(), log_p, log_q)


def divergence(log_p: Tensor, log_q: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """One divergence of each token, with its gradient to the student's logits.

    The gradients, by the softmax's own derivative, are

        forward   q - p
        reverse   q (log q - log p - KL(q || p))
        jsd       q (log q - log m - KL(q || m)) / 2

    Args:
        log_p: (N, V) log-probabilities of the teacher.
        log_q: (N, V) log-probabilities of the student.

    Returns: the divergence (N,) in nats, and its gradient (N, V), a new tensor that the caller may overwrite.
    """
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return _kl(p, log_p, log_q), q.sub_(p)
    if kind == "reverse":
        ratio = log_q - log_p
        value = (q * ratio).sum(-1)
        return value, q * (ratio - value[:, None])
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    to_p, to_q = _kl(p, log_p, log_m), _kl(q, log_q, log_m)
    return (to_p + to_q) / 2, q * (log_q - log_m - to_q[:, None]) / 2


def all_divergences(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """All three divergences of each token, with fewer passes over the vocabulary than one after the other.

    They are differences of entropies and cross-entropies, so that each is zero up to the rounding of those sums.

    Args:
        log_p: (N, V) log-probabilities of the teacher.
        log_q: (N, V) log-probabilities of the student.

    Returns: `kl_forward`, `kl_reverse` and `jsd`, (N,) nats each.
    """
    p, q = log_p.exp(), log_q.exp()
    own_p, own_q = (p * log_p).sum(-1), (q * log_q).sum(-1)
    m = (p + q) / 2
    return {
        "kl_forward": own_p - (p * log_q).sum(-1),
        "kl_reverse": own_q - (q * log_p).sum(-1),
        "jsd": (own_p + own_q) / 2 - torch.xlogy(m, m).sum(-1),
    }


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (log_p - log_q)).sum(-1)
