"""Which students a stage is to look at: those whose record does not hold. Needs no torch, so that a look is quick."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnopt.core.code import code_digest
from attnopt.core.errors import UserError
from attnopt.core.keep import holds, key_of, remove_others
from attnopt.core.paths import LIBRARY, MODELS, RESULTS
from attnopt.core.section import spelling_hint
from attnopt.records.distill import StudentCard


@dataclass(frozen=True)
class Job:
    """A record to make about one student.

    Attributes:
        student: the student's folder. out: the record's folder.
        key: digest of what the record is a function of: the student, the stage's code and inputs.
    """

    card: StudentCard
    student: Path
    out: Path
    key: str

    @property
    def record(self) -> Path:
        return self.out / "record.json"

    @property
    def whose(self) -> dict[str, Any]:
        """What every record says of its student."""
        card = self.card
        return {"variant": card.variant, "kind": card.kind, "control": card.control, "seed": card.seed, "key": self.key}


def students_of(variant: str) -> list[Path]:
    """The folders of a variant's students, by seed. Raises UserError where there is none."""
    found = [card.parent for card in (MODELS / variant).glob("*/student.json") if card.parent.name.isdecimal()]
    if not found:
        raise UserError(f"{MODELS / variant} holds no student: run `dvc repro` first")
    return sorted(found, key=lambda folder: int(folder.name))


def library_folder(variant: str, seed: int | None = None) -> Path:
    """The library's student of a variant with this seed, or else the first one's.

    Raises: UserError where there is none at all.
    """
    found = {int(card.parent.name): card.parent for card in (LIBRARY / variant).glob("*/student.json")}
    if not found:
        raise UserError(f"{LIBRARY / variant} holds no student: run `dvc repro distill@{variant}` first")
    return found[min(found)] if seed not in found else found[seed]


def jobs_to_do(
    stage: str, variants: Iterable[str], only: str | None, again: bool, *inputs: object, per_seed: bool = True
) -> list[Job]:
    """The students without a record of a stage that holds; records of other variants and seeds are removed.

    Args:
        only: a variant that is to be looked at in any case, and no other.
        again: whether all are, those included whose record holds.
        inputs: what a record depends on besides the student and the code, as `key_of` takes it.
        per_seed: whether there is a record for each seed, or one for the first of each variant.
    Raises: UserError where `only` is no variant, or a variant has no student.
    """
    known = list(variants)
    if only is not None and only not in known:
        raise UserError(f"unknown variant '{only}'{spelling_hint(only, known)}; known: {', '.join(known)}")
    jobs = [job for name in ([only] if only else known) for job in _jobs(stage, name, inputs, per_seed)]
    if only:
        return jobs
    remove_others(RESULTS / stage, [job.out for job in jobs])
    return [job for job in jobs if again or not holds(job.record, job.key)]


def _jobs(stage: str, name: str, inputs: tuple[object, ...], per_seed: bool) -> list[Job]:
    students, out = students_of(name), RESULTS / stage / name
    if per_seed:
        return [_job(stage, student, out / student.name, inputs) for student in students]
    return [_job(stage, students[0], out, inputs)]


def _job(stage: str, student: Path, out: Path, inputs: tuple[object, ...]) -> Job:
    card = StudentCard.read(student / "student.json")
    code = code_digest(f"stages.{stage}", *(f"attnopt.mechanisms.{kind}" for kind in card.kinds))
    return Job(card, student, out, key_of(stage, code, student, *inputs))
