"""The stage evaluate: students against the teacher on held-out text, one record each."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attnopt.core.device import resolve_device
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS, checkpoints
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_documents, read_manifest
from attnopt.corpus.sources import HELD_OUT
from attnopt.evaluation.diagnostics import Diagnostics
from attnopt.evaluation.lengths import AtLength, check_lengths
from attnopt.evaluation.measures import summarize
from attnopt.evaluation.params import EvaluateParams
from attnopt.evaluation.retention import Recall, draw_items
from attnopt.records.base import Environment
from attnopt.records.evaluate import CheckpointQuality, EvaluateRecord, Quality
from attnopt.student.attach import mechanisms_of
from attnopt.student.distance import per_token
from attnopt.student.files import load_student
from attnopt.student.jobs import Job
from attnopt.targets.dataset import Dataset, load_dataset
from attnopt.teacher.head import head_of
from attnopt.teacher.params import TeacherParams


def evaluate_students(jobs: Sequence[Job], teacher: TeacherParams, params: EvaluateParams) -> None:
    """Write the record of every student, one after the other; the teacher's side is computed once.

    Raises: UserError naming the key where the teacher or the test split has not what lengths or recall ask for.
    """
    dataset, tokenizer = load_dataset(teacher)
    at_length = _at_length(dataset, tokenizer, params)
    diagnostics = Diagnostics(dataset.teacher, dataset.blocks["valid"], dataset.blocks["train"], params)
    for job in jobs:
        student = load_student(job.student, dataset.teacher.device)
        EvaluateRecord(
            **job.whose,
            environment=Environment(**environment()),
            splits={split: _measure(student, dataset, split, params, job.student) for split in HELD_OUT},
            **at_length(student, str(job.student)),
            checkpoints=_checkpoints(job, dataset, params),
            **diagnostics.of(student, job.card.seed),
        ).write(job.record)


def _at_length(dataset: Dataset, tokenizer: Any, params: EvaluateParams) -> Callable[[Any, str], dict[str, Any]]:
    """What gives a student's quality at length, its recall and its state, by the record's keys."""
    documents = read_documents(CORPUS, "test")
    positions = dataset.teacher.config.max_position_embeddings
    pieces = check_lengths(params, documents, positions)
    drawn = draw_items(params, documents, tokenizer, positions)
    dataset.teacher.to(resolve_device(params.device))
    block = dataset.blocks["test"].shape[1]
    lengths = [AtLength(dataset.teacher, dataset.head, some, params, block) for some in pieces]
    recall = Recall(dataset.teacher, dataset.head, drawn, params, block)

    def measured(student: Any, name: str) -> dict[str, Any]:
        head = head_of(student)
        return {
            "lengths": [length.of(student, head, name) for length in lengths],
            "recall": recall.of(student, head, name),
            "state_bytes": {length: state_bytes(student, length) for length in params.lengths},
        }

    return measured


def state_bytes(student: Any, length: int) -> int:
    """Of one sequence of so many tokens, over all layers, as the mechanisms declare it; layers of softmax included."""
    return sum(m.state_bytes(1, length, student.dtype) for m in mechanisms_of(student))


def _checkpoints(job: Job, dataset: Dataset, params: EvaluateParams) -> list[CheckpointQuality]:
    """The students kept on the way, on the test split's blocks alone."""
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
