"""Distillation on logits: a divergence between the two next-token distributions, and cross-entropy.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531. The logits exist one chunk at a time (training/chunked_loss.py).
"""

from typing import Any, ClassVar

from torch import Tensor

from attnopt.targets.targets import DenseTargets, HiddenTargets, SparseTargets
from attnopt.teacher.head import head_of, hidden_states
from attnopt.training.chunked_loss import LossSpec, distillation_loss
from attnopt.training.params import PhaseName
from attnopt.training.phases.base import Loss, Objective, Told


class Distill(Objective):
    """Divergence of the next-token distributions, and cross-entropy, as the section `distill` weighs them."""

    name: ClassVar[PhaseName] = "distill"
    needs_targets: ClassVar[bool] = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.head = head_of(self.student)

    def loss(self, ids: Tensor, targets: Told, positions: Tensor | None) -> Loss:
        assert isinstance(targets, HiddenTargets | DenseTargets | SparseTargets)
        p = self.variant.distill
        spec = LossSpec(p.kl, p.ce_weight, p.temperature, p.loss_chunk)
        ours = hidden_states(self.student, ids, positions)[:, :-1].flatten(0, 1)
        return distillation_loss(ours, self.head, targets, ids[:, 1:].flatten(), spec)
