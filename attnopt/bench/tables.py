"""The record of a bench, and its measurements as a table."""

from collections.abc import Sequence

from attnopt.bench.params import BenchParams
from attnopt.bench.work import dtype_of
from attnopt.core.device import resolve_device
from attnopt.core.machine import environment
from attnopt.records.bench import BenchEnvironment, BenchRecord, Measurement
from attnopt.records.distill import StudentCard


def bench_record(
    card: StudentCard,
    params: BenchParams,
    hardware: str,
    load_before: float,
    found: Sequence[Measurement],
    key: str,
) -> BenchRecord:
    """The record of one variant, on the machine at hand.

    Args:
        card: of the student that was measured.
        hardware: the machine in one line.
        load_before: processes that wanted a core in the minute before the bench.
        key: digest of all that the record is a function of.
    """
    return BenchRecord(
        variant=card.variant,
        kind=card.kind,
        control=card.control,
        key=key,
        machine=params.machine,
        hardware=hardware,
        environment=_environment(params, load_before),
        measurements=list(found),
    )


def _environment(params: BenchParams, load_before: float) -> BenchEnvironment:
    dtype = str(dtype_of(params, resolve_device(params.device))).removeprefix("torch.")
    used = {"threads": params.cpu_threads(), "dtype": dtype, "load_before": round(load_before, 2)}
    if params.device == "cpu":
        used["device"] = "cpu"
    return BenchEnvironment(**environment() | used)


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
