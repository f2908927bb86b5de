"""The mechanisms as lists for people: `attnopt mechanisms` on the terminal, and the table in the README."""

import sys

from attnopt.mechanisms import Geometry, Mechanism, load_mechanism, mechanism_names
from attnopt.mechanisms.shared.composite import COMPOSITE

GROWTH = {"constant": "constant", "window": "until the window is full", "linear": "with every token"}
"""`Mechanism.growth` in words."""
SOME = Geometry(heads=12, kv_heads=12, head_dim=64, hidden=768, scaling=0.125)


def mechanisms_table() -> str:
    """Plain text for the terminal: every mechanism with its source, growth, cost and options with their defaults."""
    lines = []
    for kind in mechanism_names():
        cls = load_mechanism(kind)
        mark = f"  [control: {cls.control}]" if cls.control else ""
        paper = f"{cls.paper}, " if cls.paper else ""
        lines += [f"{kind}{mark}", f"    {summary(cls)}", f"    {paper}{cls.source}"]
        lines.append(f"    state grows: {GROWTH[cls.growth]}; work per token: {cls.cost or 'not stated'}")
        chosen = [name for size in cls.sizes(SOME, cls.Options()) for name in size.names]
        by_budget = "what its parts leave free" if kind in COMPOSITE else ", ".join(chosen) or "nothing"
        lines.append(f"    a budget of state chooses: {by_budget}")
        for name, field in cls.Options.model_fields.items():
            default = field.get_default(call_default_factory=True)
            lines.append(f"    {name} = {default!r}  {field.description or ''}".rstrip())
        lines.append("")
    return "\n".join(lines)


def mechanisms_markdown() -> str:
    """A Markdown table for the README, a row per mechanism: kind, what it is, growth of its state, work, paper."""
    lines = ["| kind | what it is | state grows | work per token | paper |", "|---|---|---|---|---|"]
    for kind in mechanism_names():
        cls = load_mechanism(kind)
        name = f"`{kind}` (control: {cls.control})" if cls.control else f"`{kind}`"
        cost = f"`{cls.cost}`" if cls.cost else "not stated"
        paper = f"[{cls.paper or 'source'}]({cls.source})"
        cells = (name, summary(cls), GROWTH[cls.growth], cost, paper)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(cls: type[Mechanism]) -> str:
    """What a mechanism is: the first line of its class's docstring or, where there is none, of its module's."""
    docstring = cls.__doc__ or sys.modules[cls.__module__].__doc__ or ""
    return docstring.strip().split("\n")[0]
