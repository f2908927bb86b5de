"""Peak memory of this process above a resting level: resident anonymous memory on a CPU, allocated bytes on a GPU.

Linux keeps a high-water mark of the resident set which can be set back. Pages of files (libraries' code, read on first
use) are taken out of it, so a peak is what was allocated, to about a quarter of a MiB on a few cores: the kernel counts
pages per core. Elsewhere a thread samples the resident set.
"""

import contextlib
import ctypes
import functools
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

SAMPLING_SECONDS = 0.0005
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL = 64 * 1024


class Peak:
    """Filled in when the `high_water` block ends."""

    bytes = 0


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

        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated()
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
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.bytes = max(peak.bytes, _sampled_resident())
            done.wait(SAMPLING_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, _sampled_resident())
