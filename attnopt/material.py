"""What distillation learns from and evaluation measures against."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.targets import HiddenTargets, Targets
from attnopt.teacher import Head, head_of, hidden_states


@dataclass
class Material:
    """What a run learns from: the teacher, each split's blocks (n, T), and its hidden states (n, T, C) where cached."""

    teacher: Any
    blocks: dict[str, np.ndarray]
    cached: dict[str, np.ndarray | None]

    @cached_property
    def head(self) -> Head:
        """The teacher's."""
        return head_of(self.teacher)

    def hidden(self, split: str, rows: Any, ids: Tensor) -> Tensor:
        """(b, T, C) the teacher's final hidden states for the rows of a split, cached or computed."""
        cached = self.cached[split]
        if cached is None:
            with torch.no_grad():
                return hidden_states(self.teacher, ids)
        return torch.from_numpy(np.array(cached[rows])).to(ids.device).float()

    def targets(self, split: str, rows: Any, ids: Tensor, step: int) -> Targets:
        """What the teacher says at the b (T - 1) positions that predict a token of the blocks `rows`, ids (b, T).

        Args:
            step: of the training.
        """
        return HiddenTargets(self.hidden(split, rows, ids)[:, :-1].flatten(0, 1), self.head)
