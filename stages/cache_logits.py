"""data/teacher: what distillation and evaluation need of the teacher."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from attnopt import cache, corpus, logits, params, teacher
from attnopt.checkpoint import Checkpoint, key_of
from attnopt.device import resolve
from attnopt.files import environment, write_json, written_aside
from attnopt.progress import bar
from stages import CORPUS, TEACHER


def run() -> None:
    settings = params.load()
    model, tokenizer = teacher.load(settings.teacher)
    manifest = corpus.manifest_of(CORPUS)
    teacher.check_tokens(model, tokenizer, manifest)
    record = {
        "source": settings.teacher.model_dump(),
        "fingerprint": teacher.fingerprint(model),
        "logits": settings.teacher.logits,
        "config": teacher.describe(model),
        "corpus": manifest["sha256"],
    }
    checkpoint = Checkpoint(key_of("cache-logits", record, settings.corpus))
    with checkpoint.locked():
        work = checkpoint.folder / "cache"
        splits = _splits(settings, model.to(resolve("auto")), work)
        write_json(work / "manifest.json", record | {"splits": splits, "environment": environment()})
        with written_aside(TEACHER) as aside:
            shutil.move(work, aside)
        checkpoint.remove()


def _splits(settings: params.Params, model: Any, work: Path) -> dict[str, Any]:
    """The manifest's entries of what is cached: the train split in the chosen form, if any, and the others exactly."""
    exact, splits = logits.Hidden(model.config.hidden_size), {}
    chosen = logits.form_of(settings.teacher, model.config.vocab_size) or exact
    for split in corpus.HELD_OUT if settings.teacher.logits == "online" else corpus.SPLITS:
        form = chosen if split == "train" else exact
        encoder = logits.Encoder(model, form, corpus.read(CORPUS, split))
        shape, show = encoder.blocks.shape, partial(bar, name=f"cache {split}", unit="part")
        entry = cache.write(work / split, len(encoder.blocks), encoder.part, encoder, show)
        name = settings.teacher.logits if form is chosen else "hidden"
        splits[split] = {"form": name, "bytes_per_token": round(entry["bytes"] / (shape[0] * shape[1]), 1), **entry}
    return splits
