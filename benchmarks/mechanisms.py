"""Measure every registered mechanism against SDPA: time, memory and their growth, at 12 heads of 64.

    python benchmarks/mechanisms.py                              # everything that the results file does not hold yet
    python benchmarks/mechanisms.py --only nsa performer --lengths 256 1024
    python benchmarks/mechanisms.py --show                       # the tables of the results file

All subjects of a phase and length are measured in turn, round by round, in one process; a ratio is the median over
rounds. Peak memory is that of a fresh process each. Results are written after every step, so a run may be stopped and
started again; delete the file, or a row of it, to measure anew.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from tables import markdown
from torch import Tensor, nn

from attnopt import mechanisms
from attnopt.bench.latency import Times, in_milliseconds, measure_latency
from attnopt.bench.operation_runner import OperationRunner
from attnopt.bench.params import BenchParams
from attnopt.bench.peak_memory import measure_peak
from attnopt.bench.plan import GPT2
from attnopt.bench.subjects import Operation
from attnopt.bench.work import Runner, Setting, Subject, Work
from attnopt.core.files import read_json, write_json
from attnopt.core.machine import environment
from attnopt.mechanisms.base import Inputs, State
from attnopt.ops.linear.chunked import linear_attention
from attnopt.ops.linear.decayed import decayed_attention
from attnopt.ops.linear.delta import delta_attention
from attnopt.records.bench import Phase

BASE = "sdpa"
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384]
LONG = 2048
"""Memory is measured, and exponents are fitted, from this length on."""
TIMED: tuple[Phase, ...] = ("prefill", "train")
OPTIONS: dict[str, dict[str, Any]] = {"performer": {"features": 64}, "window": {"window": 64, "sinks": 0}}
"""Where not the defaults: the sizes that README's table names."""
STRIDED = {"candidates": ["window:64", "stride:64"]}
"""Masks that keep every token and read one of 64 of those beyond a window, as Sparse Transformers do."""

RECURRENCES = (
    ("decay kernel", False, False),
    ("gla kernel", False, True),
    ("delta kernel", True, False),
    ("kda kernel", True, True),
)
"""By name: whether it erases, and whether each feature has a decay of its own."""


@dataclass(frozen=True)
class Entry:
    """A subject, the phases that it has, and the longest sequence that it is worth waiting for."""

    subject: Subject
    phases: tuple[Phase, ...] = ("prefill", "train", "decode")
    longest: int = sys.maxsize

    @property
    def name(self) -> str:
        return self.subject.name


@dataclass(frozen=True)
class Own:
    """A module with the signature of a mechanism that is none: a kernel alone, or a peer's."""

    name: str
    module: type[nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, setting: Setting) -> Runner:
        torch.manual_seed(0)
        return OperationRunner(self.module(**self.options), GPT2, setting)


class LinearKernel(nn.Module):
    """The chunked kernel alone: its 64 features are the given numbers, made positive."""

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        out, _, state = linear_attention(x.q, x.k, x.v, state, (torch.abs, torch.abs))
        return out, state

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return batch * GPT2.kv_heads * GPT2.head_dim * (GPT2.head_dim + 1) * dtype.itemsize


class RecurrentKernel(nn.Module):
    """The recurrences alone at the linear kernel's state: its gates are made from the given numbers."""

    def __init__(self, erases: bool, channels: bool):
        super().__init__()
        self.erases, self.channels = erases, channels

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        decay = -0.1 * (x.v if self.channels else x.v[..., :1]).sigmoid()
        k = nnf.normalize(x.k, dim=-1)
        if self.erases:
            return delta_attention(x.q, k, x.v, decay, x.v[..., -1:].sigmoid(), state)
        return decayed_attention(x.q, k, x.v, decay, state)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return batch * GPT2.kv_heads * GPT2.head_dim * GPT2.head_dim * dtype.itemsize


class PerformerPytorch(nn.Module):
    """performer-pytorch's causal path in plain torch; it has no decoding state."""

    def __init__(self, features: int):
        super().__init__()
        from performer_pytorch import FastAttention

        with contextlib.redirect_stdout(io.StringIO()):
            self.attention = FastAttention(GPT2.head_dim, nb_features=features, causal=True)

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        return self.attention(x.q, x.k, x.v), None

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0


@dataclass(frozen=True)
class At:
    """A subject bound to one length, so that several lengths take turns in one process."""

    subject: Subject
    length: int

    @property
    def name(self) -> str:
        return f"{self.subject.name}@{self.length}"

    def load(self, setting: Setting) -> "_Bound":
        return _Bound(self.subject.load(setting), self.length)


@dataclass
class _Bound:
    runner: Runner
    length: int

    def work(self, phase: Phase, length: int) -> Work:
        return self.runner.work(phase, self.length)

    def state_bytes(self, left: Any) -> int:
        return self.runner.state_bytes(left)

    def declared_bytes(self, length: int) -> int:
        return self.runner.declared_bytes(self.length)

    def weight_bytes(self) -> int:
        return self.runner.weight_bytes()

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        return False


def entries() -> list[Entry]:
    """SDPA, every registered mechanism, the linear kernels alone, and the peers that are installed."""
    found = [Entry(Operation("softmax", GPT2, name=BASE))]
    kinds = [kind for kind in mechanisms.mechanism_names() if kind not in ("softmax", "none")]
    found += [Entry(Operation(kind, GPT2, OPTIONS.get(kind, {}), kind)) for kind in kinds]
    found.append(Entry(Operation("masks", GPT2, STRIDED, "masks, strided")))
    found.append(Entry(Own("linear kernel", LinearKernel)))
    for name, erases, channels in RECURRENCES:
        found.append(Entry(Own(name, RecurrentKernel, {"erases": erases, "channels": channels})))
    if find_spec("native_sparse_attention_pytorch"):
        found.append(Entry(Operation("nsa", GPT2, {"backend": "package"}, "nsa package"), longest=1024))
    if find_spec("performer_pytorch"):
        peer = Own("performer-pytorch", PerformerPytorch, {"features": OPTIONS["performer"]["features"]})
        found.append(Entry(peer, TIMED, longest=2048))
    return found


