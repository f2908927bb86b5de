"""Named studies: `studies/mini.yaml` is the default in full; every other file holds only what differs from it."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.core.files import written_aside
from attnopt.core.section import spelling_hint
from attnopt.tools.shipped import shipped

STUDIES = shipped("studies")
DEFAULT = "mini"
WHOLE = ("variants", "mixes")
"""Sections that a study names in full or not at all."""


def study_names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def yaml_writer() -> YAML:
    """The round-trip writer that DVC uses too, so that `dvc exp run -S` gives a one-line difference."""
    writer = YAML()
    writer.width = 1000
    return writer


def compose_study(name: str) -> str:
    """The text of params.yaml for a study, comments kept. Raises UserError that lists the studies."""
    if name not in study_names():
        raise UserError(
            f"unknown study '{name}'{spelling_hint(name, study_names())}; known: {', '.join(study_names())}"
        )
    base = yaml_writer().load((STUDIES / f"{DEFAULT}.yaml").read_text(encoding="utf-8"))
    if name != DEFAULT:
        known = list(base["variants"])
        changes = yaml_writer().load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
        if "variants" in changes:
            changes.setdefault("mixes", {})  # the default's are of other variants
        lay_over(base, changes)
        for variant in known:
            if variant not in base["variants"]:
                base.pop(variant, None)
    text = io.StringIO()
    yaml_writer().dump(base, text)
    return text.getvalue()


def lay_over(base: Any, changes: Any) -> None:
    """Mappings merge, key by key; anything else, and those of WHOLE, replaces, a list or mapping with its comment."""
    for key, value in changes.items():
        if key not in WHOLE and isinstance(value, dict) and isinstance(base.get(key), dict):
            lay_over(base[key], value)
        else:
            if isinstance(base.get(key), list | dict):
                base.ca.items.pop(key, None)
            base[key] = value


def apply_study(name: str, path: Path = Path("params.yaml")) -> None:
    """Write the study to params.yaml; it is validated first, so a mistake leaves the old file."""
    text = compose_study(name)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
        params.load_settings(aside)
    print(f"params.yaml now holds the study '{name}'; `dvc params diff` shows what changed, `dvc repro` runs it")
