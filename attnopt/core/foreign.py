"""What comes from others: YAML that may be made to blow up, and text that may be made to drive a terminal."""

import unicodedata
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from attnopt.core.errors import UserError

MOST_VALUES = 100_000
"""That a YAML file may hold once its aliases are written out."""


def read_yaml(text: str, name: object) -> Any:
    """The content of a YAML file: plain values alone, as no tag makes an object.

    Args:
        name: of the file, for the message.
    Raises: UserError, one line, where it is no YAML, asks for an object, is nested too deeply, refers to itself, or
        holds more than MOST_VALUES once its aliases are written out.
    """
    try:
        content = YAML(typ="safe").load(text)
        size = _size(content, {})
    except (YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{name} is not readable YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{name} is not readable YAML: it is nested too deeply") from None
    if size > MOST_VALUES:
        raise UserError(f"{name} is not readable YAML: its aliases stand for {size:.3g} values")
    return content


def _size(content: Any, known: dict[int, int | None]) -> int:
    """How many values there are with every alias written out; each container is counted once, `known` by its id.

    Raises: ValueError where one contains itself.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) in known:
        found = known[id(content)]
        if found is None:
            raise ValueError("an anchor contains itself")
        return found
    known[id(content)] = None
    values = [*content.keys(), *content.values()] if isinstance(content, dict) else content
    known[id(content)] = total = 1 + sum(_size(value, known) for value in values)
    return total


def printable(text: str) -> str:
    """The text with control characters, which could drive a terminal, replaced; line ends and tabs stay."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )
