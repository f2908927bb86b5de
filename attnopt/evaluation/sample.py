"""The stage sample: what students write beside the teacher, one record each."""

from collections.abc import Sequence
from typing import Any

from attnopt.core.device import resolve_device
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS, checkpoints
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_documents, read_manifest
from attnopt.evaluation.params import SampleParams
from attnopt.evaluation.writing import judge_text, write_texts
from attnopt.evaluation.written import Written, draw_prompts
from attnopt.records.base import Environment
from attnopt.records.sample import CheckpointSamples, SampleRecord, SampleRow
from attnopt.student.files import load_student
from attnopt.student.jobs import Job
from attnopt.teacher.model import check_tokens, load_teacher
from attnopt.teacher.params import TeacherParams


def sample_students(jobs: Sequence[Job], teacher: TeacherParams, params: SampleParams) -> None:
    """Write the record of every student, one after the other; the teacher writes once.

    Raises: UserError naming the key where the teacher or the test split has not what `sample.recall` asks for.
    """
    model, tokenizer = load_teacher(teacher)
    check_tokens(model, tokenizer, read_manifest(CORPUS))
    asked = draw_prompts(params, read_documents(CORPUS, "test"), tokenizer, model.config.max_position_embeddings)
    model.to(resolve_device(params.device))
    recall = Written(model, tokenizer, asked)
    originals = write_texts(model, tokenizer, params.prompts, params, params.seed)

    def samples_of(student: Any) -> list[SampleRow]:
        written = write_texts(student, tokenizer, params.prompts, params, params.seed)
        return [judge_text(*pair, model, student) for pair in zip(written, originals, strict=True)]

    for job in progress_bar(jobs, name="sample", unit="student"):
        student, kept = load_student(job.student, model.device), checkpoints(job.student).items()
        SampleRecord(
            **job.whose,
            environment=Environment(**environment()),
            settings=params.model_dump(exclude={"prompts"}),
            samples=samples_of(student),
            recall=recall.of(student),
            checkpoints=[
                CheckpointSamples(step=step, samples=samples_of(load_student(folder, model.device)))
                for step, folder in kept
            ],
        ).write(job.record)
