"""results/evaluate: the variants' students against the teacher on held-out text."""

from functools import partial
from pathlib import Path
from typing import Any

from attnopt import corpus, evaluate, params, teacher, token_classes
from attnopt.device import resolve
from attnopt.files import read_json
from attnopt.hf import delta
from attnopt.material import Material
from attnopt.probes import Probes
from attnopt.progress import bar
from stages import CORPUS, TEACHER, checkpoints, material
from stages.students import jobs


def run(name: str | None = None) -> None:
    """One variant, or all whose students have no record that holds."""
    settings = params.load()
    inputs = (settings.evaluate, settings.teacher, corpus.manifest_of(CORPUS), read_json(TEACHER / "manifest.json"))
    wanted = jobs("evaluate", settings, name, *inputs)
    if not wanted:
        return
    loaded, _ = material.load(settings)
    loaded.teacher.to(resolve(settings.evaluate.device))
    probes = Probes(loaded.teacher, loaded.blocks["valid"], loaded.blocks["train"], settings.evaluate)
    for job in wanted:
        student = _load(job.student, loaded)
        job.write(
            splits={split: _measure(settings, loaded, student, split, job.student) for split in corpus.HELD_OUT},
            **probes.record(student, job.seed),
            checkpoints=[
                {"step": step, "splits": {"test": _measure(settings, loaded, _load(path, loaded), "test", path)}}
                for step, path in checkpoints(job.student).items()
            ],
        )


def _load(folder: Path, loaded: Material) -> Any:
    return delta.load(folder, loaded.teacher.device)


def _measure(settings: params.Params, loaded: Material, student: Any, split: str, folder: Path) -> dict[str, Any]:
    tokens = evaluate.per_token(
        student,
        teacher.head_of(student),
        partial(loaded.hidden, split),
        teacher.head_of(loaded.teacher),
        loaded.blocks[split],
        settings.evaluate.batch,
        progress=partial(bar, name=f"{folder} {split}", unit="batch"),
    )
    blocks, train = loaded.blocks[split], loaded.blocks["train"]
    classes = {
        "frequency": token_classes.by_frequency(blocks, train),
        "context": token_classes.by_context(blocks),
    }
    result = evaluate.summary(tokens, corpus.manifest_of(CORPUS)["splits"][split])
    return result | {"kl_by_class": token_classes.rows(tokens, classes)}
