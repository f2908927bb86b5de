"""The library: students as attention transfer left them, whose layers a mixed student is put together from.

Transfer trains every layer on the teacher's own inputs, each from its own error alone, so that a layer of one student
may stand beside those of others.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from attnopt.core.errors import UserError
from attnopt.records.distill import MixedLayers, StudentCard
from attnopt.student.attach import attach, mechanisms_of
from attnopt.student.budget import state_share
from attnopt.student.files import apply_student, read_card
from attnopt.student.layers import attention_layers
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap


@dataclass(frozen=True)
class LibraryStudent:
    """A student of the library, of which only the attention layers are kept in memory.

    Attributes:
        layers: the attention layers, each with its mechanism, by their place in the model.
    """

    card: StudentCard
    layers: list[nn.Module]

    def swap(self, layer: int) -> Swap:
        """What replaces softmax in one of its layers."""
        mechanism: Any = self.layers[layer].mechanism
        return Swap(mechanism.kind, mechanism.options, [layer])


def read_library(folder: Path, teacher: Any) -> LibraryStudent:
    """A student of the library. Raises UserError, one line, where it is damaged or another teacher's."""
    card = read_card(folder)
    return LibraryStudent(card, attention_layers(apply_student(copy.deepcopy(teacher), folder, card)))


def mixed_student(teacher: Any, blocks: Mapping[int, LibraryStudent], state: StateParams) -> Any:
    """A copy of the teacher with layers of the library in place of its own; the others keep softmax.

    Args:
        blocks: which student a layer is taken from.
        state: the budget, of the whole model.
    Raises: UserError where there is no such layer, or the whole holds more than the budget.
    """
    count = len(attention_layers(teacher))
    if unknown := sorted(blocks.keys() - set(range(count))):
        raise UserError(f"layers: {unknown} do not exist, the model has 0 to {count - 1}")
    student = attach(copy.deepcopy(teacher), [student.swap(layer) for layer, student in blocks.items()])
    for layer, module in enumerate(attention_layers(student)):
        if layer in blocks:
            module.load_state_dict(blocks[layer].layers[layer].state_dict())
    held = state_share(mechanisms_of(student), state.length, student.dtype)
    if state.share is not None and held > state.share:
        raise UserError(
            f"its layers hold {held:.4g} of softmax's state at {state.length} tokens, "
            f"and state.share allows {state.share:g}"
        )
    return student


def parts_of(blocks: Mapping[int, LibraryStudent]) -> list[MixedLayers]:
    """The layers of a mixed student by variant, as its card says it."""
    found: dict[tuple[str, str], MixedLayers] = {}
    for layer, student in sorted(blocks.items()):
        mechanism: Any = student.layers[layer].mechanism
        whose, kind, options = student.card.variant, mechanism.kind, mechanism.options.model_dump()
        one = MixedLayers(variant=whose, kind=kind, options=options, layers=[])
        found.setdefault((whose, kind), one).layers.append(layer)
    return list(found.values())
