"""A mistake in params.yaml in one line: the key, what was there, and what is allowed or the nearest name."""

import difflib
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from attnopt.core.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text, re.ASCII):
        raise ValueError("a name is up to 64 letters, digits, _ and -, and starts with a letter or digit")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""Of a variant or a mix: it names folders, and stages of dvc.yaml."""
SHOWN = 200
"""Characters of a wrong value that a message repeats."""


class Section(BaseModel):
    """A section of params.yaml: frozen, every default runnable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def require_key(section: Any, needed: dict[str, str]) -> Any:
    """The section, where it has the key that its `source` needs. Raises ValueError that names the key."""
    key = needed.get(section.source)
    if key and not getattr(section, key):
        raise ValueError(f"source {section.source} needs the key '{key}'")
    return section


def validated(model: Any, content: Any, where: str) -> Any:
    """`content` as a pydantic model; `where` is the section it stands in. Raises UserError, one line."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_one_line(error, model, where)) from None


def _one_line(error: ValidationError, model: Any, where: str) -> str:
    first = error.errors()[0]
    key = first["loc"][-1:] == ("[key]",) and first["type"] == "value_error"
    path = ".".join(str(p) for p in (where, *(first["loc"][:-2] if key else first["loc"])) if p != "")
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        section = _field_model(model, first["loc"][:-1])
        names = list(section.model_fields)
        hint = spelling_hint(str(first["loc"][-1]), names)
        return f"params.yaml: unknown key '{path}'{hint}; known: {', '.join(names) or 'none'}{others}"
    if first["type"] == "missing":
        return f"params.yaml: '{path}' is missing{others}"
    reason = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):
        return f"params.yaml: {path + ': ' if path else ''}{reason}{others}"
    value = repr(first["input"])[:SHOWN]
    if key:
        return f"params.yaml: {path}: {value} is no name: {reason}{others}"
    return f"params.yaml: '{path}' is {value}: {reason[0].lower()}{reason[1:]}{others}"


def _field_model(model: Any, path: tuple) -> Any:
    for part in path:
        field = model.model_fields.get(part)
        if field is not None and hasattr(field.annotation, "model_fields"):
            model = field.annotation
    return model


def spelling_hint(name: str, known: Any) -> str:
    """A hint at the known name that is likest, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean '{close[0]}'?)" if close else ""
