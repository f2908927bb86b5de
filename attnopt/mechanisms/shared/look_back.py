"""What a teacher's softmax does with far tokens, and where a recurrence starts because of it, in closed form.

Source: Taylor-Calibrate (arXiv:2606.16429), which takes a gated recurrence's decay from the mean look-back of each
head, and its write strength from the entropy of the weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FIT_SEQUENCES, FIT_TOKENS = 8, 512
"""The part of the teacher's data that is enough to fit a few numbers per head."""


class Far(NamedTuple):
    """Some queries, and the tokens that are far from them.

    Attributes:
        q: (B, H, n, D), those that have a far token.
        k, v: (B, G, n, D), in the order in which they become far: token j is far from query i where j <= i, and has
            been so for i - j steps.
    """

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int) -> "Far":
        """Of whole sequences q (B, H, T, D), k and v (B, G, T, D) with T > window + sinks; a part of them is used."""
        first = window + sinks
        stop = min(q.shape[2], first + FIT_TOKENS)
        q, k, v = (t[:FIT_SEQUENCES] for t in (q, k, v))
        return cls(q[:, :, first:stop], k[:, :, sinks : stop - window], v[:, :, sinks : stop - window])

    def causal(self, logs: Tensor) -> Tensor:
        """Logs of weights (B, H, n, n), minus infinity for tokens that are not far yet."""
        later = torch.ones(logs.shape[-2:], dtype=torch.bool, device=logs.device).triu(1)
        return logs.masked_fill(later, -torch.inf)


def steps(count: int, like: Tensor) -> Tensor:
    """(n, n): i - j, for how many steps token j has been far from query i."""
    index = torch.arange(count, device=like.device, dtype=like.dtype)
    return index[:, None] - index


def mean_look_back(scores: Tensor) -> Tensor:
    """d (H,): the mean of the steps that a token has been far, by softmax weight, of scores (B, H, n, n)."""
    return (scores.softmax(-1) * steps(scores.shape[-1], scores)).sum(-1).mean((0, 2))


def mean_entropy(scores: Tensor) -> Tensor:
    """(H,): the entropy of the softmax weights over that of equal ones, from 0 to 1, of scores (B, H, n, n); n > 1."""
    logs = scores.log_softmax(-1)
    entropy = -(logs.exp() * logs.masked_fill(logs.isneginf(), 0)).sum(-1)[..., 1:]
    return (entropy / torch.arange(2, scores.shape[-1] + 1, device=scores.device).log()).mean((0, 2))


def per_group(x: Tensor, groups: int) -> Tensor:
    """Numbers per query head (H,) as means per key/value head (G,)."""
    return x.unflatten(0, (groups, -1)).mean(1)
