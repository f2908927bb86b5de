"""Measure what a decoding step costs beside the bytes that it must read: all mechanisms at equal state.

    python benchmarks/decode.py                                 # 4 heads of 64 at 1/8 of softmax's state
    python benchmarks/decode.py --compile --lengths 4096
    python benchmarks/decode.py --heads 9 --kv-heads 3 --mechanisms window hedgehog

A mechanism is sized to the budget at each length, as `state:` in params.yaml does. Beside its time stands that of the
same bytes, its state and its weights, read once by `torch.sum`, and that of softmax, whose state grows in place. All
take turns in one process; a ratio is the median over rounds.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mechanisms import At
from torch import Tensor, nn

from attnopt.bench.latency import Times, measure_latency
from attnopt.bench.operation_runner import OperationRunner
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Runner, Setting, weight_bytes
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, State
from attnopt.mechanisms.shared.sizing import softmax_bytes

HYBRIDS = {"hedgehog": 7 / 64, "based": 7 / 64}
"""The window of these, as a share of the length: 112 at 1024 tokens, as in the default study; features get the rest."""


class Stream(nn.Module):
    """Reads so many bytes once for every token."""

    numbers: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("numbers", torch.ones(max(1, count // 4)))

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        return self.numbers.sum(), None


@dataclass(frozen=True)
class Step:
    """A mechanism at one length, sized to its budget, or the stream of its bytes."""

    kind: str
    geometry: Geometry
    length: int
    share: float
    stream: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}{' streamed' if self.stream else ''}"

    def mechanism(self) -> Mechanism:
        cls = load_mechanism(self.kind)
        given = {"window": int(HYBRIDS[self.kind] * self.length), "sinks": 4} if self.kind in HYBRIDS else {}
        allowed = int(softmax_bytes(self.geometry, self.length, torch.float32) * self.share)
        options = cls.sized(self.geometry, cls.Options(**given), allowed, self.length, torch.float32)
        torch.manual_seed(0)
        return cls(self.geometry, options)

    def bytes(self) -> tuple[int, int]:
        """Of the state, and of the mechanism's own weights."""
        mechanism = self.mechanism()
        return mechanism.state_bytes(1, self.length, torch.float32), weight_bytes(mechanism)

    def load(self, setting: Setting) -> Runner:
        module = Stream(sum(self.bytes())) if self.stream else self.mechanism()
        return OperationRunner(module, self.geometry, setting if not self.stream else Setting(*_eager(setting)))


def _eager(setting: Setting) -> tuple[Any, ...]:
    return setting.batch, setting.decode_tokens, setting.dtype, setting.device


def table(found: dict[tuple[Any, str], Times], steps: list[Step], length: int) -> str:
    """Microseconds per token and the ratios, as Markdown."""

    def microseconds(name: str) -> np.ndarray:
        return np.array(found["decode", f"{name}@{length}"].samples) * 1e6

    lines = [
        f"| {length} tokens | state, KiB | weights, KiB | step, us | the bytes, us | step / bytes | step / softmax |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    softmax = microseconds("softmax")
    for step in steps:
        ours, floor = microseconds(step.kind), microseconds(f"{step.kind} streamed")
        state, weights = step.bytes()
        ratios = f"{np.median(ours / floor):.1f} | {np.median(ours / softmax):.2f}"
        times = f"{np.median(ours):.0f} | {np.median(floor):.0f}"
        lines.append(f"| {step.kind} | {state / 1024:.0f} | {weights / 1024:.0f} | {times} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    usual = [name for name in mechanism_names() if load_mechanism(name).control is None and name != "none"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mechanisms", nargs="+", default=usual)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--share", type=float, default=0.125)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    heads, dim = args.heads, args.dim
    geometry = Geometry(
        heads=heads, kv_heads=args.kv_heads or heads, head_dim=dim, hidden=heads * dim, scaling=dim**-0.5
    )
    params = BenchParams(
        phases=["decode"],
        min_iterations=args.rounds,
        decode_tokens=16,
        threads=args.threads,
        max_seconds=600,
        max_spread=9,
        compile=args.compile,
    )
    kinds = dict.fromkeys(["softmax", *args.mechanisms])
    for length in args.lengths:
        steps = [Step(kind, geometry, length, args.share) for kind in kinds]
        both = [step for kind in kinds for step in (Step(kind, geometry, length, args.share, s) for s in (False, True))]
        print(table(measure_latency([At(s, length) for s in both], length, params), steps, length), flush=True)


if __name__ == "__main__":
    main()
