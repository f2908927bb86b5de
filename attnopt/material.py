"""What distillation learns from and evaluation measures against."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.cache import Stored
from attnopt.device import on_device
from attnopt.logits import TargetForm
from attnopt.targets import HiddenTargets, Targets
from attnopt.teacher import Head, head_of, hidden_states


@dataclass
class Material:
    """What a run learns from: the teacher and each split's blocks (n, T).

    Args:
        cached: the splits whose hidden states (T, C) of each block are cached.
        outputs: the train split's cache in another form.
    """

    teacher: Any
    blocks: dict[str, np.ndarray]
    cached: dict[str, Stored]
    outputs: tuple[TargetForm, Stored] | None = None

    @cached_property
    def head(self) -> Head:
        """The teacher's."""
        return head_of(self.teacher)

    def hidden(self, split: str, rows: Any, ids: Tensor) -> Tensor:
        """(b, T, C) the teacher's final hidden states for the rows of a split, cached or computed."""
        if split not in self.cached:
            with torch.no_grad():
                return hidden_states(self.teacher, ids)
        return on_device(self.cached[split].stack("hidden", rows), ids.device).float()

    def targets(self, split: str, rows: Any, ids: Tensor) -> Targets:
        """What the teacher says at the b (T - 1) positions that predict a token of the blocks `rows`, ids (b, T)."""
        if self.outputs and split == "train":
            form, stored = self.outputs
            return form.decode([stored.block(row) for row in rows], ids.device)
        return HiddenTargets(self.hidden(split, rows, ids)[:, :-1].flatten(0, 1), self.head)
