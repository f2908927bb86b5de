"""Docstrings as Markdown: their equations typeset as HTML, without a font or a script from anywhere."""

import html
import inspect
import re
from collections.abc import Iterator

from .repository import ROOT

GREEK = {"alpha": "α", "beta": "β", "mu": "μ", "phi": "φ", "tau": "τ"}
_RAISED = r"\^(\{[^{}]*\}|\([^()]*\)|[A-Za-z0-9]+)"
_LOWERED = r"_(\{[^{}]*\}|[A-Za-z0-9]+(?:,[a-z]+)?)"


def markdown(text: str) -> str:
    """Paragraphs of a docstring without its indentation, of which indented ones are equations."""
    blocks = text.split("\n\n")
    return "\n\n".join(equation(b) if b.startswith("    ") else prose(b) for b in blocks)


def prose(text: str) -> str:
    """A paragraph: papers and files of code as links, single letters with their indices typeset, code left alone."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(_code(p) if p.startswith("`") else _prose(p) for p in parts)


def _prose(text: str) -> str:
    text = re.sub(r"(?<![\w/])arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", html.escape(text, False))
    names = "|".join([*GREEK, "sum", "log", "out", "far"])
    return re.sub(rf"(?<![\w/`])(?:[A-Za-z]|{names})'?(?:{_RAISED}|{_LOWERED})+", lambda m: typeset(m[0]), text)


def _code(text: str) -> str:
    name = text.strip("`")
    for room in ("mechanisms", ""):
        path = f"attnopt/{room}/{name}".replace("//", "/")
        if name.endswith(".py") and (ROOT / path).is_file():
            return f"[{text}](../{path})"
    return text


def equation(block: str) -> str:
    """An indented block: its lines with their columns, which are apart by two blanks or more."""
    rows = list(_rows(block))
    width = max(map(len, rows))
    if len(rows) > 1 and width > 1:
        cells = ["".join(f"<td>{typeset(html.escape(c, False))}</td>" for c in row) for row in rows]
        lines = "".join(f"<tr>{row}</tr>" for row in cells)
        return f'<div class="equation"><table class="rows">{lines}</table></div>'
    lines = "<br>".join(" &emsp; ".join(f"<span>{typeset(html.escape(c, False))}</span>" for c in row) for row in rows)
    return f'<div class="equation">{lines}</div>'


def _rows(block: str) -> Iterator[list[str]]:
    """The lines, each in columns; one that is indented further goes on with the last column of the line before."""
    row: list[str] = []
    for line in inspect.cleandoc("\n" + block).splitlines():
        if line.startswith(" ") and row:
            row[-1] += " " + line.strip()
            continue
        if row:
            yield row
        row = re.split(r"\s{2,}", line.strip())
    yield row


def typeset(text: str) -> str:
    """Escaped text with indices and exponents set as such, names of Greek letters and signs as letters and signs."""
    for name, letter in GREEK.items():
        text = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z])", letter, text)
    text = text.replace("&lt;=", "≤").replace(" . ", " · ").replace(" - ", " − ").replace("'", "′")
    text = re.sub(r"(?<![A-Za-z])-(?=[A-Z ])", "−", text)
    text = re.sub(r"(?<![A-Za-z])sum(?=_)", "Σ", re.sub(r"(?<![A-Za-z])sqrt\b", "√", text))
    text = re.sub(_RAISED, lambda m: f"<sup>{m[1].strip('{}')}</sup>", text)
    return re.sub(_LOWERED, lambda m: f"<sub>{m[1].strip('{}')}</sub>", text)
