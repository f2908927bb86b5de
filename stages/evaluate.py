"""results/evaluate: the variants' students against the teacher on held-out text."""

from functools import partial
from pathlib import Path
from typing import Any

from attnopt import settings as params
from attnopt.core.device import resolve_device
from attnopt.core.files import read_json
from attnopt.core.paths import CORPUS, TEACHER, checkpoints
from attnopt.core.progress import progress_bar
from attnopt.corpus import blocks as corpus
from attnopt.corpus.sources import HELD_OUT
from attnopt.evaluation import measures as evaluate
from attnopt.evaluation import token_classes
from attnopt.evaluation.diagnostics import Diagnostics
from attnopt.evaluation.jobs import jobs_to_do
from attnopt.student import files as delta
from attnopt.student.distance import per_token
from attnopt.targets.dataset import Dataset, load_dataset
from attnopt.teacher.head import head_of


def run(name: str | None = None) -> None:
    """One variant, or all whose students have no record that holds."""
    settings = params.load_settings()
    inputs = (settings.evaluate, settings.teacher, corpus.read_manifest(CORPUS), read_json(TEACHER / "manifest.json"))
    wanted = jobs_to_do("evaluate", settings, name, *inputs)
    if not wanted:
        return
    loaded, _ = load_dataset(settings.teacher)
    loaded.teacher.to(resolve_device(settings.evaluate.device))
    probes = Diagnostics(loaded.teacher, loaded.blocks["valid"], loaded.blocks["train"], settings.evaluate)
    for job in wanted:
        student = _load(job.student, loaded)
        job.write(
            splits={split: _measure(settings, loaded, student, split, job.student) for split in HELD_OUT},
            **probes.record(student, job.seed),
            checkpoints=[
                {"step": step, "splits": {"test": _measure(settings, loaded, _load(path, loaded), "test", path)}}
                for step, path in checkpoints(job.student).items()
            ],
        )


def _load(folder: Path, loaded: Dataset) -> Any:
    return delta.load_student(folder, loaded.teacher.device)


def _measure(settings: params.Settings, loaded: Dataset, student: Any, split: str, folder: Path) -> dict[str, Any]:
    tokens = per_token(
        student,
        head_of(student),
        partial(loaded.hidden, split),
        head_of(loaded.teacher),
        loaded.blocks[split],
        settings.evaluate.batch,
        progress=partial(progress_bar, name=f"{folder} {split}", unit="batch"),
    )
    blocks, train = loaded.blocks[split], loaded.blocks["train"]
    classes = {
        "frequency": token_classes.by_frequency(blocks, train),
        "context": token_classes.by_context(blocks),
    }
    result = evaluate.summarize(tokens, corpus.read_manifest(CORPUS)["splits"][split])
    return result | {"kl_by_class": token_classes.rows(tokens, classes)}
