"""What distillation learns from and evaluation measures against."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.teacher import hidden_states


@dataclass
class Material:
    """What a run learns from: the teacher, each split's blocks (n, T), and its hidden states (n, T, C) where cached."""

    teacher: Any
    blocks: dict[str, np.ndarray]
    cached: dict[str, np.ndarray | None]

    def hidden(self, split: str, rows: Any, ids: Tensor) -> Tensor:
        """(b, T, C) the teacher's final hidden states for the rows of a split, cached or computed."""
        cached = self.cached[split]
        if cached is None:
            with torch.no_grad():
                return hidden_states(self.teacher, ids)
        return torch.from_numpy(np.array(cached[rows])).to(ids.device).float()
