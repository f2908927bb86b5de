"""Records in: every stage's files as tidy tables. What a stage has not written is an empty table or an empty cell."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from attnopt.core.errors import UserError
from attnopt.core.files import read_json

STAGES = ("distill", "evaluate", "sample", "bench")
CONTROLS = ("softmax", "none")
"""Kinds that are controls where params.yaml names none."""
MACHINE = ("cpu", "cores", "device", "dtype", "threads", "torch")

# Columns that every table has, whatever the records say: of words, then of numbers.
WHO = ("variant", "kind", "control", "seed")
RUNS = (
    *("kl_start_unfitted", "kl_start", "kl_end", "trained_parameters", "seconds", "flops"),
    *("budget_tokens", "budget_steps", "data_seed", "features_seed"),
)
LOG = ("step", "tokens", "kl", "valid_kl")
PERPLEXITY = tuple(f"{whose}ppl_{unit}" for whose in ("", "teacher_") for unit in ("token", "word", "byte"))
QUALITY = ("kl_forward", "kl_forward_se", "kl_reverse", "jsd", "top1_agreement", "ppl_ratio", *PERPLEXITY)
TEXTS = ("prompt", "text", "teacher_text", "tokens", "token_kl")
SCORES = ("distinct_1", "distinct_2", "repetition", "teacher_ppl", "teacher_text_ppl")
PROBES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "layers": ((), ("layer", "error")),
    "branches": (("branches",), ("kl_forward", "kl_forward_se", "difference_se", "blocks")),
    "pruned": ((), ("kept", "of", "threshold", "kl_forward", "kl_forward_se", "difference_se")),
    "features": ((), ("features", "draw", "kl_forward")),
}
MEASURED = ("length", "batch", "median", "q1", "q3", "peak_mib", "state_bytes")
CAPACITY = ("length", "memory_gib", "weights_mib", "sequence_mib", "sequences")


@dataclass
class Records:
    """One run. Every table names variant and kind; all but `bench` and `environments` name the seed.

    Attributes:
        runs: a row per distillation; stages: per stage of one. history, coefficients: a row per log point.
        quality: a row per run and split. positions: KL by position, likewise.
        checkpoints: as quality, a row per step besides, of the students that a training kept on its way.
        classes: a row per class of tokens. layers, branches, pruned, features: a row per probe of a student.
        samples: a row per generated text. checkpoint_samples: likewise, of the checkpoints, with their step.
        bench: a row per measurement. capacity: how many sequences a memory holds.
        environments: stage, variant and what it ran on.
        settings: params.yaml as text. controls: shown, never ranked. leaks: negative controls: marked besides.
    """

    variants: dict[str, str]
    corpus: dict[str, Any]
    teacher: dict[str, Any]
    settings: str
    runs: pd.DataFrame
    stages: pd.DataFrame
    history: pd.DataFrame
    coefficients: pd.DataFrame
    quality: pd.DataFrame
    checkpoints: pd.DataFrame
    positions: pd.DataFrame
    classes: pd.DataFrame
    layers: pd.DataFrame
    branches: pd.DataFrame
    pruned: pd.DataFrame
    features: pd.DataFrame
    samples: pd.DataFrame
    checkpoint_samples: pd.DataFrame
    sampling: dict[str, Any]
    bench: pd.DataFrame
    capacity: pd.DataFrame
    environments: pd.DataFrame
    leaks: set[str]
    controls: list[str]

    @property
    def candidates(self) -> list[str]:
        """The variants that compete."""
        return [v for v in self.variants if v not in self.leaks and v not in self.controls]

    def role(self, variant: str) -> str:
        return "leaks" if variant in self.leaks else "control" if variant in self.controls else "candidate"


def prune_results(root: Path, variants: Iterable[str]) -> list[Path]:
    """Delete results of variants that are no longer listed: DVC leaves them behind. Returns what went."""
    keep = set(variants)
    gone = [p for stage in STAGES for p in sorted((root / "results" / stage).glob("*")) if p.name not in keep]
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return gone


def read_records(
    root: Path, variants: Mapping[str, str], seeds: Iterable[int], controls: Iterable[str] | None = None
) -> Records:
    """All records of the listed variants and seeds under a project's root.

    Args:
        controls: variants that do not compete; None: those of the kinds in CONTROLS.

    Raises: UserError that names a damaged file, or says that there is nothing to report.
    """
    reader = _Reader(root, dict(variants), list(seeds))
    tables = reader.distilled() | reader.evaluated() | reader.sampled() | reader.benched()
    if not reader.environments:
        raise UserError(f"{root / 'results'} holds no record of {', '.join(variants)}: run `dvc repro` first")
    settings = root / "params.yaml"
    return Records(
        variants=dict(variants),
        corpus=_optional(root / "data/corpus/manifest.json"),
        teacher=_optional(root / "data/teacher/manifest.json"),
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else "",
        environments=pd.DataFrame(reader.environments),
        leaks=reader.leaks,
        controls=[v for v, k in variants.items() if (k in CONTROLS if controls is None else v in set(controls))],
        **tables,
    )


@dataclass
class _Reader:
    root: Path
    variants: dict[str, str]
    seeds: list[int]
    environments: list[dict[str, Any]] = field(default_factory=list)
    leaks: set[str] = field(default_factory=set)

    def _found(self, stage: str) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
        """(folder, who, record) of every run of a stage that left a record."""
        for variant, kind in self.variants.items():
            for seed in [None] if stage == "bench" else self.seeds:
                folder = self.root / "results" / stage / variant / ("" if seed is None else str(seed))
                if record := _optional(folder / "record.json"):
                    self.leaks |= {variant} if record.get("control") == "leaks" else set()
                    self.environments.append({"stage": stage, "variant": variant} | (record.get("environment") or {}))
                    who = {"variant": variant, "kind": kind, "control": record.get("control")}
                    yield folder, who if seed is None else who | {"seed": seed}, record

    def distilled(self) -> dict[str, Any]:
        rows, stages, history, coefficients = [], [], [], []
        for folder, who, record in self._found("distill"):
            budget = {f"budget_{key}": value for key, value in (record.get("budget") or {}).items()}
            rows.append(
                {k: v for k, v in record.items() if k not in ("environment", "budget", "stages")} | budget | who
            )
            stages += [stage | who for stage in record.get("stages") or []]
            history += _csv(folder / "history.csv", who)
            coefficients += _csv(folder / "coefficients.csv", who)
        return {
            "runs": _table(rows, (*WHO, "options", "layers", "budget_train", "start"), RUNS),
            "stages": _table(stages, (*WHO, "stage"), ("steps", "tokens", "seconds", "flops", "kl_end")),
            "history": _table(history, WHO, LOG),
            "coefficients": _table(coefficients, (*WHO, "name"), ("step", "layer", "head", "value")),
        }

    def evaluated(self) -> dict[str, Any]:
        rows, checkpoints, positions, classes = [], [], [], []
        probes: dict[str, list[dict[str, Any]]] = {name: [] for name in PROBES}
        for _, who, record in self._found("evaluate"):
            for name, found in probes.items():
                found += [row | who for row in record.get(name) or []]
            for split, values in (record.get("splits") or {}).items():
                where = who | {"split": split}
                rows.append(where | _summaries(values))
                classes += [where | row for row in values.get("kl_by_class") or []]
                by_position = enumerate(values.get("kl_by_position") or [], 1)
                positions += [where | {"position": position, "kl": kl} for position, kl in by_position]
            for kept in record.get("checkpoints") or []:
                splits = (kept.get("splits") or {}).items()
                checkpoints += [
                    who | {"step": kept["step"], "split": split} | _summaries(values) for split, values in splits
                ]
        return {
            "quality": _table(rows, (*WHO, "split"), QUALITY),
            "checkpoints": _table(checkpoints, (*WHO, "split"), ("step", *QUALITY)),
            "positions": _table(positions, (*WHO, "split"), ("position", "kl")),
            "classes": _table(classes, (*WHO, "split", "by", "class"), ("tokens", "kl", "kl_se")),
        } | {name: _table(found, (*WHO, *PROBES[name][0]), PROBES[name][1]) for name, found in probes.items()}

    def sampled(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        checkpoints: list[dict[str, Any]] = []
        settings: dict[str, Any] = {}
        for _, who, record in self._found("sample"):
            settings = record.get("settings") or settings
            rows += [_printable(sample) | who for sample in record.get("samples") or []]
            for kept in record.get("checkpoints") or []:
                step = who | {"step": kept["step"]}
                checkpoints += [_printable(sample) | step for sample in kept.get("samples") or []]
        return {
            "samples": _table(rows, (*WHO, *TEXTS), SCORES),
            "checkpoint_samples": _table(checkpoints, (*WHO, *TEXTS), ("step", *SCORES)),
            "sampling": settings,
        }

    def benched(self) -> dict[str, Any]:
        rows, capacity = [], []
        for _, who, record in self._found("bench"):
            rows += [measurement | who for measurement in record.get("measurements") or []]
            capacity += [row | who for row in record.get("capacity") or []]
        named = (*WHO[:3], "level", "phase", "subject", "unit", "outcome", "samples", "synthetic_positions", "noisy")
        return {
            "bench": _table(rows, (*named, "memory_agrees"), MEASURED),
            "capacity": _table(capacity, (*WHO[:3], "subject"), CAPACITY),
        }


def record_warnings(records: Records) -> list[str]:
    """What a reader must know before trusting the page: several machines, noise, gaps."""
    found = []
    benched = records.environments[records.environments["stage"] == "bench"]
    machines = _distinct(benched, MACHINE)
    if len(machines) > 1:
        names = "; ".join(f"{', '.join(group)}: {machine}" for machine, group in machines.items())
        found.append(f"Latency and memory come from {len(machines)} machines or set-ups, not to be compared: {names}.")
    versions = _distinct(records.environments, ("torch", "transformers"))
    if len(versions) > 1:
        found.append(f"Records were made under different library versions: {'; '.join(versions)}.")
    for stage, table in (("evaluate", records.quality), ("sample", records.samples), ("bench", records.bench)):
        if lacking := [v for v in records.variants if v not in set(table["variant"])]:
            found.append(f"No {stage} record of {', '.join(lacking)}.")
    if noisy := int(records.bench["noisy"].eq(True).sum()):
        found.append(f"{noisy} of {len(records.bench)} measurements are flagged noisy: the machine was busy.")
    return found


def _distinct(environments: pd.DataFrame, keys: Iterable[str]) -> dict[str, list[str]]:
    """What the environments say of `keys` -> the variants that say it."""
    groups: dict[str, list[str]] = {}
    for row in environments.to_dict("records"):
        label = ", ".join(f"{k} {row[k]}" for k in keys if row.get(k) is not None and row[k] == row[k])
        if label and row["variant"] not in groups.setdefault(label, []):
            groups[label].append(row["variant"])
    return groups


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _csv(path: Path, who: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [row | who for row in pd.read_csv(path).to_dict("records")]
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the stage again") from None


def _table(rows: list[dict[str, Any]], named: Iterable[str], numbers: Iterable[str]) -> pd.DataFrame:
    """Rows with at least these columns, those of numbers as floats (None and nonsense as NaN)."""
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*table.columns, *(c for c in (*named, *numbers) if c not in table)])
    return table.assign(**{c: pd.to_numeric(table[c], errors="coerce").astype(float) for c in numbers})


def _summaries(values: dict[str, Any]) -> dict[str, Any]:
    """A split's measures without its lists."""
    return {key: value for key, value in values.items() if key not in ("kl_by_position", "kl_by_class")}


def _printable(sample: dict[str, Any]) -> dict[str, Any]:
    """A generated text may hold half a surrogate pair; a page cannot."""
    return json.loads(json.dumps(sample, ensure_ascii=False).encode("utf-8", "replace"))
