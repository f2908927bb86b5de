"""The stage evaluate: students against the teacher on held-out text, one record each."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attnopt.core.device import resolve_device
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS, checkpoints
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_manifest
from attnopt.corpus.sources import HELD_OUT
from attnopt.evaluation.diagnostics import Diagnostics
from attnopt.evaluation.measures import summarize
from attnopt.evaluation.params import EvaluateParams
from attnopt.records.base import Environment
from attnopt.records.evaluate import CheckpointQuality, EvaluateRecord, Quality
from attnopt.student.distance import per_token
from attnopt.student.files import load_student
from attnopt.student.jobs import Job
from attnopt.targets.dataset import Dataset, load_dataset
from attnopt.teacher.head import head_of
from attnopt.teacher.params import TeacherParams


def evaluate_students(jobs: Sequence[Job], teacher: TeacherParams, params: EvaluateParams) -> None:
    """Write the record of every student, one after the other."""
    dataset, _ = load_dataset(teacher)
    dataset.teacher.to(resolve_device(params.device))
    diagnostics = Diagnostics(dataset.teacher, dataset.blocks["valid"], dataset.blocks["train"], params)
    for job in jobs:
        student = load_student(job.student, dataset.teacher.device)
        EvaluateRecord(
            **job.whose,
            environment=Environment(**environment()),
            splits={split: _measure(student, dataset, split, params, job.student) for split in HELD_OUT},
            checkpoints=_checkpoints(job, dataset, params),
            **diagnostics.of(student, job.card.seed),
        ).write(job.record)


def _checkpoints(job: Job, dataset: Dataset, params: EvaluateParams) -> list[CheckpointQuality]:
    """The students kept on the way, on the test split alone."""
    found = []
    for step, folder in checkpoints(job.student).items():
        student = load_student(folder, dataset.teacher.device)
        splits = {"test": _measure(student, dataset, "test", params, folder)}
        found.append(CheckpointQuality(step=step, splits=splits))
    return found


def _measure(student: Any, dataset: Dataset, split: str, params: EvaluateParams, folder: Path) -> Quality:
    blocks = dataset.blocks[split]
    tokens = per_token(
        student,
        head_of(student),
        partial(dataset.hidden, split),
        dataset.head,
        blocks,
        params.batch,
        progress=partial(progress_bar, name=f"{folder} {split}", unit="batch"),
    )
    return summarize(tokens, blocks, dataset.blocks["train"], read_manifest(CORPUS).splits[split])
