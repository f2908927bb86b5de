"""What all phases of training share: an objective is a module whose `forward` gives the loss of some blocks."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attnopt.core.device import autocast
from attnopt.mechanisms.shared.extra_loss import training_step
from attnopt.ops.tensors import wide
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import Trainable, choose_trainable
from attnopt.targets.dataset import Dataset
from attnopt.targets.targets import Targets
from attnopt.training.layer_cache import LayerTargets
from attnopt.training.params import PhaseName, PhaseParams, Seeds, Variant

Told = Targets | LayerTargets | None
"""What a phase's loss is given of the teacher."""
Loss = tuple[Tensor, Tensor | None]
"""The loss that is minimised and the divergence where it is a part of it; scalars, means over tokens."""


class Objective(nn.Module):
    """Base of the phases' objectives: what a phase minimises, and which parameters it moves.

    It is a module, so that it runs under DDP as it is. The student is its one submodule; the teacher is none, as
    nothing of it trains. A new phase is a subclass with a `name` and a `loss`, an entry in PHASES and a section of
    params.yaml. One step of training, by hand:

        objective = Distill(student, dataset, variant, seeds, torch.float32)
        trainable = objective.begin()                            # all else is frozen
        loss, kl = objective(ids, objective.targets("train", rows, ids), dataset.positions("train", rows, ids.device))
        loss.backward()
        optimizer.step()
        objective.end()                                          # the student is a plain model again

    Args:
        student: a swapped copy of the teacher. It is changed in place: by training, and by what `begin` adds.
        dataset: the teacher and the blocks to learn from.
        variant: its section for this phase is `self.params`.
        seeds: of the run; what a phase draws comes from `seeds.features`.
        dtype: the precision of the forward pass, by autocast where it is not float32.

    Attributes:
        name: the phase's section of params.yaml.
        needs_targets: whether `forward` is to be given what the teacher says of the next tokens.
    """

    name: ClassVar[PhaseName]
    needs_targets: ClassVar[bool] = False

    def __init__(self, student: Any, dataset: Dataset, variant: Variant, seeds: Seeds, dtype: torch.dtype):
        super().__init__()
        self.student, self.dataset, self.variant = student, dataset, variant
        self.seeds, self.dtype = seeds, dtype

    @property
    def params(self) -> PhaseParams:
        """The phase's section: its budget, its rates and what trains."""
        return self.variant.phase(self.name)

    def trainable(self) -> Trainable:
        """What would train, without changing anything."""
        return choose_trainable(self.student, self.params.train)

    def begin(self) -> Trainable:
        """Freeze all of the student but what trains, and return that."""
        found = self.trainable()
        self.student.requires_grad_(False)
        for parameter in found.parameters():
            parameter.requires_grad_(True)
        return found

    def targets(self, split: str, rows: np.ndarray, ids: Tensor) -> Told:
        """What `forward` is to be given of the teacher for the blocks `rows` of a split, ids (b, T)."""
        return self.dataset.targets(split, rows, ids) if self.needs_targets else None

    def forward(self, ids: Tensor, targets: Told, positions: Tensor | None = None) -> Loss:
        """The loss of some blocks, the mechanisms' penalties and what their calls added included.

        Args:
            ids: (b, T) token ids. targets: what `self.targets` gave for them.
            positions: (b, T) where they stand; None: at 0, 1, 2, ...
        """
        with autocast(ids.device, self.dtype), training_step() as terms:
            loss, kl = self.loss(ids, targets, positions)
        for term in terms:
            loss = loss + term
        for mechanism in mechanisms_of(self.student):
            if (penalty := mechanism.penalty()) is not None:
                loss = loss + penalty
        return loss, kl

    def loss(self, ids: Tensor, targets: Told, positions: Tensor | None) -> Loss:
        """The same without these: what a subclass defines."""
        raise NotImplementedError

    def end(self) -> None:
        """Leave the student a plain model, without traces of this phase."""


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """|| ours - theirs ||^2 / || theirs ||^2 of each block (b, T, C), averaged over blocks: a scalar without units."""
    ours, theirs = (t.flatten(1) for t in wide(ours, theirs))
    return ((ours - theirs).square().sum(1) / theirs.square().sum(1)).mean()
