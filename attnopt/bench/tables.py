"""The record of a bench, and its tables."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from attnopt.bench.clock import quartiles
from attnopt.bench.fresh_process import Outcome
from attnopt.bench.params import BenchParams, Phase
from attnopt.bench.subjects import dtype_of
from attnopt.core.device import resolve_device
from attnopt.core.machine import environment

Level = Literal["model", "operation"]


class Measurement(BaseModel):
    """One subject in one phase at one length; times in `unit`, None where nothing could be measured.

    Attributes:
        peak_mib: most memory held at any moment of the phase, above the loaded subject and its inputs: the kernel's
            high-water mark of the resident set on a CPU, the allocator's on a GPU.
        peak_sampled_mib: the same, sampled from another process, which may miss the top; None on a GPU.
        peak_allocated_mib: the same by torch's allocator.
        memory_agrees: whether these two are within a tenth of each other, or two MiB.
        peak_reserved_mib: what a GPU's allocator took from the driver meanwhile; None on a CPU.
        weight_bytes: of the subject's parameters and buffers.
        joules: of one run, or one token where it decodes, idle power included; None unless bench.energy is set.
        state_bytes, state_bytes_declared: of the whole batch after `length` tokens; None in phase train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level
    phase: Phase
    length: int
    batch: int
    subject: str
    unit: Literal["ms", "ms/token"]
    samples: list[float] = []
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    peak_mib: float | None = None
    peak_sampled_mib: float | None = None
    peak_allocated_mib: float | None = None
    peak_reserved_mib: float | None = None
    memory_agrees: bool | None = None
    weight_bytes: int | None = None
    joules: float | None = None
    state_bytes: int | None = None
    state_bytes_declared: int | None = None
    synthetic_positions: bool = False
    outcome: Outcome = "ok"
    noisy: bool = False


def bench_record(
    variant: str, kind: str, control: str | None, params: BenchParams, load_before: float, found: Sequence[Measurement]
) -> dict[str, Any]:
    """What results/bench/NAME/record.json holds.

    Args:
        load_before: processes that wanted a core in the minute before the bench.
    """
    dtype = str(dtype_of(params, resolve_device(params.device))).removeprefix("torch.")
    found_on = environment() | {"threads": params.cpu_threads(), "dtype": dtype}
    found_on["load_before"] = round(load_before, 2)
    if params.device == "cpu":
        found_on["device"] = "cpu"
    return {
        "variant": variant,
        "kind": kind,
        "control": control,
        "machine": params.machine,
        "environment": found_on,
        "measurements": [m.model_dump(mode="json") for m in found],
    }


def unit_of(phase: Phase) -> Literal["ms", "ms/token"]:
    return "ms/token" if phase == "decode" else "ms"


def summarize_samples(samples: Sequence[float]) -> dict[str, Any]:
    """samples, median, q1, q3 of times in milliseconds, as a Measurement names them."""
    q1, median, q3 = quartiles(samples)
    return {"samples": list(samples), "median": median, "q1": q1, "q3": q3}


def bench_table(measurements: Sequence[Measurement], name: str = "variant") -> str:
    """Markdown: a row for each level, phase and length, the variant (under this name) beside softmax."""
    lines = [
        f"| level | phase | tokens | {name} | softmax | ratio | peak MiB | softmax | state KiB | softmax |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = {(m.level, m.phase, m.length, m.subject): m for m in measurements}
    for level, phase, length in dict.fromkeys(key[:3] for key in rows):
        ours, base = (rows.get((level, phase, length, s)) for s in ("variant", "softmax"))
        cells = [level, phase, str(length), _time(ours), _time(base), _ratio(ours, base)]
        for name, scale in (("peak_mib", 1), ("state_bytes", 1024)):
            cells += [_number(m, name, scale) for m in (ours, base)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(m: Measurement | None) -> str:
    if m is None or m.median is None:
        return "-" if m is None else m.outcome
    slow = "" if m.outcome == "ok" else f" ({m.outcome})"
    return f"{m.median:.3g} {m.unit}{' (noisy)' if m.noisy else ''}{slow}"


def _ratio(ours: Measurement | None, base: Measurement | None) -> str:
    if ours is None or base is None or not ours.median or not base.median:
        return "-"
    return f"{ours.median / base.median:.2f}"


def _number(m: Measurement | None, name: str, scale: float) -> str:
    value = None if m is None else getattr(m, name)
    disputed = " (disputed)" if m and name == "peak_mib" and m.memory_agrees is False else ""
    return "-" if value is None else f"{value / scale:.1f}{disputed}"
