"""Runs to compare: folders with records, and revisions or experiments of this project, read through DVC's cache."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnopt.core.errors import UserError
from attnopt.core.foreign import read_yaml
from attnopt.records.distill import MIXED
from attnopt.report.context import Context
from attnopt.report.data.read import read_records
from attnopt.report.params import ReportParams

STAGES = ("distill", "evaluate", "bench")
MANIFESTS = ("data/corpus/manifest.json", "data/teacher/manifest.json")


@dataclass
class Run:
    """One run of a comparison.

    Attributes:
        source: how it was asked for.
        settings: its params.yaml, flat: "performer.features" -> 64.
        context: its records, summarized.
    """

    source: str
    settings: dict[str, Any]
    context: Context


def read_run(source: str, report: ReportParams) -> Run:
    """A project's folder, or what a git revision or DVC experiment of the project here left in DVC's cache.

    Raises: UserError where it is neither, or has no results at hand.
    """
    if Path(source).is_dir():
        return _run(source, Path(source), report)
    with tempfile.TemporaryDirectory() as folder:
        _fetch(source, Path(folder))
        return _run(source, Path(folder), report)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs -> their values, None where a run has no such setting."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in content.items()]
    return {key: value for part in parts for key, value in part.items()}


def _run(source: str, root: Path, report: ReportParams) -> Run:
    try:
        settings = read_yaml((root / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
        mixes = dict.fromkeys(settings.get("mixes") or {}, MIXED)
        variants = {str(name): str(kind) for name, kind in (settings["variants"] | mixes).items()}
    except FileNotFoundError:
        raise UserError(
            f"{source}: no params.yaml there; a run is a project's folder, a revision or an experiment"
        ) from None
    except (UserError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise UserError(f"{source}: its params.yaml names no variants") from None
    if not any(root.glob("results/*/**/record.json")):
        raise UserError(f"{source}: it has no results; run `dvc repro` there first")
    try:
        found = read_records(root, variants, report, settings.get("controls") or None)
    except UserError as error:
        raise UserError(f"{source}: {str(error).replace(f'{root}/', '')}") from None
    return Run(source, flat(settings), Context.of(found, report))


def _fetch(revision: str, into: Path) -> None:
    """Copy params.yaml and the records of a revision; the workspace stays as it is."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        files = DVCFileSystem(rev=revision)
        files.repo  # noqa: B018 - opened here, or else with the first file
    except DvcException:
        raise UserError(
            f"unknown run '{revision}': no folder, no git revision and no experiment (`dvc exp list`)"
        ) from None
    try:
        wanted = [path for stage in STAGES for path in files.find(f"results/{stage}")]
        for path in ["params.yaml", *MANIFESTS, *wanted]:
            if ".." in Path(path).parts or Path(path).is_absolute():
                raise UserError(f"{revision}: it has a file that lies outside of its folders: {path!r}")
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(into / path))
    except (OSError, DvcException):
        wanted = []
    if not wanted:
        raise UserError(
            f"{revision}: its results are not in DVC's cache, nor its remote; `dvc exp run` or `dvc pull` brings them"
        )
