"""Where the project's own files beside its packages lie, in a checkout and in an installed wheel."""

from pathlib import Path

from attnopt.core.code import ROOT

ASSETS = ROOT / "attnopt" / "assets"
BUNDLED = ("enwiki-sample", "mini-gpt2")
"""The data among them that stages read."""
STUDY = ASSETS / "study"
"""The files of a new study that are the same in all."""


def shipped(name: str) -> Path:
    """`dvc.yaml` or `studies`: where the wheel has them (setup.py puts them there), else in the checkout."""
    inside = ASSETS / "project" / name
    return inside if inside.exists() else ROOT / name
