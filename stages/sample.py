"""results/sample: what the variants' students write, beside the teacher."""

from pathlib import Path
from typing import Any

from attnopt import mechanisms, params, teacher, text
from attnopt.device import resolve
from attnopt.files import environment, write_json, written_aside
from attnopt.hf import delta
from attnopt.progress import bar
from stages import MODELS, RESULTS, checkpoints


def run(name: str | None = None) -> None:
    """One variant, or all of them: they take less time than loading the teacher for each."""
    settings = params.load()
    chosen = [settings.variant(name) for name in ([name] if name else settings.variants)]
    model, tokenizer = teacher.load(settings.teacher)
    model.to(resolve(settings.sample.device))
    sample = settings.sample
    originals = text.write(model, tokenizer, sample.prompts, sample, sample.seed)

    def samples(folder: Path) -> list[dict[str, Any]]:
        student = delta.load(folder, model.device)
        written = text.write(student, tokenizer, sample.prompts, sample, sample.seed)
        return [text.judge(*pair, model, student) for pair in zip(written, originals, strict=True)]

    for variant, seed in bar([(v, s) for v in chosen for s in v.seeds], name="samples", unit="student"):
        folder = MODELS / variant.name / str(seed)
        record = {
            "variant": variant.name,
            "kind": variant.kind,
            "seed": seed,
            "control": mechanisms.load(variant.kind).control,
            "settings": sample.model_dump(exclude={"prompts"}),
            "samples": samples(folder),
            "checkpoints": [{"step": step, "samples": samples(path)} for step, path in checkpoints(folder).items()],
            "environment": environment(),
        }
        with written_aside(RESULTS / "sample" / variant.name / str(seed)) as aside:
            aside.mkdir()
            write_json(aside / "record.json", record)
