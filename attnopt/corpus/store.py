"""Arrays on disk that grow: .npy files written as their rows come, byte for byte what `np.save` writes of the whole."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROWS = 1 << 21
"""Numbers that are copied at a time."""


class GrowingArray:
    """A .npy file of rows of one shape, appended to; its header is right after `flush`.

    Args:
        rows: that an earlier process left and that are kept; what lies behind them is cut off.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = (), rows: int = 0):
        self.dtype, self.row, self.rows = np.dtype(dtype), row, rows
        self.file = path.open("r+b" if rows else "w+b")
        self._write_header()
        self.file.truncate(self.start + rows * self.dtype.itemsize * int(np.prod(row, dtype=int)))
        self.file.seek(0, os.SEEK_END)

    def _write_header(self) -> None:
        """Its size is the same for any number of rows: numpy leaves room for them to grow."""
        self.file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.start = self.file.tell()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def flush(self) -> None:
        """All rows and their number, on the disk."""
        self._write_header()
        self.file.seek(0, os.SEEK_END)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.flush()
        self.file.close()


def gather(source: Path, out: Path, starts: np.ndarray, length: int) -> None:
    """Write rows (n, length) of what stands in a file's array (tokens,) from each of `starts` (n,) on.

    Read as a file and not through a map, whose pages would count as resident.
    """
    array = np.load(source, mmap_mode="r")
    dtype, offset = array.dtype, array.offset  # type: ignore[attr-defined]
    del array
    with source.open("rb") as file, GrowingArray(out, dtype, (length,)) as rows:
        for start, count in _runs(starts, length):
            file.seek(offset + start * dtype.itemsize)
            rows.append(np.fromfile(file, dtype, count * length).reshape(count, length))


def _runs(starts: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
    """(first, rows) of rows that follow each other, a few megabytes of them at most."""
    most = max(1, ROWS // length)
    for run in np.split(starts, np.flatnonzero(np.diff(starts) != length) + 1):
        for first in range(0, len(run), most):
            yield int(run[first]), len(run[first : first + most])
