"""results/sample: what the variants' students write, beside the teacher."""

from pathlib import Path
from typing import Any

from attnopt import params, teacher, text
from attnopt.device import resolve
from attnopt.hf import delta
from attnopt.progress import bar
from stages import checkpoints
from stages.students import jobs


def run(name: str | None = None) -> None:
    """One variant, or all whose students have no record that holds."""
    settings = params.load()
    sample = settings.sample
    wanted = jobs("sample", settings, name, sample, settings.teacher)
    if not wanted:
        return
    model, tokenizer = teacher.load(settings.teacher)
    model.to(resolve(sample.device))
    originals = text.write(model, tokenizer, sample.prompts, sample, sample.seed)

    def samples(folder: Path) -> list[dict[str, Any]]:
        student = delta.load(folder, model.device)
        written = text.write(student, tokenizer, sample.prompts, sample, sample.seed)
        return [text.judge(*pair, model, student) for pair in zip(written, originals, strict=True)]

    for job in bar(wanted, name="sample", unit="student"):
        job.write(
            settings=sample.model_dump(exclude={"prompts"}),
            samples=samples(job.student),
            checkpoints=[{"step": step, "samples": samples(path)} for step, path in checkpoints(job.student).items()],
        )
