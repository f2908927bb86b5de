"""What `attnopt distill` and `attnopt mix` leave: models/NAME/SEED/student.json, and results/distill/NAME/SEED with a
training's log; and library/NAME/SEED/student.json, of the same student as attention transfer left it."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from attnopt.core.errors import UserError
from attnopt.core.section import Name
from attnopt.records.base import Control, Record, Row, StudentRecord, first_misfit

MIXED = "mixed"
"""The kind of a student whose layers are of several variants."""


class MixedLayers(Row):
    """Layers of a mixed student that are one variant's.

    Attributes:
        variant: whose they were in the library. kind, options: of the mechanism there.
    """

    variant: Name
    kind: str
    options: dict[str, Any]
    layers: list[int]


class StudentCard(Record):
    """models/NAME/SEED/student.json: what turns the teacher into this student, beside its changed weights.

    Attributes:
        fingerprint: digest of the teacher's weights. teacher: the section that it is loaded by.
        kind: of the mechanism; MIXED where layers are of several variants.
        parts: of a mixed student, what is in its layers; those that are in none keep softmax.
        options: of the mechanism, those that a budget of state chose among them; of a mixed student none.
        state_share: what it remembers of `state_length` tokens, all layers together, as a share of softmax's.
        state_budget: the share that it was allowed; None where it had no budget, or cannot obey one as its state grows
            with every token.
        layers: indices of those replaced; None: all. start: what the attention's weights started from.
        key: digest of all that the student is a function of. step: of a student kept on the way.
    """

    stage: ClassVar[str] = "distill"
    format: Literal[4] = 4

    variant: Name
    kind: str
    control: Control | None
    options: dict[str, Any]
    parts: list[MixedLayers] = Field(default=[])
    state_share: float | None = None
    state_length: int | None = None
    state_budget: float | None = None
    layers: list[int] | None
    start: Literal["teacher", "random"]
    seed: int
    teacher: dict[str, Any]
    fingerprint: str
    key: str
    step: int | None = None

    @property
    def kinds(self) -> list[str]:
        """The mechanisms that it runs, but for softmax in layers that nothing replaces."""
        if self.kind == MIXED:
            return sorted({kind for part in self.parts for kind in (part.kind, *kinds_in(part.options))})
        return sorted({self.kind, *kinds_in(self.options)})


def kinds_in(options: dict[str, Any]) -> set[str]:
    """The mechanisms that one is made of, from its options: those given as {kind: ..., options: ...}."""
    listed = [v for value in options.values() for v in (value if isinstance(value, list | tuple) else [value])]
    return {str(v["kind"]) for v in listed if isinstance(v, dict) and v.keys() == {"kind", "options"}}


class Budget(Row):
    """The section `distill` as it was, and what it came to; further keys are that section's.

    Attributes:
        long_steps: those on blocks of `long_block` tokens, the last ones.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    steps: int
    tokens: int
    block: int
    batch: int
    long_steps: int = 0
    long_block: int | None = None


class PhaseRow(Row):
    """A phase of training that has ended: transfer, align, distill or lora.

    Attributes:
        kl_end: validation KL at its end, nats per token. flops: of all processes.
    """

    phase: str
    steps: int
    long_steps: int = 0
    tokens: int
    lr: float
    mechanism_lr: float
    train: str
    trained_parameters: int
    seconds: float
    flops: int
    kl_end: float


class DistillRecord(StudentRecord):
    """results/distill/NAME/SEED/record.json.

    Attributes:
        options, parts, state_share, state_length, state_budget: as in `StudentCard`.
        kl_start_unfitted, kl_start, kl_end: validation KL before anything, after the fit, and at the end.
        seconds, cpu_seconds: of the training alone, over all resumptions.
    """

    stage: ClassVar[str] = "distill"
    format: Literal[4] = 4

    options: dict[str, Any]
    parts: list[MixedLayers] = Field(default=[])
    state_share: float | None = None
    state_length: int | None = None
    state_budget: float | None = None
    layers: list[int] | None
    start: Literal["teacher", "random"]
    data_seed: int
    features_seed: int
    budget: Budget
    precision: str
    processes: int
    kl_start_unfitted: float
    kl_start: float
    kl_end: float
    phases: list[PhaseRow]
    flops: int
    trained_parameters: int
    total_parameters: int
    seconds: float
    cpu_seconds: float
    tokens_per_s: float | None


class HistoryRow(Row):
    """A row of history.csv, at every log point; None is an empty cell. step, tokens: over all phases so far."""

    phase: str
    step: int
    tokens: int
    loss: float
    kl: float | None
    valid_kl: float | None
    lr: float
    grad_norm: float
    tokens_per_s: float
    wall_s: float
    cpu_s: float
    rss_mib: float
    gpu_allocated_mib: float
    gpu_reserved_mib: float


class CoefficientRow(Row):
    """A row of coefficients.csv: one of a mechanism's small tensors after a step."""

    step: int
    layer: int
    head: int
    name: str
    value: float


R = TypeVar("R", bound=Row)


def write_rows(path: Path, rows: Iterable[R], kind: type[R]) -> None:
    """Rows as CSV, with a header also where there are none; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kind.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.model_dump() for row in rows)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """What `write_rows` wrote. Raises UserError naming the file and the column, where it is missing or damaged."""
    again = "run `dvc repro distill` again"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if misfit := _column_misfit(list(reader.fieldnames or []), list(kind.model_fields)):
                raise UserError(f"{path}: {misfit}: {again}")
            return [kind.model_validate({k: v if v != "" else None for k, v in row.items()}) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {again}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_misfit(error)}: {again}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from None


def _column_misfit(found: list[str], known: list[str]) -> str:
    """What is wrong with a header; empty where nothing is."""
    lacking = ", ".join(name for name in known if name not in found)
    surplus = ", ".join(name for name in found if name not in known)
    if lacking:
        return f"it lacks the column {lacking}" + (f" and has {surplus}" if surplus else "")
    if surplus:
        return f"it has the column {surplus}, which this version does not know"
    return "" if found == known else "its columns are in another order"
