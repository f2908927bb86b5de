"""Mechanisms made of others: the parts as options, and what follows from the parts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from attnopt.core.section import Section
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry, Mechanism

COMPOSITE = ("heads", "mixture")
"""Kinds that are made of others, and no part of one."""
GROWTHS = ("constant", "window", "linear")


class Part(Section):
    """A mechanism within another one: its kind, or `{kind: hedgehog, options: {window: 16}}`."""

    kind: str
    """A mechanism that is not made of others itself, and sees no later token."""
    options: dict[str, Any] = Field(default={})
    """Of it; those that are left out have its defaults, or are chosen by a budget of state."""

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, content: Any) -> Any:
        content = {"kind": content} if isinstance(content, str) else content
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            return content
        made, options = load_part(content["kind"]), content.get("options") or {}
        try:
            checked = made.Options.model_validate(options)
        except ValidationError as error:
            raise ValueError(f"{content['kind']}: {_first(error, made)}") from None
        return content | {"options": checked.model_dump(mode="json", exclude_unset=True)}

    def resolved(self) -> tuple[type[Mechanism], Any]:
        """The class, and an instance of its Options."""
        cls = load_mechanism(self.kind)
        return cls, cls.Options.model_validate(self.options)

    def build(self, geometry: Geometry) -> Mechanism:
        """Raises ValueError that names the kind, where the options do not fit the geometry."""
        cls, options = self.resolved()
        try:
            return cls(geometry, options)
        except ValueError as error:
            raise ValueError(f"{self.kind}: {error}") from None

    def sized(self, geometry: Geometry, allowed: int, length: int, dtype: torch.dtype) -> "Part":
        """The part as large as `Mechanism.sized` makes it. Raises ValueError that names the kind."""
        cls, options = self.resolved()
        try:
            found = cls.sized(geometry, options, allowed, length, dtype)
        except ValueError as error:
            raise ValueError(f"{self.kind}: {error}") from None
        return Part(kind=self.kind, options=found.model_dump(mode="json", exclude_unset=True))

    def state_bytes(self, geometry: Geometry, length: int, dtype: torch.dtype) -> int:
        """Of one sequence."""
        with torch.random.fork_rng(devices=[]):
            return self.build(geometry).state_bytes(1, length, dtype)


def load_part(kind: str) -> type[Mechanism]:
    """The class of a part. Raises ValueError where there is none of that name, or it may be no part."""
    if kind in COMPOSITE:
        raise ValueError(f"'{kind}' is made of other mechanisms itself, and can be no part of one")
    cls = load_mechanism(kind)
    if cls.control == "leaks":
        raise ValueError(f"'{kind}' sees later tokens, and can be no part of a mechanism")
    return cls


def _first(error: ValidationError, cls: type[Mechanism]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown option '{where}'; known: {', '.join(cls.Options.model_fields) or 'none'}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where} is {first['input']!r}: {reason[0].lower()}{reason[1:]}" if where else reason


class Composite(Mechanism):
    """Base of those made of others; a subclass calls `take` once with its parts."""

    parts: Any
    """The `Mechanism`s that it is made of: an nn.ModuleList."""

    def take(self, parts: Sequence[Mechanism]) -> None:
        """Keep the parts, and be what they make it: as large as the fastest growing, normalised where all are."""
        self.parts = nn.ModuleList(parts)
        self.growth = max((p.growth for p in parts), key=GROWTHS.index)
        self.normalised = all(p.normalised for p in parts)
        self.working = "quadratic" if any(p.working == "quadratic" for p in parts) else "linear"
        self.parallel_up_to = max(p.parallel_up_to for p in parts)

    def penalty(self) -> Tensor | None:
        found = [t for p in self.parts if (t := p.penalty()) is not None]
        return torch.stack(found).sum() if found else None


def outermost(modules: Iterable[nn.Module]) -> list[Mechanism]:
    """The mechanisms among `model.modules()`, without those that are parts of others."""
    found: list[Mechanism] = []
    inside: set[int] = set()
    for module in modules:
        if isinstance(module, Mechanism) and id(module) not in inside:
            found.append(module)
            inside.update(id(m) for m in module.modules())
    return found
