"""What a loss needs of the teacher for N positions, in every form that the teacher's outputs are kept in.

`targets[a:b]` is the part of a run of positions, ready for the loss: HiddenTargets become logits there and only there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnopt.teacher.head import Head


@dataclass(frozen=True)
class DenseTargets:
    """(N, V) log-probabilities, each row known up to a constant."""

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, part: slice) -> "DenseTargets":
        return DenseTargets(self.logits[part])

    def cast(self, dtype: torch.dtype) -> "DenseTargets":
        """Itself: there is no product to compute."""
        return self


@dataclass(frozen=True)
class HiddenTargets:
    """(N, C) final hidden states and the head that turns them into logits: exact, at C numbers a position."""

    hidden: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, part: slice) -> DenseTargets:
        return DenseTargets(self.head(self.hidden[part]))

    def cast(self, dtype: torch.dtype) -> "HiddenTargets":
        """The same with the head's product computed in `dtype`."""
        return HiddenTargets(self.hidden, self.head.to(dtype))


@dataclass(frozen=True)
class SparseTargets:
    """A few tokens of each distribution, at temperature 1.

    Args:
        ids: (N, K) tokens. Different ones in each row, but for entries of probability 0, which may repeat any.
        p: (N, K) their probabilities; with the tail they add up to 1, without they are taken as they are.
        tail: (N,) the probability of all other tokens together, a bucket of its own (a "ghost token").
        entropy: (N,) the teacher's own in nats, where p is an estimate of its distribution by counts: the divergence
            is then estimated without bias too.
    """

    ids: Tensor
    p: Tensor
    tail: Tensor | None = None
    entropy: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "SparseTargets":
        tail, entropy = (None if t is None else t[part] for t in (self.tail, self.entropy))
        return SparseTargets(self.ids[part], self.p[part], tail, entropy)

    def cast(self, dtype: torch.dtype) -> "SparseTargets":
        """Itself: there is no product to compute."""
        return self


Targets = HiddenTargets | DenseTargets | SparseTargets
