"""What replaces softmax in a model: the one description of a student's attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from attnopt.student.params import StateParams

if TYPE_CHECKING:
    from attnopt.mechanisms.base import MechanismOptions

Weights = Literal["teacher", "random"]


@dataclass(frozen=True)
class Swap:
    """A mechanism, its options, and where it goes.

        Swap("performer", {"features": 64}, layers=[1, 2])

    Attributes:
        kind: the mechanism's name, a file of attnopt/mechanisms.
        options: an instance of that mechanism's Options, or a mapping of single options; the others keep their
            defaults. `attach` checks them.
        layers: indices of the layers that it replaces, the others keep softmax; None: all.
        weights: what the attention layers' own weights start from: the teacher's, or drawn anew, which is a control.
            `build_student` acts on it; `attach` leaves the model's weights as they are.
        state: the budget that sizes it: options that were not given are chosen so that each of its layers fills it.
            None: the options are meant as they are.
    """

    kind: str
    options: "MechanismOptions | Mapping[str, Any]" = field(default_factory=dict)
    layers: Sequence[int] | None = None
    weights: Weights = "teacher"
    state: StateParams | None = None
