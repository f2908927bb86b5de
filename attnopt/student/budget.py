"""The budget of state: a swap's options chosen to fill it, and what a student holds of softmax's state."""

from collections.abc import Sequence
from typing import Any

import torch

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Geometry, Mechanism
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.student.params import StateParams


def options_within(
    cls: type[Mechanism], options: Any, budget: StateParams | None, geometry: Geometry, dtype: torch.dtype
) -> Any:
    """The options with those that were left free as large as a layer's budget admits, see `Mechanism.sized`.

    Args:
        budget: None, or one without a share, leaves the options as they are.
        dtype: of the model.

    Raises: UserError that says what the mechanism holds and what is allowed, where it cannot be within.
    """
    if budget is None or budget.share is None:
        return options
    allowed = int(budget.share * softmax_bytes(geometry, budget.length, dtype))
    try:
        return cls.sized(geometry, options, allowed, budget.length, dtype)
    except ValueError as error:
        raise UserError(f"{cls.kind}: {error} (state.share {budget.share} of softmax's)") from None


def state_share(mechanisms: Sequence[Mechanism], length: int, dtype: torch.dtype) -> float:
    """What the layers of a student hold at `length` tokens, those with softmax too, as a share of all with softmax."""
    held = sum(m.state_bytes(1, length, dtype) for m in mechanisms)
    return held / sum(softmax_bytes(m.geometry, length, dtype) for m in mechanisms)
