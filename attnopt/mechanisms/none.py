"""The floor: no attention at all, so that what another mechanism's attention is worth can be seen.

    out_t = 0

Source: the habit of taking a component out to see what it does, as Benfeghoul et al. 2025 do with the branches of
converted models. Nothing is fitted; the rest of the student learns to do without.
"""

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs, Mechanism, MechanismOptions, State


class NoAttention(Mechanism):
    source = "https://arxiv.org/abs/2510.05901"
    paper = "Benfeghoul et al. 2025"
    growth = "constant"
    cost = "0"
    normalised = False

    class Options(MechanismOptions):
        pass

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        return x.q * 0, None

    def reference(self, x: Inputs) -> Tensor:
        return x.q * 0

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0
