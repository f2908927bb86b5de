"""data/teacher: the teacher run over the corpus once, and what is kept of its outputs."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from attnopt.core.checkpoint import Checkpoint, checkpoint_key
from attnopt.core.code import code_digest
from attnopt.core.device import resolve_device
from attnopt.core.files import written_aside
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_blocks, read_manifest
from attnopt.corpus.sources import HELD_OUT, SPLITS
from attnopt.records.base import Environment
from attnopt.records.teacher import StoredSplit, TeacherManifest
from attnopt.targets.forms import Encoder, Hidden, form_of
from attnopt.targets.store import write_store
from attnopt.teacher.model import check_tokens, describe_teacher, load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.positions import block_offsets, check_room


def cache_teacher(params: TeacherParams, out: Path) -> TeacherManifest:
    """Keep the teacher's outputs on every split that needs them in the folder `out`; goes on where it was stopped.

    Raises: UserError where the teacher cannot be loaded, or does not belong to the corpus.
    """
    model, tokenizer = load_teacher(params)
    corpus = read_manifest(CORPUS)
    check_tokens(model, tokenizer, corpus)
    check_room(model, params, corpus.block)
    key = checkpoint_key(params, teacher_fingerprint(model), corpus, code_digest(__name__))
    checkpoint = Checkpoint(key)
    with checkpoint.locked():
        work = checkpoint.folder / "cache"
        manifest = TeacherManifest(
            source=params.model_dump(),
            fingerprint=teacher_fingerprint(model),
            logits=params.logits,
            config=describe_teacher(model),
            corpus=corpus.sha256,
            splits=_write_splits(params, model.to(resolve_device("auto")), work),
            environment=Environment(**environment()),
        )
        manifest.write(work / "manifest.json")
        with written_aside(out) as aside:
            shutil.move(work, aside)
        checkpoint.remove()
    return manifest


def _write_splits(params: TeacherParams, model: Any, work: Path) -> dict[str, StoredSplit]:
    """The train split in the chosen form, if any, and the others exactly."""
    exact, splits = Hidden(model.config.hidden_size), {}
    chosen = form_of(params, model.config.vocab_size) or exact
    for split in HELD_OUT if params.logits == "online" else SPLITS:
        form = chosen if split == "train" else exact
        blocks = read_blocks(CORPUS, split)
        offsets = block_offsets(model, params, *blocks.shape) if split == "train" else None
        encoder = Encoder(model, form, blocks, offsets=offsets)
        show = partial(progress_bar, name=f"cache {split}", unit="part")
        parts = write_store(work / split, len(encoder.blocks), encoder.part, encoder, show)
        size = sum(part.bytes for part in parts)
        splits[split] = StoredSplit(
            form=params.logits if form is chosen else "hidden",
            bytes_per_token=round(size / encoder.blocks.size, 1),
            blocks=len(encoder.blocks),
            bytes=size,
            parts=parts,
        )
    return splits
