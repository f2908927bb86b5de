"""Typed records as tidy tables: a row per run, phase, log point, split, class, text or measurement.

Every row ends with whom it is about: variant, kind, control, and seed where there is one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd

from attnopt.records.base import Row
from attnopt.records.bench import BenchRecord, Measurement
from attnopt.records.distill import Budget, CoefficientRow, DistillRecord, HistoryRow, PhaseRow
from attnopt.records.evaluate import (
    BranchRow,
    ClassRow,
    EvaluateRecord,
    FeatureRow,
    GapRow,
    LayerRow,
    LengthQuality,
    PositionBin,
    PrunedRow,
    Quality,
    RecallRow,
)
from attnopt.records.sample import GeneratedRecall, SampleRecord, SampleRow
from attnopt.report.data.capacity import Capacity, capacities
from attnopt.report.data.files import Found, Training

Types = dict[str, Any]
"""Column -> what its cells are, as a record annotates them."""

BENCHED: Types = {"variant": str, "kind": str, "control": str}
WHO: Types = BENCHED | {"seed": int}
MEASURES = tuple(key for key in Quality.model_fields if key not in ("kl_by_position", "kl_by_class"))
"""The measures of a split that are one number each."""
TEXTS = ("prompt", "text", "teacher_text", "tokens", "token_kl")
SCORES = ("distinct_1", "distinct_2", "repetition", "teacher_ppl", "teacher_text_ppl")
APART = {"format", "key", "variant", "kind", "control", "seed", "environment", "budget", "phases"}
"""What of a training's record is not in a column of its own name."""


def runs(found: Sequence[Found[DistillRecord]]) -> pd.DataFrame:
    """A row per training, its budget in columns of their own: budget_steps, budget_train, ..."""
    rows = []
    for one in found:
        budget = {f"budget_{key}": value for key, value in one.record.budget.model_dump().items()}
        rows.append(one.record.model_dump(exclude=APART) | budget | one.who)
    content = {key: kind for key, kind in _types(DistillRecord).items() if key not in APART}
    budgets = {f"budget_{key}": kind for key, kind in _types(Budget).items()} | {"budget_train": str}
    return _table(rows, content | budgets | WHO)


def phases(found: Sequence[Found[DistillRecord]]) -> pd.DataFrame:
    return _rows(PhaseRow, ((phase, one.who) for one in found for phase in one.record.phases))


def history(found: Sequence[Found[DistillRecord]], trainings: Sequence[Training]) -> pd.DataFrame:
    pairs = zip(found, trainings, strict=True)
    return _rows(HistoryRow, ((row, one.who) for one, training in pairs for row in training.history))


def coefficients(found: Sequence[Found[DistillRecord]], trainings: Sequence[Training]) -> pd.DataFrame:
    pairs = zip(found, trainings, strict=True)
    return _rows(CoefficientRow, ((row, one.who) for one, training in pairs for row in training.coefficients))


