"""Arrays of many blocks on disk: written part by part, so that an interrupted run goes on, and read through maps.

A part is a folder of a few blocks: for each array NAME.npy, all blocks one after the other along the first axis, and
NAME.ends.npy, where each block ends. A part that lies there under its name is whole: it was written aside and renamed.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from attnopt.core.errors import UserError
from attnopt.core.files import sha256, written_aside
from attnopt.records.teacher import StoredPart, StoredSplit

Block = dict[str, np.ndarray]
AGAIN = "run `dvc repro -f -s cache-logits`"


def write_store(
    folder: Path, blocks: int, size: int, encode: Callable[[range], Iterable[Block]], progress: Any = iter
) -> list[StoredPart]:
    """Write what `encode` gives for all blocks in parts of `size`, going on where an earlier call stopped.

    Args:
        encode: yields the arrays of the given blocks, one block after the other.
    Returns: each part's blocks, bytes and digest, for the manifest.
    """
    for left_over in folder.glob(".*.partial"):
        shutil.rmtree(left_over)
    parts = []
    for start in progress(range(0, blocks, size)):
        part, wanted = folder / f"{start // size:05d}", range(start, min(start + size, blocks))
        if not part.is_dir():
            with written_aside(part) as aside:
                aside.mkdir()
                _save(aside, list(encode(wanted)))
        parts.append(StoredPart(blocks=len(wanted), bytes=_bytes(part), sha256=sha256(*_files(part))))
    return parts


def _save(folder: Path, blocks: list[Block]) -> None:
    for name in blocks[0]:
        arrays = [block[name] for block in blocks]
        stored = {f"{name}.npy": np.concatenate(arrays), f"{name}.ends.npy": np.cumsum([len(a) for a in arrays])}
        for file, array in stored.items():
            buffer = io.BytesIO()  # straight to a file, np.save hides why a disk refuses it
            np.save(buffer, array)
            with (folder / file).open("wb") as out:
                out.write(buffer.getbuffer())
                out.flush()
                os.fsync(out.fileno())


def _files(part: Path) -> list[Path]:
    return sorted(part.glob("*.npy"))


def _bytes(part: Path) -> int:
    return sum(file.stat().st_size for file in _files(part))


class Stored:
    """The blocks of a folder that `write` filled.

    Args:
        entry: the manifest's. Sizes are checked at once, a part's digest when it is first read.
    Raises: UserError naming the part that is missing, truncated or damaged.
    """

    def __init__(self, folder: Path, entry: StoredSplit):
        self.folder, self.parts = folder, entry.parts
        self.size = self.parts[0].blocks if self.parts else 1
        self._part = lru_cache(maxsize=None)(self._open)
        for i, part in enumerate(self.parts):
            found, expected = _bytes(self._path(i)), part.bytes
            if found != expected:
                raise UserError(f"{self._path(i)} is truncated ({found} bytes of {expected}): {AGAIN}")

    def __len__(self) -> int:
        return sum(part.blocks for part in self.parts)

    def block(self, index: int) -> Block:
        """The arrays of one block; views of the maps."""
        part, place = divmod(int(index), self.size)
        found = {}
        for name, (array, ends) in self._part(part).items():
            found[name] = array[ends[place - 1] if place else 0 : ends[place]]
        return found

    def stack(self, name: str, rows: Any) -> np.ndarray:
        """(b, ...) one array of the blocks `rows`: a slice or indices."""
        return np.stack([self.block(i)[name] for i in np.arange(len(self))[rows]])

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:05d}"

    def _open(self, part: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        path = self._path(part)
        if sha256(*_files(path)) != self.parts[part].sha256:
            raise UserError(f"{path} is damaged (its digest is not the manifest's): {AGAIN}")
        names = [file.name.removesuffix(".ends.npy") for file in path.glob("*.ends.npy")]
        try:
            return {n: (np.load(path / f"{n}.npy", mmap_mode="r"), np.load(path / f"{n}.ends.npy")) for n in names}
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): {AGAIN}") from None
