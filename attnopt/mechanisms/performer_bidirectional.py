"""The Performer without a causal mask, a negative control: every token sees those that it is to predict.

    out_t = sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s)        over all s of the sequence

Source: the Performer as it was published for encoders (Choromanski et al. 2021), and as the study had it. In training
its loss falls, as it reads the answers, and its text does not improve: while decoding there is no future to see, and
each step reads the tokens given so far. It shows what a leak looks like and is no contender: it fails the causality
check and cannot stream by construction. The approximation, the features and their start are the Performer's.
"""

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs, Mechanism, State
from attnopt.mechanisms.performer import Performer
from attnopt.ops.linear.chunked import absorb, empty_state, recall
from attnopt.ops.tensors import wide


class PerformerBidirectional(Performer):
    control = "leaks"

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        """As `Mechanism.extend`, but the sums run over all tokens given, the later ones too, and those in the state."""
        k, (v,) = self.key_features(x.k), wide(x.v)
        state = absorb(k, v, empty_state(k, v) if state is None else state)
        out, _ = recall(self.query_features(x.q), state)
        return out.to(x.q.dtype), state

    def parallel(self, x: Inputs) -> Tensor:
        return self.extend(x)[0]

    def weights(self, x: Inputs) -> Tensor:
        return Mechanism.weights(self, x)

    def reference(self, x: Inputs) -> Tensor:
        tokens = x.q.shape[2]
        return torch.stack([self._attend(x, t, tokens) for t in range(tokens)], dim=2)
