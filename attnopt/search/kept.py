"""What was measured of mixes, kept on disk, so that a search that was killed goes on where it was."""

import time
from typing import Any

import numpy as np
import torch

from attnopt.core.checkpoint import Checkpoint
from attnopt.search.probe import Measured
from attnopt.search.solve import Found

EVERY = 20.0
"""Seconds of work that a kill costs at most, and a mix."""


class KeptMeasures(dict[Found, Measured]):
    """By mix; what an earlier process kept is there at once.

    Args:
        checkpoint: its key is of all that a measure is a function of.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.saved = checkpoint, time.monotonic()
        state: dict[str, Any] = checkpoint.load() or {}
        for mix, pieces, lists in zip(*(state.get(name, []) for name in ("mixes", "pieces", "lists")), strict=True):
            super().__setitem__(tuple(mix.tolist()), Measured(pieces.numpy(), lists.numpy()))

    def __setitem__(self, mix: Found, measured: Measured) -> None:
        super().__setitem__(mix, measured)
        if time.monotonic() - self.saved > EVERY:
            self.save()

    def save(self) -> None:
        """All there are, on the disk."""
        state = {
            "mixes": torch.tensor(list(self)),
            "pieces": torch.from_numpy(np.stack([one.pieces for one in self.values()])),
            "lists": torch.from_numpy(np.stack([one.lists for one in self.values()])),
        }
        self.checkpoint.save(state)
        self.saved = time.monotonic()
