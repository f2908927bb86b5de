"""The stage sample: what students write beside the teacher, one record each."""

from collections.abc import Sequence
from pathlib import Path

from attnopt.core.device import resolve_device
from attnopt.core.machine import environment
from attnopt.core.paths import checkpoints
from attnopt.core.progress import progress_bar
from attnopt.evaluation.params import SampleParams
from attnopt.evaluation.writing import judge_text, write_texts
from attnopt.records.base import Environment
from attnopt.records.sample import CheckpointSamples, SampleRecord, SampleRow
from attnopt.student.files import load_student
from attnopt.student.jobs import Job
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams


def sample_students(jobs: Sequence[Job], teacher: TeacherParams, params: SampleParams) -> None:
    """Write the record of every student, one after the other; the teacher writes once."""
    model, tokenizer = load_teacher(teacher)
    model.to(resolve_device(params.device))
    originals = write_texts(model, tokenizer, params.prompts, params, params.seed)

    def samples_of(folder: Path) -> list[SampleRow]:
        student = load_student(folder, model.device)
        written = write_texts(student, tokenizer, params.prompts, params, params.seed)
        return [judge_text(*pair, model, student) for pair in zip(written, originals, strict=True)]

    for job in progress_bar(jobs, name="sample", unit="student"):
        kept = checkpoints(job.student).items()
        SampleRecord(
            **job.whose,
            environment=Environment(**environment()),
            settings=params.model_dump(exclude={"prompts"}),
            samples=samples_of(job.student),
            checkpoints=[CheckpointSamples(step=step, samples=samples_of(folder)) for step, folder in kept],
        ).write(job.record)
