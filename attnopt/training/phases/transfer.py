"""Attention transfer: every layer learns to give the teacher's output on the teacher's own inputs.

All layers learn in one step, each from its own error alone (LoLCATs, https://arxiv.org/abs/2410.10254): in one pass,
or each in its turn, which adds up to the same gradients.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Inputs, Mechanism
from attnopt.ops.tensors import repeat_heads, wide
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import softmax_copy
from attnopt.student.calls import Call, attention_weights, layer_calls, replayed_calls
from attnopt.student.layers import attention_layers
from attnopt.training.layer_cache import LayerCache, LayerTargets
from attnopt.training.params import PhaseName
from attnopt.training.phases.base import Loss, Objective, Part, Told, relative_error


class Transfer(Objective):
    """Mean over layers of the relative error of their outputs, or of the KL of their attention weights, or both summed.

    Raises: UserError where weights are to be matched, and the mechanism has none or they would not be kept.
    """

    name: ClassVar[PhaseName] = "transfer"

    def __init__(self, *args: Any):
        super().__init__(*args)
        wanted = self.variant.transfer.loss
        self.outputs, self.weights = wanted in ("outputs", "both"), wanted in ("weights", "both")
        if self.weights and not all(m.dense_weights for m in mechanisms_of(self.student)):
            raise UserError(
                f"{self.variant.name}.transfer.loss: '{wanted}' needs attention weights on every "
                f"token before, and {self.variant.kind} has none; allowed: outputs"
            )
        if self.weights and self.variant.distill.recompute:
            raise UserError(
                f"{self.variant.name}.transfer.loss: '{wanted}' keeps attention weights, and "
                "distill.recompute does not; allowed: outputs"
            )
        layers = self.variant.transfer.layers
        if self.weights and layers == "in_turn":
            raise UserError(
                f"{self.variant.name}.transfer.loss: '{wanted}' needs a whole copy of the teacher, which "
                "transfer.layers in_turn is to do without; allowed: outputs"
            )
        self.cache = None if layers == "online" else LayerCache(self.dataset)
        self.turns = len(attention_layers(self.student)) if layers == "in_turn" else 1

    def targets(self, split: str, rows: np.ndarray, ids: Tensor) -> LayerTargets | Iterator[LayerTargets] | None:
        """Of the train split, where they are cached."""
        if self.cache is None or split != "train":
            return None
        return (self.cache.targets if self.turns == 1 else self.cache.in_turn)(rows, ids.device)

    def pieces(self, part: Part) -> Iterator[Part]:
        ids, targets, positions = part
        if isinstance(targets, Iterator):
            yield from ((ids, layer, positions) for layer in targets)
        else:
            yield part

    def mechanisms(self, targets: Told) -> list[Mechanism]:
        found = mechanisms_of(self.student)
        if not isinstance(targets, LayerTargets):
            return found
        return found[targets.first : targets.first + len(targets.hidden)]

    @cached_property
    def teacher(self) -> Any:
        """A softmax copy where q and k are to be seen as they enter the attention; the teacher itself is faster."""
        return softmax_copy(self.dataset.teacher) if self.weights else self.dataset.teacher

    def _calls(self, ids: Tensor, targets: Told, positions: Tensor | None) -> Iterable[Call]:
        if not isinstance(targets, LayerTargets):
            return layer_calls(self.teacher, ids, positions)
        # In turn the teacher itself is not touched: there may be no room for it.
        begins = self.teacher if self.turns == 1 else self.student
        return replayed_calls(self.teacher, ids, positions, targets.hidden, targets.outputs, targets.first, begins)

    def called(self) -> list[nn.Module]:
        return attention_layers(self.student)

    def loss(self, ids: Tensor, targets: Told, positions: Tensor | None) -> Loss:
        layers: list[Any] = attention_layers(self.student)
        taken = layers
        if isinstance(targets, LayerTargets):
            taken = layers[targets.first : targets.first + len(targets.hidden)]
        losses = []
        for layer, call in zip(taken, self._calls(ids, targets, positions), strict=True):
            with ExitStack() as watched:
                weights = watched.enter_context(attention_weights(layer.mechanism)) if self.weights else []
                ours = layer(*call.args, **call.kwargs)[0]
            if self.outputs:
                losses.append(relative_error(ours, call.output))
            if self.weights:
                losses.append(weights_kl(weights[0], call.inputs, layer.mechanism.geometry.scaling))
        return torch.stack(losses).sum() / len(layers), None


def weights_kl(weights: Tensor, theirs: Inputs | None, scaling: float) -> Tensor:
    """KL(teacher's attention weights || student's), a mean over rows; one nat of it is one of cross-entropy.

    Args:
        weights: the student's, (B, H, T, T). theirs: q and k as they enter the teacher's attention.
    """
    assert theirs is not None
    q, k = wide(theirs.q, theirs.k)
    with torch.no_grad():
        scores = q @ repeat_heads(k, q.shape[1]).mT * scaling
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        log_p = scores.masked_fill(future, -torch.inf).log_softmax(-1).masked_fill(future, 0)
        p = log_p.exp().masked_fill(future, 0)
    return (p * (log_p - weights.clamp(min=1e-9).log())).sum(-1).mean()
