"""What the teacher's attention layers get and give on the train split, on disk once for all variants.

A scratch copy under the checkpoints' folder and no output of a stage: a run makes it where it is missing, others wait
for it and read it. In float16 each number is off by up to 5e-4 of itself.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from attnopt.core.checkpoint import Checkpoint, checkpoint_key, checkpoint_root
from attnopt.core.code import code_digest
from attnopt.core.device import on_device, token_ids
from attnopt.core.errors import UserError
from attnopt.core.files import sha256
from attnopt.core.progress import progress_bar
from attnopt.records.teacher import StoredSplit
from attnopt.student.calls import layer_calls, replayed_calls
from attnopt.student.layers import attention_layers
from attnopt.targets.dataset import Dataset
from attnopt.targets.store import Block, Stored, write_store
from attnopt.teacher.model import teacher_fingerprint

BATCH, PART_BYTES = 8, 2**27


@dataclass(frozen=True)
class LayerTargets:
    """(layers, b, T, C) each: what the teacher's attention layers got and gave, all or those from `first` on."""

    hidden: Tensor
    outputs: Tensor
    first: int = 0


class LayerCache:
    """The train split's, made where it is not there yet.

    Raises: UserError where the disk has no room for it, values do not fit float16, or the layers of the teacher's
    architecture are not all called alike.
    """

    def __init__(self, dataset: Dataset):
        self.dataset, self.blocks = dataset, dataset.blocks["train"]
        self.dtype = next(dataset.teacher.parameters()).dtype
        self.layers = len(attention_layers(dataset.teacher))
        self.token_bytes = 2 * 2 * self.layers * dataset.teacher.config.hidden_size
        offsets = dataset.offsets.get("train")
        of = (sha256(part.tobytes()) for part in (self.blocks, offsets) if part is not None)
        code = code_digest("attnopt.student.calls", "attnopt.teacher.model")
        checkpoint = Checkpoint(checkpoint_key("layers", teacher_fingerprint(dataset.teacher), code, *of))
        checkpoint.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(checkpoint.folder / "lock"):
            folder = checkpoint.folder / "layers"
            folder.mkdir(exist_ok=True)
            size = max(1, PART_BYTES // (self.token_bytes * self.blocks.shape[1]))
            refuse_full_disk(self.token_bytes * self.blocks.size - sum(f.stat().st_size for f in folder.rglob("*.npy")))
            parts = write_store(folder, len(self.blocks), size, self._encode, partial(progress_bar, name="layers"))
        total = sum(part.bytes for part in parts)
        entry = StoredSplit(form="layers", bytes_per_token=0, blocks=len(self.blocks), bytes=total, parts=parts)
        self.stored = Stored(folder, entry)
        self._check()

    def targets(self, rows: np.ndarray, device: torch.device) -> LayerTargets:
        """Of some blocks of the train split."""
        hidden, outputs = (self.stored.stack(name, rows).swapaxes(0, 1).copy() for name in ("hidden", "outputs"))
        return self._on(device, hidden, outputs)

    def in_turn(self, rows: np.ndarray, device: torch.device) -> Iterator[LayerTargets]:
        """The same layer by layer, each read when it is asked for."""
        blocks = [self.stored.block(row) for row in rows]
        for layer in range(self.layers):
            hidden, outputs = (np.stack([b[name][layer] for b in blocks])[None] for name in ("hidden", "outputs"))
            yield self._on(device, hidden, outputs, layer)

    def _on(self, device: torch.device, hidden: np.ndarray, outputs: np.ndarray, first: int = 0) -> LayerTargets:
        """As the teacher's layers would give them there."""
        got, gave = (on_device(array, device).to(self.dtype) for array in (hidden, outputs))
        return LayerTargets(got, gave, first)

    def _encode(self, wanted: range) -> Iterator[Block]:
        device = self.dataset.teacher.device
        for start in range(0, len(wanted), BATCH):
            rows = wanted[start : start + BATCH]
            ids = token_ids(self.blocks[rows], device)
            calls = layer_calls(self.dataset.teacher, ids, self.dataset.positions("train", rows, device))
            hidden, outputs = torch.stack([c.hidden for c in calls], 1), torch.stack([c.output for c in calls], 1)
            for one, other in zip(_half(hidden), _half(outputs), strict=True):
                yield {"hidden": one, "outputs": other}

    def _check(self) -> None:
        """The layers called as they will be, on one block, against what they gave."""
        teacher, rows = self.dataset.teacher, np.arange(1)
        ids, found = token_ids(self.blocks[rows], teacher.device), self.targets(rows, teacher.device)
        positions = self.dataset.positions("train", rows, ids.device)
        calls = replayed_calls(teacher, ids, positions, found.hidden, found.outputs)
        for layer, call in zip(attention_layers(teacher), calls, strict=True):
            gave = layer(*call.args, **call.kwargs)[0]
            if (gave - call.output).norm() > 0.02 * call.output.norm():
                name = type(teacher).__name__
                raise UserError(f"transfer.layers: those of {name} are not called alike; set it to online")


def refuse_full_disk(needed: int) -> None:
    """Raises UserError where the checkpoints' disk has not so many bytes free."""
    root = checkpoint_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        gib = f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
        raise UserError(f"transfer.layers: cached needs {gib} under {root}; set it to online")


def _half(values: Tensor) -> np.ndarray:
    if values.abs().max() > torch.finfo(torch.float16).max:
        raise UserError("transfer.layers: values exceed float16; set it to online")
    return values.half().cpu().numpy()
