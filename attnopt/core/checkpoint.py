"""Checkpoints that survive a kill and are never resumed by another run.

A run's key is a digest of everything that its result depends on, so a run with other params, data, code, library or
device looks into another folder. A lock per key keeps a second trainer out; writes go to a temporary file first.
"""

import os
import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from attnopt.core.errors import UserError
from attnopt.core.keep import key_of


def checkpoint_root() -> Path:
    """$ATTNOPT_CHECKPOINTS, or .checkpoints in the main checkout (also when DVC runs a copy of it)."""
    default = Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints"
    return Path(os.environ.get("ATTNOPT_CHECKPOINTS", default))


def checkpoint_key(*parts: object) -> str:
    """Key of a run from the key of what it makes, its device and precision; torch's version is added here."""
    return key_of(*parts, torch.__version__)[:32]


class Checkpoint:
    """One run's folder under `root()`: state.pt, written atomically, and a lock."""

    def __init__(self, key: str):
        self.folder = checkpoint_root() / key
        self.file = self.folder / "state.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock; raises UserError where another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=0):
                yield
        except Timeout:
            raise UserError(f"another process trains this very run ({self.folder}); stop it or wait") from None

    def save(self, state: dict[str, Any]) -> None:
        aside = self.folder / "state.partial"
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.file)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None. Raises UserError where it is damaged, or holds more than numbers and names."""
        if not self.file.exists():
            return None
        try:
            return torch.load(self.file, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
            raise UserError(f"{self.file} is no checkpoint of attnopt, or damaged: remove its folder") from None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def list_checkpoints() -> list[tuple[str, float, float]]:
    """(key, MiB, hours since the last write) of every checkpoint, also where a stage keeps other files in it."""
    found = []
    for folder in sorted(checkpoint_root().glob("*")):
        stats = [file.stat() for file in folder.rglob("*") if file.is_file() and file != folder / "lock"]
        if stats:
            written = max(stat.st_mtime for stat in stats)
            found.append((folder.name, sum(stat.st_size for stat in stats) / 2**20, (time.time() - written) / 3600))
    return found


def prune_checkpoints() -> int:
    """Remove every checkpoint that no process holds; returns how many."""
    removed = 0
    for folder in [f for f in checkpoint_root().glob("*") if f.is_dir()]:
        checkpoint = Checkpoint(folder.name)
        try:
            with checkpoint.locked():
                checkpoint.remove()
                removed += 1
        except UserError:
            continue
    return removed
