"""Where the tokens of training blocks stand: some blocks are shifted, so that short text teaches late positions.

A shifted block's first token stays at position 0, where it serves as a sink, and the others stand at o + 1, o + 2, ...
The offset o is a property of the block: it is the same for the teacher and for every student, phase and pass.
"""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.core.errors import UserError
from attnopt.teacher.params import TeacherParams

SEED = 0
"""Of the offsets."""


def block_offsets(model: Any, params: TeacherParams, blocks: int, length: int) -> np.ndarray | None:
    """(blocks,) the offset of each: `teacher.shift` of them uniform up to what the positions leave, the others 0.

    Args:
        length: tokens of a block.
    Returns: None where nothing is shifted, by choice or because the blocks fill all positions.
    Raises: UserError where the model has no positions to choose.
    """
    if not params.shift:
        return None
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(f"teacher.shift: {type(model).__name__} takes no position_ids; set it to 0")
    last = min(params.shift_to or model.config.max_position_embeddings, model.config.max_position_embeddings)
    if last <= length:
        return None
    rng = np.random.default_rng([SEED, length])
    return np.where(rng.random(blocks) < params.shift, rng.integers(1, last - length + 1, blocks), 0)


def check_room(model: Any, params: TeacherParams, length: int) -> None:
    """Raises UserError where training blocks are to be shifted and leave no position to shift to."""
    positions = model.config.max_position_embeddings
    if params.shift and min(params.shift_to or positions, positions) <= length:
        what = f"shift_to {params.shift_to}" if params.shift_to else f"shift {params.shift}"
        raise UserError(f"teacher.{what}: blocks of {length} leave no room in {positions} positions; set shift to 0")


def shifted_positions(offsets: np.ndarray, length: int) -> np.ndarray:
    """(b, length) positions of the tokens of blocks with these offsets (b,)."""
    along = np.arange(length)
    return along + np.asarray(offsets)[:, None] * (along > 0)


def positions_of(offsets: np.ndarray | None, rows: Any, length: int, device: torch.device) -> Tensor | None:
    """(b, length) positions of the blocks `rows`; None where they are 0, 1, 2, ... in all of them."""
    if offsets is None or not (chosen := offsets[rows]).any():
        return None
    return torch.from_numpy(shifted_positions(chosen, length)).to(device)


def placed(positions: Tensor | None) -> dict[str, Tensor]:
    """What a model is called with beside ids, so that they stand at positions (B, T); None: nothing, at 0, 1, 2, ...

    Without a mask transformers takes a jump in the positions for the border between two packed documents.
    """
    return {} if positions is None else {"position_ids": positions, "attention_mask": torch.ones_like(positions)}
