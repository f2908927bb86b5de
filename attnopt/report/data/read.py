"""Records in: the typed records of every stage as one set of tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from attnopt.core.errors import UserError
from attnopt.records.corpus import CorpusManifest
from attnopt.records.search import SearchRecord
from attnopt.records.teacher import TeacherManifest
from attnopt.report.data import files, tables
from attnopt.report.params import ReportParams

CONTROLS = ("softmax", "none", "topk")
"""Kinds that are controls where params.yaml names none."""
MACHINE = ("cpu", "cores", "device", "dtype", "threads", "torch")


@dataclass
class Records:
    """One run, as tables. Each has the columns of the record's own type, then variant, kind, control and seed.

        run = read_records(Path("."), {"softmax": "softmax", "performer": "performer"})
        run.quality[run.quality["split"] == "test"].groupby("variant")["kl_forward"].mean()

    A stage that left no record of a variant has no row of it. `record_warnings` says so; a question that needs it
    answers "Not from this run".

    Attributes:
        variants: name -> kind, in the order of params.yaml.
        corpus, teacher: the manifests of the text and of the teacher.
        settings: params.yaml as text.
        runs: a row per training. phases: a row per phase of one.
        history, coefficients: a row per log point.
        quality: a row per run and split. positions: KL by position, likewise. classes: a row per class of tokens.
        checkpoints: as quality, a row per step besides, of the students that a training kept on its way.
        lengths: quality at length, a row per run and length. bins, gaps: likewise, by position and by distance to the
            last occurrence of the predicted pair. states: bytes of the decoding state.
        recall: a row per run, task and size. generated: likewise, of answers that the student wrote.
        layers, branches, pruned, features: a row per diagnostic of a student.
        samples: a row per generated text. checkpoint_samples: likewise, of the checkpoints, with their step.
        sampling: the settings that the texts were written with.
        bench: a row per measurement, without a seed. capacity: how many sequences a memory holds, likewise.
        environments: stage, variant and what it ran on.
        search: the record of the search; None where it left none.
        leaks: variants whose mechanism sees the future: negative controls, marked as such.
        controls: variants to compare with, shown and never ranked.
    """

    variants: dict[str, str]
    corpus: CorpusManifest
    teacher: TeacherManifest
    settings: str
    runs: pd.DataFrame
    phases: pd.DataFrame
    history: pd.DataFrame
    coefficients: pd.DataFrame
    quality: pd.DataFrame
    checkpoints: pd.DataFrame
    positions: pd.DataFrame
    classes: pd.DataFrame
    lengths: pd.DataFrame
    bins: pd.DataFrame
    gaps: pd.DataFrame
    states: pd.DataFrame
    recall: pd.DataFrame
    layers: pd.DataFrame
    branches: pd.DataFrame
    pruned: pd.DataFrame
    features: pd.DataFrame
    samples: pd.DataFrame
    checkpoint_samples: pd.DataFrame
    generated: pd.DataFrame
    sampling: dict[str, Any]
    bench: pd.DataFrame
    capacity: pd.DataFrame
    environments: pd.DataFrame
    search: SearchRecord | None
    leaks: set[str]
    controls: list[str]

    @property
    def candidates(self) -> list[str]:
        """The variants that compete."""
        return [v for v in self.variants if v not in self.leaks and v not in self.controls]

    def role(self, variant: str) -> str:
        """leaks, control or candidate."""
        return "leaks" if variant in self.leaks else "control" if variant in self.controls else "candidate"


def read_records(
    root: Path,
    variants: Mapping[str, str],
    params: ReportParams | None = None,
    controls: Iterable[str] | None = None,
) -> Records:
    """All records of the listed variants under a project's root, with every seed that there is.

    Args:
        root: the project's folder, with results/, data/ and params.yaml.
        variants: name -> kind; results of others are left unread.
        params: the section `report`; of it the memory that capacities are computed for.
        controls: variants that do not compete; None: those of the kinds in CONTROLS.

    Raises: UserError, one line that names the file and the key, where a record, a history or a manifest does not hold
        what this version reads; or that there is nothing to report.
    """
    trained, evaluated = files.distilled(root, variants), files.evaluated(root, variants)
    written, benched = files.sampled(root, variants), files.benched(root, variants)
    every: list[files.Found[Any]] = [*trained, *evaluated, *written, *benched]
    if not every:
        raise UserError(f"{root / 'results'} holds no record of {', '.join(variants)}: run `dvc repro` first")
    trainings = [files.training_of(one) for one in trained]
    settings = root / "params.yaml"
    return Records(
        variants=dict(variants),
        corpus=CorpusManifest.read(root / "data/corpus/manifest.json"),
        teacher=TeacherManifest.read(root / "data/teacher/manifest.json"),
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else "",
        runs=tables.runs(trained),
        phases=tables.phases(trained),
        history=tables.history(trained, trainings),
        coefficients=tables.coefficients(trained, trainings),
        quality=tables.quality(evaluated),
        checkpoints=tables.checkpoints(evaluated),
        positions=tables.positions(evaluated),
        classes=tables.classes(evaluated),
        lengths=tables.lengths(evaluated),
        bins=tables.bins(evaluated),
        gaps=tables.gaps(evaluated),
        states=tables.states(evaluated),
        recall=tables.recall(evaluated),
        layers=tables.layers(evaluated),
        branches=tables.branches(evaluated),
        pruned=tables.pruned(evaluated),
        features=tables.features(evaluated),
        samples=tables.samples(written),
        checkpoint_samples=tables.checkpoint_samples(written),
        generated=tables.generated(written),
        sampling=written[-1].record.settings if written else {},
        bench=tables.bench(benched),
        capacity=tables.capacity(benched, (params or ReportParams()).memory_gib),
        environments=tables.environments(every),
        search=files.searched(root),
        leaks={one.who["variant"] for one in every if one.record.control == "leaks"},
        controls=[v for v, k in variants.items() if (k in CONTROLS if controls is None else v in set(controls))],
    )


def record_warnings(records: Records) -> list[str]:
    """What a reader must know before trusting the page: several machines, gaps, noise."""
    found = []
    benched = records.environments[records.environments["stage"] == "bench"]
    machines = _distinct(benched, MACHINE)
    if len(machines) > 1:
        names = "; ".join(f"{', '.join(group)}: {machine}" for machine, group in machines.items())
        found.append(f"Latency and memory come from {len(machines)} machines or set-ups, not to be compared: {names}.")
    versions = _distinct(records.environments, ("torch", "transformers"))
    if len(versions) > 1:
        found.append(f"Records were made under different library versions: {'; '.join(versions)}.")
    found += _gaps(records)
    if noisy := int(records.bench["noisy"].eq(True).sum()):
        found.append(f"{noisy} of {len(records.bench)} measurements are flagged noisy: the machine was busy.")
    return found


def _gaps(records: Records) -> list[str]:
    """The records that some listed variant, or one seed of it, lacks of a stage."""
    seeded = {"distill": records.runs, "evaluate": records.quality, "sample": records.samples}
    there = {stage: set(zip(table["variant"], table["seed"], strict=True)) for stage, table in seeded.items()}
    every = set().union(*there.values())
    found = []
    for stage, pairs in there.items():
        lacking = [v for v in records.variants if v not in {name for name, _ in pairs}]
        partly = [f"{v}, seed {seed:g}" for v, seed in sorted(every - pairs) if v not in lacking]
        if lacking or partly:
            found.append(f"No {stage} record of {'; '.join([*filter(None, [', '.join(lacking)]), *partly])}.")
    benched = set(records.bench["variant"])
    if lacking := [v for v in records.variants if v not in benched]:
        found.append(f"No bench record of {', '.join(lacking)}.")
    return found


def _distinct(environments: pd.DataFrame, keys: Iterable[str]) -> dict[str, list[str]]:
    """What the environments say of `keys` -> the variants that say it."""
    groups: dict[str, list[str]] = {}
    for row in environments.to_dict("records"):
        label = ", ".join(f"{k} {row[k]}" for k in keys if row.get(k) is not None and row[k] == row[k])
        if label and row["variant"] not in groups.setdefault(label, []):
            groups[label].append(row["variant"])
    return groups
