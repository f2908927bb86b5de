"""What the project's own files beside its packages are, in a checkout and in an installed wheel: pipeline and studies."""

from pathlib import Path

from attnopt.core.code import ROOT

ASSETS = ROOT / "attnopt" / "assets"


def shipped(name: str) -> Path:
    """`dvc.yaml` or `studies`: where the wheel has them (setup.py puts them there), else in the checkout."""
    inside = ASSETS / "project" / name
    return inside if inside.exists() else ROOT / name
