"""Peak memory of this process above a resting level: resident anonymous memory on a CPU, allocated bytes on a GPU.

Linux keeps a high-water mark of the resident set which can be set back. Pages of files (libraries' code, read on first
use) are taken out of it, so a peak is what was allocated, to about a quarter of a MiB on a few cores: the kernel counts
pages per core. Elsewhere a thread samples the resident set. Two other rulers check it: `allocated`, what torch's own
allocator handed out, and `Watcher`, which samples the resident set from outside the process.
"""

import contextlib
import ctypes
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

SAMPLING_SECONDS = 0.0005
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"
"""Written to clear_refs; see proc(5)."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL = 64 * 1024
T = TypeVar("T")


@dataclass
class Peak:
    """What `high_water` found; filled in when its block ends.

    Attributes:
        bytes: the most held at any moment of the block, what was held before it included.
        reserved: bytes that a GPU's allocator took from the driver beyond what it held at the block's start; None on a
            CPU.
    """

    bytes: int = 0
    reserved: int | None = None


def return_freed_memory() -> None:
    """Make glibc give freed tensors back to the system at once, so that the resident set is what is alive.

    Without effect under another allocator. Call it early: memory that was allocated before may stay.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
        libc.mallopt(_M_TRIM_THRESHOLD, _SMALL)


def resting(cuda: bool = False) -> int:
    """Bytes that this process holds now, after collecting garbage; with `cuda` those of torch's current GPU."""
    gc.collect()
    if cuda:
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _resident() if _has_high_water_mark() else _sampled_resident()


@contextlib.contextmanager
def high_water(cuda: bool = False) -> Iterator[Peak]:
    """The most bytes that this process, or with `cuda` torch's current GPU, holds at any moment of the block.

        before = resting()
        with high_water() as peak:
            run()
        print(peak.bytes - before)

    A GPU's count includes what it still had to do when the block ended.
    """
    peak = Peak()
    if cuda:
        import torch

        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated()
        peak.reserved = torch.cuda.max_memory_reserved() - before
    elif _has_high_water_mark():
        _CLEAR.write_text(_RESET_HIGH_WATER_MARK)
        yield peak
        status = _status()
        peak.bytes = status["VmHWM"] - status["RssFile"]
    else:
        with _sampling(peak):
            yield peak


@functools.cache
def _has_high_water_mark() -> bool:
    """Whether the kernel has a high-water mark that this process may set back; it is left as it is."""
    try:
        return os.access(_CLEAR, os.W_OK) and {"VmHWM", "VmRSS", "RssFile"} <= _status().keys()
    except OSError:
        return False


def _status() -> dict[str, int]:
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def _resident() -> int:
    status = _status()
    return status["VmRSS"] - status["RssFile"]


def _sampled_resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


@contextlib.contextmanager
def _sampling(peak: Peak) -> Iterator[None]:
    with Watcher(_sampled_resident) as watcher:
        yield
    peak.bytes = max(watcher.bytes, _sampled_resident())


class Watcher:
    """A thread that asks every half millisecond how much is held, while a block runs; it may miss a peak.

    Args:
        held: tells the bytes held now.
    Attributes:
        bytes: the most that `held` told.
    """

    def __init__(self, held: Callable[[], int]):
        self.bytes = 0
        self._held = held
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, self._held())
            self._done.wait(SAMPLING_SECONDS)


def resident_of(pid: int) -> int:
    """Bytes resident of another process, without pages of files where the kernel tells them apart; 0 once it ended."""
    import psutil

    try:
        return _anonymous(pid) if _has_high_water_mark() else psutil.Process(pid).memory_info().rss
    except (OSError, psutil.NoSuchProcess):
        return 0


def _anonymous(pid: int) -> int:
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def allocated(run: Callable[[], T]) -> tuple[T, int, int]:
    """What torch's CPU allocator hands out while `run` runs; memory that libraries take for themselves is not in it.

    Returns: what `run` returned, the most bytes that were out at once, and those still out at its end. Both counts
    start from 0.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as profiler:
        out = run()
    found: Any = profiler.kineto_results
    events = [e for e in found.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return out, peak, held