def quality(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """A row per run and split."""
    return _measured(((one.record.splits, one.who) for one in found), WHO)


def checkpoints(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """As `quality`, of the students kept on the way, with their step."""
    kept = ((each.splits, one.who | {"step": each.step}) for one in found for each in one.record.checkpoints)
    return _measured(kept, WHO | {"step": int})


def positions(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """KL by position, from 1 on, for each run and split."""
    rows = [
        one.who | {"split": split, "position": position, "kl": kl}
        for one in found
        for split, values in one.record.splits.items()
        for position, kl in enumerate(values.kl_by_position, 1)
    ]
    return _table(rows, WHO | {"split": str, "position": int, "kl": float})


def classes(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """A row per class of tokens for each run and split; the class's label stands in the column `class`."""
    rows = [
        one.who | {"split": split} | row.model_dump()
        for one in found
        for split, values in one.record.splits.items()
        for row in values.kl_by_class
    ]
    return _table(rows, WHO | {"split": str} | _types(ClassRow)).rename(columns={"label": "class"})


def lengths(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """Quality at length: a row per run and length."""
    rows = [row.model_dump(exclude={"positions", "gaps"}) | one.who for one in found for row in one.record.lengths]
    return _table(rows, {k: v for k, v in _types(LengthQuality).items() if k not in ("positions", "gaps")} | WHO)


def bins(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """The same by position: a row per bin."""
    return _within_lengths(found, "positions", PositionBin)


def gaps(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """The same by distance to the last occurrence of the predicted pair: a row per bin."""
    return _within_lengths(found, "gaps", GapRow)


def recall(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """A row per run, task and size."""
    return _rows(RecallRow, ((row, one.who) for one in found for row in one.record.recall))


def states(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    """Bytes of the decoding state of one sequence: a row per run and length."""
    rows = [
        {"length": length, "bytes": size} | one.who for one in found for length, size in one.record.state_bytes.items()
    ]
    return _table(rows, {"length": int, "bytes": int} | WHO)


def layers(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    return _rows(LayerRow, ((row, one.who) for one in found for row in one.record.layers))


def branches(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    return _rows(BranchRow, ((row, one.who) for one in found for row in one.record.branches))


def pruned(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    return _rows(PrunedRow, ((row, one.who) for one in found for row in one.record.pruned))


def features(found: Sequence[Found[EvaluateRecord]]) -> pd.DataFrame:
    return _rows(FeatureRow, ((row, one.who) for one in found for row in one.record.features))


def samples(found: Sequence[Found[SampleRecord]]) -> pd.DataFrame:
    """A row per generated text."""
    rows = [_printable(sample) | one.who for one in found for sample in one.record.samples]
    return _table(rows, _types(SampleRow) | WHO)


def checkpoint_samples(found: Sequence[Found[SampleRecord]]) -> pd.DataFrame:
    """As `samples`, of the students kept on the way, with their step."""
    rows = [
        _printable(sample) | one.who | {"step": kept.step}
        for one in found
        for kept in one.record.checkpoints
        for sample in kept.samples
    ]
    return _table(rows, _types(SampleRow) | WHO | {"step": int})


def generated(found: Sequence[Found[SampleRecord]]) -> pd.DataFrame:
    """Tests of recall whose answers the student wrote: a row per run, task and size."""
    return _rows(GeneratedRecall, ((row, one.who) for one in found for row in one.record.recall))


def bench(found: Sequence[Found[BenchRecord]]) -> pd.DataFrame:
    """A row per measurement."""
    rows = [measurement.model_dump() | one.who for one in found for measurement in one.record.measurements]
    return _table(rows, _types(Measurement) | BENCHED)


def capacity(found: Sequence[Found[BenchRecord]], memory_gib: float) -> pd.DataFrame:
    """How many sequences a memory holds: a row per length and subject of each variant's bench."""
    rows = [asdict(row) | one.who for one in found for row in capacities(one.record.measurements, memory_gib)]
    return _table(rows, get_type_hints(Capacity) | BENCHED)


def environments(found: Iterable[Found[Any]]) -> pd.DataFrame:
    """What each record was made on: stage, variant, machine and versions."""
    rows = [
        {"stage": one.record.stage, "variant": one.who["variant"]} | one.record.environment.model_dump()
        for one in found
    ]
    return pd.DataFrame(rows)


def _within_lengths(found: Sequence[Found[EvaluateRecord]], part: str, kind: type[Row]) -> pd.DataFrame:
    rows = [
        {"length": at.length} | row.model_dump() | one.who
        for one in found
        for at in one.record.lengths
        for row in getattr(at, part)
    ]
    return _table(rows, {"length": int} | _types(kind) | WHO)


def _measured(found: Iterable[tuple[dict[str, Quality], dict[str, Any]]], who: Types) -> pd.DataFrame:
    """A row per split: its measures without its lists."""
    rows = [
        about | {"split": split} | values.model_dump(include=set(MEASURES))
        for splits, about in found
        for split, values in splits.items()
    ]
    return _table(rows, who | {"split": str} | {key: _types(Quality)[key] for key in MEASURES})


def _rows(kind: type[Row], found: Iterable[tuple[Row, dict[str, Any]]]) -> pd.DataFrame:
    """One row for each, with whom it is about."""
    return _table([row.model_dump() | who for row, who in found], _types(kind) | WHO)


def _types(kind: type[Row]) -> Types:
    return {key: field.annotation for key, field in kind.model_fields.items()}


def _table(rows: list[dict[str, Any]], types: Types) -> pd.DataFrame:
    """Rows with at least these columns, those of numbers as numbers: NaN where one is missing, floats without a row."""
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*table.columns, *(column for column in types if column not in table)])
    numbers = {column: pd.to_numeric(table[column]) for column, kind in types.items() if _numbers_of(kind)}
    exact = {column for column, kind in types.items() if rows and _numbers_of(kind) == {int}}
    return table.assign(**{k: values if k in exact else values.astype(float) for k, values in numbers.items()})


def _numbers_of(annotation: Any) -> set[Any]:
    """The types of number that an annotation allows beside None; empty where it allows anything else."""
    parts = {*(get_args(annotation) if get_origin(annotation) is UnionType else (annotation,))} - {NoneType}
    return parts if parts <= {int, float} else set()


def _printable(sample: SampleRow) -> dict[str, Any]:
    """A generated text may hold half a surrogate pair; a page cannot."""
    return json.loads(json.dumps(sample.model_dump(), ensure_ascii=False).encode("utf-8", "replace"))
