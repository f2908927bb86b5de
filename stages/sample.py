"""results/sample/NAME: what one variant's students write, beside the teacher."""

from attnopt import mechanisms, params, teacher, text
from attnopt.device import resolve
from attnopt.files import environment, write_json, written_aside
from attnopt.hf import delta
from attnopt.progress import bar
from stages import MODELS, RESULTS


def run(name: str) -> None:
    settings = params.load()
    variant, sample = settings.variant(name), settings.sample
    model, tokenizer = teacher.load(settings.teacher)
    model.to(resolve(sample.device))
    originals = text.write(model, tokenizer, sample.prompts, sample, sample.seed)
    for seed in bar(variant.seeds, name=f"{name} writes", unit="student"):
        student = delta.load(MODELS / name / str(seed), model.device)
        written = text.write(student, tokenizer, sample.prompts, sample, sample.seed)
        record = {
            "variant": name,
            "kind": variant.kind,
            "seed": seed,
            "control": mechanisms.load(variant.kind).control,
            "settings": sample.model_dump(exclude={"prompts"}),
            "samples": [text.judge(*pair, model, student) for pair in zip(written, originals, strict=True)],
            "environment": environment(),
        }
        with written_aside(RESULTS / "sample" / name / str(seed)) as aside:
            aside.mkdir()
            write_json(aside / "record.json", record)
