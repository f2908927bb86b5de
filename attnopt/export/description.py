"""What config.json says of an exported student: a mechanism for every layer, and where its numbers come from."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Mechanism
from attnopt.records.base import Row, first_misfit
from attnopt.student.swap import Swap

KEY = "student"
"""Of the description in config.json."""


class LayerRow(Row):
    """The mechanism of one attention layer. options: all of them, as they were chosen."""

    kind: str
    options: dict[str, Any]


class Description(Row):
    """The key `student` of an exported config.json.

    Attributes:
        format: counted up when a key changes its meaning.
        attnopt: the version that wrote it.
        layers: one for every attention layer, in order.
    """

    format: Literal[1] = 1
    attnopt: str
    layers: list[LayerRow]


def describe(mechanisms: Sequence[Mechanism], version: str) -> Description:
    """The description of a student by its mechanisms, in the order of its layers."""
    rows = [LayerRow(kind=m.kind, options=m.options.model_dump(mode="json")) for m in mechanisms]
    return Description(attnopt=version, layers=rows)


def read_description(content: Any, file: object) -> Description:
    """The description in what stands under `student` in a config.json, whose name is `file`.

    Raises: UserError, one line that names the file and the key.
    """
    if not isinstance(content, dict):
        raise UserError(f"{file}: '{KEY}' is {content!r}: the description of a student is needed: export it again")
    if content.get("format") != 1:
        raise UserError(f"{file}: '{KEY}.format' is {content.get('format')!r}, this version reads 1: export it again")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file}: {KEY}: {first_misfit(error)}: export it again") from None


def swaps_of(description: Description) -> list[Swap]:
    """The swaps that make such a student: one for all layers of equal kind and options, softmax's left out if another
    is there."""
    found: list[tuple[LayerRow, list[int]]] = []
    for i, row in enumerate(description.layers):
        layers = next((layers for other, layers in found if other == row), None)
        if layers is None:
            found.append((row, [i]))
        else:
            layers.append(i)
    swaps = [Swap(row.kind, row.options, layers) for row, layers in found]
    return [swap for swap in swaps if swap.kind != "softmax"] or swaps
