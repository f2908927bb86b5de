"""What replaces softmax in a model: the one description of a student's attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Weights = Literal["teacher", "random"]


@dataclass(frozen=True)
class Swap:
    """A mechanism, its options, and where it goes.

    Attributes:
        kind: the mechanism's name, a file of attnopt/mechanisms.
        options: an instance of that mechanism's Options.
        layers: indices of the layers that it replaces, the others keep softmax; None: all.
        weights: what the attention layers' own weights start from; random is a control.
    """

    kind: str
    options: Any
    layers: Sequence[int] | None = None
    weights: Weights = "teacher"
