"""Templates filled: a page that needs nothing but itself, and Markdown for a git host."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from attnopt.report.parts.figures import Figure, Style


def fill_html(
    name: str, figures: Sequence[Figure], files: Mapping[str, str], looks: Mapping[str, Style], /, **values: Any
) -> str:
    """A page with the figures, and its downloads inside.

    Args:
        files: name of a table -> its CSV. looks: of the variants. values: what the template needs besides.
    """
    environment = _environment(autoescape=True)
    environment.filters["bold"] = _bold
    style, scripts = _template("style.css"), [_template(script) for script in ("charts.js", "page.js")]
    return environment.get_template(name).render(
        files={file: _data_uri(text) for file, text in files.items()},
        looks=looks,
        policy=policy(style, scripts),
        style=markupsafe.Markup(style),
        scripts=[markupsafe.Markup(script) for script in scripts],
        charts=script_json([figure.spec() for figure in figures]),
        **values,
    )


def policy(style: str, scripts: Sequence[str]) -> str:
    """A content security policy under which a page runs these scripts and this style sheet, and nothing else: no other
    script, no handler and no style in an attribute, and no request."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def fill_markdown(name: str, **values: Any) -> str:
    """Relative images, pipe tables, no HTML."""
    environment = _environment(autoescape=False)
    environment.filters |= {"cell": _cell, "fence": _fence}
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(name).render(values)).strip() + "\n"


def script_json(content: Any) -> markupsafe.Markup:
    """JSON that may stand inside a script element: no markup can begin in it."""
    text = compact(content)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _environment(autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _template(name: str) -> str:
    return resources.files("attnopt.report.render").joinpath("templates", name).read_text(encoding="utf-8")


def _data_uri(text: str) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def _bold(text: str) -> markupsafe.Markup:
    """**...** as strong, `...` as code, everything else escaped."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(markupsafe.escape(text)))
    return markupsafe.Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", escaped))


def _cell(text: str) -> str:
    """One line of a pipe table; spaces that must not break, as within 0.52 ± 0.01, stay what they are."""
    escaped = str(text).replace("\\", "\\\\").replace("|", "\\|")
    return re.sub(r"[^\S\u00a0\u202f]+", " ", escaped).strip(" ")


def _fence(text: str) -> str:
    """A code block that no run of backticks in the text can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"
