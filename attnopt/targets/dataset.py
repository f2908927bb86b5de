"""What distillation learns from and evaluation measures against."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.core.device import on_device
from attnopt.core.errors import UserError
from attnopt.core.paths import CORPUS, TEACHER
from attnopt.corpus.blocks import LONG, read_all_blocks, read_manifest
from attnopt.records.teacher import TeacherManifest
from attnopt.targets.forms import TargetForm, form_of
from attnopt.targets.store import Stored
from attnopt.targets.targets import HiddenTargets, Targets
from attnopt.teacher.head import Head, head_of, hidden_states
from attnopt.teacher.model import load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.positions import block_offsets, positions_of


@dataclass
class Dataset:
    """What a run learns from: the teacher and each split's blocks (n, T); "long" are longer ones of the train split.

    Args:
        cached: the splits whose hidden states (T, C) of each block are cached.
        outputs: the train split's cache in another form.
        offsets: (n,) of the positions of a split's blocks, where they do not all begin at 0.
    """

    teacher: Any
    blocks: dict[str, np.ndarray]
    cached: dict[str, Stored]
    outputs: tuple[TargetForm, Stored] | None = None
    offsets: dict[str, np.ndarray | None] = field(default_factory=dict)

    @cached_property
    def head(self) -> Head:
        """The teacher's."""
        return head_of(self.teacher)

    def positions(self, split: str, rows: Any, device: torch.device) -> Tensor | None:
        """(b, T) where the tokens of the blocks `rows` stand; None: at 0, 1, 2, ... in all of them."""
        return positions_of(self.offsets.get(split), rows, self.blocks[split].shape[1], device)

    def hidden(self, split: str, rows: Any, ids: Tensor) -> Tensor:
        """(b, T, C) the teacher's final hidden states for the rows of a split, cached or computed."""
        if split not in self.cached:
            with torch.no_grad():
                return hidden_states(self.teacher, ids, self.positions(split, rows, ids.device))
        return on_device(self.cached[split].stack("hidden", rows), ids.device).float()

    def targets(self, split: str, rows: Any, ids: Tensor) -> Targets:
        """What the teacher says at the b (T - 1) positions that predict a token of the blocks `rows`, ids (b, T)."""
        if self.outputs and split == "train":
            form, stored = self.outputs
            return form.decode([stored.block(row) for row in rows], ids.device)
        return HiddenTargets(self.hidden(split, rows, ids)[:, :-1].flatten(0, 1), self.head)


def load_dataset(params: TeacherParams) -> tuple[Dataset, Any]:
    """What data/corpus and data/teacher hold, with the teacher itself; and the teacher's tokenizer.

    Raises: UserError naming the folder where one is missing, damaged, or was made with another teacher or corpus.
    """
    model, tokenizer = load_teacher(params)
    manifest = TeacherManifest.read(TEACHER / "manifest.json")
    _check_manifest(manifest, model, params)
    stored = {split: Stored(TEACHER / split, entry) for split, entry in manifest.splits.items()}
    hidden = {split: part for split, part in stored.items() if manifest.splits[split].form == "hidden"}
    form = form_of(params, model.config.vocab_size)
    blocks = read_all_blocks(CORPUS)
    training = [split for split in ("train", LONG) if split in blocks]
    offsets = {split: block_offsets(model, params, *blocks[split].shape) for split in training}
    if any(len(part) != len(blocks[split]) for split, part in stored.items()):
        raise UserError(f"{TEACHER} holds other blocks than {CORPUS}: run `dvc repro cache-logits`")
    return Dataset(model, blocks, hidden, (form, stored["train"]) if form else None, offsets), tokenizer


def _check_manifest(manifest: TeacherManifest, model: Any, params: TeacherParams) -> None:
    kept = {"logits": params.logits, "topk": params.topk, "draws": params.draws}
    shift = (params.shift, params.shift_to)
    same = {
        "teacher": manifest.fingerprint == teacher_fingerprint(model),
        "corpus": manifest.corpus == read_manifest(CORPUS).sha256,
        "teacher.logits": {key: manifest.source.get(key) for key in kept} == kept,
        "teacher.shift": (manifest.source.get("shift", 0), manifest.source.get("shift_to")) == shift,
    }
    for what, holds in same.items():
        if not holds:
            raise UserError(f"{TEACHER} was made with another {what}: run `dvc repro cache-logits`")
