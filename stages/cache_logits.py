"""data/teacher: what distillation and evaluation need of the teacher."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint, key_of
from attnopt.core.device import resolve_device
from attnopt.core.files import write_json, written_aside
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS, TEACHER
from attnopt.core.progress import progress_bar
from attnopt.corpus import blocks as corpus
from attnopt.corpus.sources import HELD_OUT, SPLITS
from attnopt.targets import forms as logits
from attnopt.targets import store as cache
from attnopt.teacher import model as teacher


def run() -> None:
    settings = params.load_settings()
    model, tokenizer = teacher.load_teacher(settings.teacher)
    manifest = corpus.read_manifest(CORPUS)
    teacher.check_tokens(model, tokenizer, manifest)
    record = {
        "source": settings.teacher.model_dump(),
        "fingerprint": teacher.teacher_fingerprint(model),
        "logits": settings.teacher.logits,
        "config": teacher.describe_teacher(model),
        "corpus": manifest["sha256"],
    }
    checkpoint = Checkpoint(key_of("cache-logits", record, settings.corpus))
    with checkpoint.locked():
        work = checkpoint.folder / "cache"
        splits = _splits(settings, model.to(resolve_device("auto")), work)
        write_json(work / "manifest.json", record | {"splits": splits, "environment": environment()})
        with written_aside(TEACHER) as aside:
            shutil.move(work, aside)
        checkpoint.remove()


def _splits(settings: params.Settings, model: Any, work: Path) -> dict[str, Any]:
    """The manifest's entries of what is cached: the train split in the chosen form, if any, and the others exactly."""
    exact, splits = logits.Hidden(model.config.hidden_size), {}
    chosen = logits.form_of(settings.teacher, model.config.vocab_size) or exact
    for split in HELD_OUT if settings.teacher.logits == "online" else SPLITS:
        form = chosen if split == "train" else exact
        encoder = logits.Encoder(model, form, corpus.read_blocks(CORPUS, split))
        shape, show = encoder.blocks.shape, partial(progress_bar, name=f"cache {split}", unit="part")
        entry = cache.write_store(work / split, len(encoder.blocks), encoder.part, encoder, show)
        name = settings.teacher.logits if form is chosen else "hidden"
        splits[split] = {"form": name, "bytes_per_token": round(entry["bytes"] / (shape[0] * shape[1]), 1), **entry}
    return splits
