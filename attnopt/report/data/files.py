"""A run's files on disk, read as the records that the stages wrote: nothing is filled in, nothing is guessed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from attnopt.records.base import Record
from attnopt.records.bench import BenchRecord
from attnopt.records.distill import CoefficientRow, DistillRecord, HistoryRow, read_rows
from attnopt.records.evaluate import EvaluateRecord
from attnopt.records.sample import SampleRecord
from attnopt.records.search import SearchRecord

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Found(Generic[R]):
    """A record and the run that it is about, which goes into every row made of it.

    Attributes:
        folder: where it lies.
        who: variant, kind, control, and seed where the stage runs once per seed.
    """

    folder: Path
    who: dict[str, Any]
    record: R


@dataclass(frozen=True)
class Training:
    """What a training left beside its record: a row at every log point, and its coefficients if it has any."""

    history: list[HistoryRow]
    coefficients: list[CoefficientRow]


def seeds_of(root: Path, variant: str) -> list[int]:
    """The seeds of a variant's folders in the results of any stage, rising."""
    folders = [f for stage in ("distill", "evaluate", "sample") for f in (root / "results" / stage / variant).glob("*")]
    return sorted({int(folder.name) for folder in folders if folder.is_dir() and folder.name.isdecimal()})


def distilled(root: Path, variants: Mapping[str, str]) -> list[Found[DistillRecord]]:
    return _per_seed(root, variants, DistillRecord)


def evaluated(root: Path, variants: Mapping[str, str]) -> list[Found[EvaluateRecord]]:
    return _per_seed(root, variants, EvaluateRecord)


def sampled(root: Path, variants: Mapping[str, str]) -> list[Found[SampleRecord]]:
    return _per_seed(root, variants, SampleRecord)


def benched(root: Path, variants: Mapping[str, str]) -> list[Found[BenchRecord]]:
    folders = {name: root / "results" / BenchRecord.stage / name for name in variants}
    return [
        Found(folders[name], {"variant": name, "kind": kind, "control": record.control}, record)
        for name, kind in variants.items()
        for record in _there(BenchRecord, folders[name])
    ]


def searched(root: Path) -> SearchRecord | None:
    return next(iter(_there(SearchRecord, root / "results" / SearchRecord.stage)), None)


def training_of(found: Found[DistillRecord]) -> Training:
    """Raises UserError where the history, which every training writes, is missing."""
    coefficients = found.folder / "coefficients.csv"
    return Training(
        history=read_rows(found.folder / "history.csv", HistoryRow),
        coefficients=read_rows(coefficients, CoefficientRow) if coefficients.is_file() else [],
    )


def _per_seed(root: Path, variants: Mapping[str, str], kind: type[R]) -> list[Found[R]]:
    """The records of every seed of every variant that has one."""
    found = []
    for name, mechanism in variants.items():
        for seed in seeds_of(root, name):
            folder = root / "results" / kind.stage / name / str(seed)
            for record in _there(kind, folder):
                who = {"variant": name, "kind": mechanism, "control": getattr(record, "control", None), "seed": seed}
                found.append(Found(folder, who, record))
    return found


def _there(kind: type[R], folder: Path) -> list[R]:
    """A folder's record, where there is one."""
    path = folder / "record.json"
    return [kind.read(path)] if path.is_file() else []