@dataclass
class Results:
    """The results file: rows by (name, phase, length)."""

    path: Path
    rows: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = read_json(self.path)["rows"] if self.path.exists() else []
        self.rows = {(r["name"], r["phase"], r["length"]): r for r in stored}

    def add(self, name: str, phase: str, length: int, values: dict[str, Any]) -> None:
        key = (name, phase, length)
        self.rows[key] = self.rows.get(key, dict(zip(("name", "phase", "length"), key, strict=True))) | values

    def lacking(self, chosen: Sequence[Entry], phase: Phase, length: int, value: str) -> list[Entry]:
        """The entries to measure: SDPA goes along wherever another one is missing."""
        able = [e for e in chosen if phase in e.phases and length <= e.longest]
        missing = [e for e in able if value not in self.rows.get((e.name, phase, length), {})]
        if value == "samples" and any(e.name != BASE for e in missing):
            missing = [e for e in able if e in missing or e.name == BASE]
        return missing

    def write(self, params: BenchParams) -> None:
        about = environment() | {"threads": params.cpu_threads(), "dtype": params.dtype}
        write_json(self.path, {"environment": about, "rows": list(self.rows.values())})


def time_together(results: Results, chosen: Sequence[Entry], phase: Phase, length: int, params: BenchParams) -> None:
    """One phase at one length, everything in turn."""
    missing = results.lacking(chosen, phase, length, "samples")
    if missing:
        found = measure_latency([e.subject for e in missing], length, params)
        run = round(time.time())
        for (_, name), times in found.items():
            results.add(name, phase, length, {"run": run} | _row(phase, times, found.get((phase, BASE))))


def decode_together(results: Results, chosen: Sequence[Entry], lengths: Sequence[int], params: BenchParams) -> None:
    """Decoding steps after contexts of all lengths, everything in turn: lengths are compared too."""
    bound = [At(e.subject, n) for n in lengths for e in results.lacking(chosen, "decode", n, "samples")]
    if bound:
        found = measure_latency(bound, 0, params)
        run = round(time.time())
        for at in bound:
            base = found.get(("decode", f"{BASE}@{at.length}"))
            row = {"run": run} | _row("decode", found["decode", at.name], base)
            results.add(at.subject.name, "decode", at.length, row)


def _row(phase: Phase, times: Times, base: Times | None) -> dict[str, Any]:
    """The row of a measurement, times in milliseconds: `speedup` is SDPA's time over its own."""
    row: dict[str, Any] = {"outcome": times.outcome, "samples": []}
    if times.samples:
        shown = in_milliseconds(phase, times.samples)._asdict()
        row |= {key: shown[key] for key in ("samples", "median", "q1", "q3")} | {"noisy": times.noisy}
    if base and base.samples and times.samples:
        row["speedup"] = statistics.median(b / a for a, b in zip(times.samples, base.samples, strict=False))
    return row


def measure_peaks(results: Results, entry: Entry, length: int, params: BenchParams) -> None:
    """Peak memory of the timed phases of one subject, in a fresh process."""
    if any(results.lacking([entry], phase, length, "peak_mib") for phase in TIMED):
        for phase in params.phases:
            peak = measure_peak(entry.subject, phase, length, params).peak_mib
            results.add(entry.name, phase, length, {"peak_mib": peak})


def steps(chosen: Sequence[Entry], lengths: Sequence[int], results: Results, base: BenchParams) -> Iterator[str]:
    """Do everything that is missing, yielding what comes next."""
    for length in lengths:
        enough = 10 if length <= LONG or base.device == "cuda" else 5 if length <= 2 * LONG else 3
        spread = base.max_spread if enough >= 10 else 1e9
        for phase in TIMED:
            yield f"{phase} {length}"
            update = {"phases": [phase], "min_iterations": enough, "max_spread": spread}
            time_together(results, chosen, phase, length, base.model_copy(update=update))
    yield "decode"
    update = {"phases": ["decode"], "min_iterations": 30, "decode_tokens": 8}
    decode_together(results, chosen, lengths, base.model_copy(update=update))
    last = {e.longest for e in chosen}
    for length in (n for n in lengths if n >= LONG or n in last):
        for entry in (e for e in chosen if length <= e.longest):
            yield f"memory {entry.name} {length}"
            measure_peaks(results, entry, length, base.model_copy(update={"phases": list(TIMED)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="subjects beside SDPA")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on a GPU bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args()
    names = [e.name for e in entries()]
    if unknown := set(args.only or []) - set(names):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    chosen = [e for e in entries() if args.only is None or e.name in (BASE, *args.only)]
    dtype: Any = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    params = BenchParams(device=args.device, dtype=dtype, threads=args.threads, max_seconds=300)
    results = Results(args.out)
    start = time.perf_counter()
    for step in () if args.show else steps(chosen, sorted(args.lengths), results, params):
        results.write(params)
        print(f"{time.perf_counter() - start:6.0f} s  {step}", file=sys.stderr, flush=True)
    if not args.show:
        results.write(params)
    print(markdown(read_json(args.out), BASE, LONG))


if __name__ == "__main__":
    main()
