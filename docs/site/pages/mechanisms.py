"""The page of mechanisms: a section for each, from the registry and from the docstring that its file begins with."""

import inspect
import sys
from collections.abc import Iterator
from typing import Any, get_type_hints

import torch

from attnopt.mechanisms import Mechanism, load_mechanism, mechanism_names
from attnopt.mechanisms.shared.catalogue import GROWTH, SOME
from attnopt.mechanisms.shared.composite import COMPOSITE
from attnopt.mechanisms.shared.sizing import softmax_bytes

from .equations import markdown, prose
from .options import table

HEAD = """# Mechanisms

What can stand in softmax's place, made from the files of [attnopt/mechanisms](../attnopt/mechanisms). Each section
begins with what the mechanism computes, where it comes from, what it approximates and how it starts close to the
teacher; then what it remembers, and its options. Letters:

| letter | |
|---|---|
"""
LENGTH = 1024
"""Tokens after which the states of the page are."""


def page() -> str:
    """Markdown: the letters, then every mechanism."""
    legend = "".join(f"| {letter} | {meaning} |\n" for letter, meaning in letters())
    return HEAD + legend + "\n".join("\n".join(parts(load_mechanism(kind))) for kind in mechanism_names())


def letters() -> Iterator[tuple[str, str]]:
    """The letters of shapes and costs, as the contract's docstring lists them."""
    for line in inspect.cleandoc(sys.modules[Mechanism.__module__].__doc__ or "").splitlines():
        if line.startswith("    "):
            letter, meaning = line.split(maxsplit=1)
            yield letter, meaning


def parts(cls: type[Mechanism]) -> Iterator[str]:
    """A mechanism's section."""
    file = f"attnopt/mechanisms/{cls.kind}.py"
    summary, _, rest = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").partition("\n\n")
    yield f"\n## {cls.kind} {{#{cls.kind}}}\n"
    yield f"**{prose(summary)}**" + (f" A control, which {cls.control}." if cls.control else "")
    yield f"\n[{cls.paper or 'Source'}]({cls.source}) · [{file}](../{file})\n"
    yield markdown(rest)
    yield f"\n**State.** {state(cls)}\n"
    yield f"**Work** per token and head: `{cls.cost}`. **A budget of state chooses** {chosen(cls)}.\n"
    yield f"**Options** of `{cls.kind}`:\n" if cls.Options.model_fields else "**Options:** none.\n"
    if cls.Options.model_fields:
        yield table(cls.Options, cls.Options.model_fields, f"{cls.kind}.", {})


def state(cls: type[Mechanism]) -> str:
    """How the state grows, its size beside softmax's, and what it holds where the file says so in a type of its own."""
    held = cls(SOME, cls.Options()).state_bytes(1, LENGTH, torch.float32) / softmax_bytes(SOME, LENGTH, torch.float32)
    text = f"It grows {GROWTH[cls.growth]}" if cls.growth != "constant" else "Constant"
    text += f": with the default options {held:.3g} of softmax's after {LENGTH} tokens (12 heads of 64, float32)."
    return "\n\n".join([text, *(f"`{t.__name__}`: {said}" for t in state_types(cls) if (said := attributes(t)))])


def state_types(cls: type[Mechanism]) -> list[Any]:
    """Named tuples among what `extend` takes as its state."""
    hint = get_type_hints(cls.extend).get("state")
    return [t for t in getattr(hint, "__args__", ()) if hasattr(t, "_fields")]


def attributes(kind: Any) -> str:
    """A named tuple's docstring, its attributes as a list."""
    first, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    lines: list[str] = []
    for line in inspect.cleandoc(rest).splitlines():
        lines += [line] if not line.startswith(" ") else []
        if line.startswith(" "):
            lines[-1] += " " + line.strip()
    items = (line.partition(": ") for line in lines)
    return prose(first.strip()) + "\n\n" + "\n".join(f"- `{name}`: {prose(said)}" for name, _, said in items)


def chosen(cls: type[Mechanism]) -> str:
    """Options that a budget of state sets."""
    if cls.kind in COMPOSITE:
        return "what its parts leave free"
    names = [name for size in cls.sizes(SOME, cls.Options()) for name in size.names]
    return ", ".join(f"`{name}`" for name in names) or "nothing"
