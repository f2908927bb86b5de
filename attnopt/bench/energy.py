"""Energy of a run, where the platform counts it: NVIDIA's driver (NVML), or the RAPL counters of a processor on Linux.

It is gross: everything that the GPU, or the processor's packages, took meanwhile, idle power included.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Setting, Subject, Work, settle_process
from attnopt.core.errors import UserError
from attnopt.records.bench import Phase

POWERCAP = Path("/sys/class/powercap")
LEAST_SECONDS = 1.0
"""The counters move up to 100 ms late, so runs are repeated for at least this long."""
Meter = Callable[[], float]
"""Joules counted so far, from any start; two calls tell what was taken between them."""


class Rapl:
    """Joules that the processor's packages took since this meter was made."""

    def __init__(self) -> None:
        self._domains = [p for p in sorted(POWERCAP.glob("intel-rapl:*")) if p.name.count(":") == 1]
        self._total = 0.0
        try:
            self._last = self._read()
        except OSError as error:
            raise UserError(f"bench.energy rapl: {error.filename} cannot be read; run as root, or unset it") from None
        if not self._domains:
            raise UserError(f"bench.energy rapl: {POWERCAP} has no energy counter, as in most virtual machines")

    def __call__(self) -> float:
        now = self._read()
        for domain, before, after in zip(self._domains, self._last, now, strict=True):
            around = int((domain / "max_energy_range_uj").read_text()) if after < before else 0
            self._total += (after - before + around) / 1e6
        self._last = now
        return self._total

    def _read(self) -> list[int]:
        return [int((domain / "energy_uj").read_text()) for domain in self._domains]


class Nvml:
    """Joules that torch's current GPU took since the driver was loaded."""

    def __init__(self) -> None:
        import torch

        try:
            import pynvml
        except ImportError:
            raise UserError(
                "bench.energy nvml needs the package nvidia-ml-py: pip install 'attnopt[energy]', or unset it"
            ) from None
        if not torch.cuda.is_available():
            raise UserError("bench.energy nvml needs a GPU, and torch sees none; unset it")
        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")

    def __call__(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3


METERS: dict[str, Callable[[], Meter]] = {"rapl": Rapl, "nvml": Nvml}


def measure_energy(subject: Subject, phase: Phase, length: int, params: BenchParams) -> float | None:
    """Joules of one run, or of one token where it decodes, in a fresh process; None where that ended early.

    Raises: UserError where the platform does not tell it.
    """
    try:
        with in_fresh_process(_energy, subject, phase, length, params) as process:
            return process.receive(within=4 * params.max_seconds)
    except Stopped:
        return None


def _energy(subject: Subject, phase: Phase, length: int, params: BenchParams) -> Iterator[float]:
    """Runs in the fresh process. Yields the joules."""
    setting = settle_process(params)
    meter = METERS[str(params.energy)]()
    yield joules(subject.load(setting).work(phase, length), meter, setting)


def joules(work: Work, meter: Meter, setting: Setting) -> float:
    """Joules of one run divided by its tokens; what the copies of its context took is taken out again."""
    context = work.context()
    work.run(work.copy(context))
    both = _each(lambda: work.run(work.copy(context)), meter, setting)
    copies = _each(lambda: work.copy(context), meter, setting)
    return max(both - copies, 0.0) / work.tokens


def _each(run: Callable[[], object], meter: Meter, setting: Setting) -> float:
    """Joules of one of many runs in a row."""
    import torch

    before, start, runs = meter(), time.perf_counter(), 0
    while time.perf_counter() - start < LEAST_SECONDS:
        run()
        if setting.cuda:
            torch.cuda.synchronize()
        runs += 1
    return (meter() - before) / runs
