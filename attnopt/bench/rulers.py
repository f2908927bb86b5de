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
from pathlib import Path
from typing import Any, TypeVar

SAMPLING_SECONDS = 0.0005
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL = 64 * 1024
T = TypeVar("T")


class Peak:
    """Filled in when the `high_water` block ends.

    Attributes:
        reserved: on a GPU, what the allocator took from the driver beyond what it held at the block's start.
    """

    bytes = 0
    reserved: int | None = None


def return_freed_memory() -> None:
    """Make glibc give freed tensors back to the system at once, so that the resident set is what is alive."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
        libc.mallopt(_M_TRIM_THRESHOLD, _SMALL)


def resting(cuda: bool = False) -> int:
    """Bytes held now, after collecting garbage."""
    gc.collect()
    if cuda:
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _resident() if _can_reset() else _sampled_resident()


@contextlib.contextmanager
def high_water(cuda: bool = False) -> Iterator[Peak]:
    """The most bytes held at any moment of the block; compare with `resting` before it."""
    peak = Peak()
    if cuda:
        import torch

        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated()
        peak.reserved = torch.cuda.max_memory_reserved() - before
    elif _can_reset():
        _CLEAR.write_text("5")
        yield peak
        status = _status()
        peak.bytes = status["VmHWM"] - status["RssFile"]
    else:
        with _sampling(peak):
            yield peak


@functools.cache
def _can_reset() -> bool:
    """Whether the kernel has a high-water mark that can be set back."""
    try:
        _CLEAR.write_text("5")
        return {"VmHWM", "VmRSS", "RssFile"} <= _status().keys()
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
    """The most that `held` said while the block ran, asked every half millisecond by a thread; it may miss a peak."""

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
    """Resident memory of another process, without pages of files where the kernel tells them apart; 0 once it ended."""
    import psutil

    try:
        return _anonymous(pid) if _can_reset() else psutil.Process(pid).memory_info().rss
    except (OSError, psutil.NoSuchProcess):
        return 0


def _anonymous(pid: int) -> int:
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def allocated(run: Callable[[], T]) -> tuple[T, int, int]:
    """What `run` returns, the most bytes torch's CPU allocator had handed out meanwhile, and those out at its end.

    Memory that libraries take for themselves is not in it. Both counts start from 0.
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
