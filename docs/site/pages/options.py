"""The page of options: every key of params.yaml with its default and meaning, from the sections themselves."""

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from pydantic import BaseModel, TypeAdapter
from ruamel.yaml import YAML

from attnopt.core.section import Section
from attnopt.settings import OF_A_MIX, OF_EVERY_VARIANT, SHARED, Settings
from attnopt.training.params import MixOptions, Variant

from .repository import ROOT

HEAD = """# Options

Every key of params.yaml, made from the code that validates it. A key that is left out has its default; *the default
study* is what the committed params.yaml says instead. A mechanism's own options are in [its section](mechanisms.md).
A key on the command line: `dvc exp run -S corpus.block=256`.
"""


def page() -> str:
    """Markdown: a table for the top level, one for each section, and for what variants and mixes have of their own."""
    study = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    fields: dict[str, Any] = {name: field.annotation for name, field in Settings.model_fields.items()}
    sections = {name: model for name, model in fields.items() if is_section(model)}
    top = [name for name in Settings.model_fields if name not in sections]
    parts = [HEAD, "## The study {#study}\n", table(Settings, top, "", {})]
    for name, model in sections.items():
        parts += [f"## {name} {{#{name}}}\n", inspect.cleandoc(model.__doc__ or ""), ""]
        parts.append(table(model, model.model_fields, f"{name}.", study.get(name) or {}))
    return "\n".join([*parts, *_of_variants()])


def _of_variants() -> Iterator[str]:
    yield "## A variant's section {#variant}\n"
    yield f"Beside its mechanism's options: these keys, and in {listed(SHARED)} single keys of the sections above.\n"
    yield table(Variant, OF_EVERY_VARIANT, "VARIANT.", {})
    yield "## A mix {#mix}\n"
    yield f"These keys and `seeds`, and in {listed(OF_A_MIX)} single keys of the sections above.\n"
    yield table(MixOptions, MixOptions.model_fields, "mixes.MIX.", {})


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def table(model: type[BaseModel], names: Iterable[str], prefix: str, study: dict[str, Any]) -> str:
    """A Markdown table of fields, in a frame that a narrow window stacks.

    Args:
        prefix: what stands before a key's name in full, which is the row's anchor.
        study: what the default study says of these keys.
    """
    rows = [row(model, name, prefix, study) for name in names]
    if not rows:
        return "It has none.\n"
    head = ["| key | default | takes | meaning |", "|---|---|---|---|"]
    return '\n<div class="options" markdown>\n\n' + "\n".join([*head, *rows]) + "\n\n</div>\n"


def row(model: type[BaseModel], name: str, prefix: str, study: dict[str, Any]) -> str:
    """One field as a row: key, default, what it takes, meaning."""
    field = model.model_fields[name]
    default = "must be given" if field.is_required() else code(field.get_default(call_default_factory=True))
    if name in study and code(study[name]) != default:
        default += f"<br>*the default study:* {code(study[name])}"
    kind = takes(TypeAdapter(field.rebuild_annotation()).json_schema())
    meaning = " ".join((field.description or "").split())
    cells = f'<span id="{prefix}{name}"></span>`{name}`', default, kind, meaning
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def takes(schema: dict[str, Any]) -> str:
    """What a JSON schema admits, in words."""
    if "enum" in schema or "const" in schema:
        return listed(schema.get("enum") or [schema["const"]], "or")
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(takes, schema["anyOf"])))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2].lower()
    kind = schema.get("type")
    if kind == "array":
        inner = takes(schema.get("items", {}))
        return f"list of: {inner}" if inner else "list"
    if kind == "object":
        inner = takes(values) if isinstance(values := schema.get("additionalProperties"), dict) else ""
        return f"mapping to: {inner}" if inner else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    return " ".join(filter(None, [words.get(kind or "", "`null`" if kind == "null" else ""), bounds(schema)]))


def bounds(schema: dict[str, Any]) -> str:
    """The limits of a number, such as "≥ 1, < 65536"."""
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)


def code(value: Any) -> str:
    """A value as YAML has it in one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    return f"`{json.dumps(value, default=lambda v: v.model_dump(mode='json', exclude_unset=True), ensure_ascii=False)}`"


def listed(names: Iterable[Any], last: str = "and") -> str:
    """Names in a row: `a`, `b` and `c`."""
    *first, end = [f"`{name}`" if isinstance(name, str) else code(name) for name in names]
    return f"{', '.join(first)} {last} {end}" if first else end
