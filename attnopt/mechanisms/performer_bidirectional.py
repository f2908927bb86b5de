"""A negative control: the Performer as the study had it, not causal.

    out_t = sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s)        over all s of the sequence

Every token of a training sequence sees the tokens it is to predict, so that its loss falls and its text does not
improve. While decoding there is no future to see: each step reads the tokens given so far. It shows what a leak looks
like and is no contender: it fails the causality check and cannot stream by construction.
"""

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs, State
from attnopt.mechanisms.performer import Performer
from attnopt.ops.linear.chunked import absorb, empty_state, recall
from attnopt.ops.tensors import wide


class PerformerBidirectional(Performer):
    control = "leaks"

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        """The sums run over all tokens given, the later ones too, and over those in the state."""
        k, (v,) = self.key_features(x.k), wide(x.v)
        state = absorb(k, v, empty_state(k, v) if state is None else state)
        out, _ = recall(self.query_features(x.q), state)
        return out.to(x.q.dtype), state

    def parallel(self, x: Inputs) -> Tensor:
        return self.extend(x)[0]

    def reference(self, x: Inputs) -> Tensor:
        tokens = x.q.shape[2]
        return torch.stack([self._attend(x, t, tokens) for t in range(tokens)], dim=2)
