"""Alignment: the hidden states after every layer, the student running on its own.

An error made in one layer reaches the next, as it will in use (MOHAWK, https://arxiv.org/abs/2408.10189).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from attnopt.teacher.positions import placed
from attnopt.training.params import PhaseName
from attnopt.training.phases.base import Loss, Objective, Told, relative_error


class Align(Objective):
    """Mean over layers of the relative error of the hidden states."""

    name: ClassVar[PhaseName] = "align"

    def loss(self, ids: Tensor, targets: Told, positions: Tensor | None) -> Loss:
        with torch.no_grad():
            theirs = _hidden_by_layer(self.dataset.teacher, ids, positions)
        ours = _hidden_by_layer(self.student, ids, positions)
        return torch.stack([relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]).mean(), None


def _hidden_by_layer(model: Any, ids: Tensor, positions: Tensor | None) -> tuple[Tensor, ...]:
    """(B, T, C) after each layer; what goes into the first is the same for both."""
    where = placed(positions)
    return model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True, **where).hidden_states[1:]
