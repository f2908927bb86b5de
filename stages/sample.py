"""results/sample: what the variants' students write, beside the teacher."""

from pathlib import Path
from typing import Any

from attnopt import settings as params
from attnopt.core.device import resolve_device
from attnopt.core.paths import checkpoints
from attnopt.core.progress import progress_bar
from attnopt.evaluation import writing as text
from attnopt.evaluation.jobs import jobs_to_do
from attnopt.student import files as delta
from attnopt.teacher import model as teacher


def run(name: str | None = None) -> None:
    """One variant, or all whose students have no record that holds."""
    settings = params.load_settings()
    sample = settings.sample
    wanted = jobs_to_do("sample", settings, name, sample, settings.teacher)
    if not wanted:
        return
    model, tokenizer = teacher.load_teacher(settings.teacher)
    model.to(resolve_device(sample.device))
    originals = text.write_texts(model, tokenizer, sample.prompts, sample, sample.seed)

    def samples(folder: Path) -> list[dict[str, Any]]:
        student = delta.load_student(folder, model.device)
        written = text.write_texts(student, tokenizer, sample.prompts, sample, sample.seed)
        return [text.judge_text(*pair, model, student) for pair in zip(written, originals, strict=True)]

    for job in progress_bar(wanted, name="sample", unit="student"):
        job.write(
            settings=sample.model_dump(exclude={"prompts"}),
            samples=samples(job.student),
            checkpoints=[{"step": step, "samples": samples(path)} for step, path in checkpoints(job.student).items()],
        )
