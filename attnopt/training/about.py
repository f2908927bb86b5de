"""What a student is, as its card and its record say it; and which student is refused before any work."""

from collections.abc import Mapping
from typing import Any

from attnopt.conformance import leak
from attnopt.core.errors import UserError
from attnopt.student.attach import mechanisms_of
from attnopt.student.budget import state_share
from attnopt.student.library import LibraryStudent, parts_of
from attnopt.training.params import Variant


def described(student: Any, variant: Variant, mix: Mapping[int, LibraryStudent]) -> dict[str, Any]:
    """Whose it is, its mechanisms, their options as sized, and what it remembers: keys of StudentCard, DistillRecord.

    Args:
        mix: of a mixed student, where each layer is from.
    """
    found, budget = mechanisms_of(student), variant.state
    own = [m for m in found if m.kind == variant.kind]
    obeys = all(m.growth != "linear" for m in own)
    return {
        "variant": variant.name,
        "kind": variant.kind,
        "control": next((m.control for m in found if m.control), None),
        "options": {} if variant.is_mix else (own[0] if own else variant).options.model_dump(),
        "parts": parts_of(mix),
        "state_share": state_share(found, budget.length, student.dtype),
        "state_length": budget.length,
        "state_budget": budget.share if obeys else None,
        "layers": variant.layers,
        "start": variant.weights,
    }


def refuse_leaks(student: Any) -> None:
    """Raises UserError where a mechanism sees the future, unless it is marked as a control that does."""
    for mechanism in mechanisms_of(student):
        if mechanism.control != "leaks" and (reason := leak(mechanism)):
            raise UserError(f"{reason}: it would be told what it has to predict")
