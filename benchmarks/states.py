"""Measure what a state that grows in place saves: softmax's decoding beside the same with keys and values joined anew.

    python benchmarks/states.py                                # 4 heads of 64 after 1024, 4096 and 16384 tokens
    python benchmarks/states.py --heads 9 --kv-heads 3 --lengths 4096

`torch.cat` at every token is what transformers' DynamicCache does. All lengths and both ways take turns, round by
round, in one process; a ratio is the median over rounds, with its quartiles.
"""

import argparse
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from mechanisms import At
from torch import Tensor

from attnopt.bench.latency import Times, measure_latency
from attnopt.bench.operation_runner import OperationRunner
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Runner, Setting
from attnopt.mechanisms.base import Geometry, Inputs, State
from attnopt.mechanisms.softmax import Softmax, SoftmaxState
from attnopt.ops.growing import Tokens

Way = Literal["in place", "torch.cat"]
WAYS: tuple[Way, ...] = ("in place", "torch.cat")


class Joined(Tokens):
    """Tokens that are all copied for every new one."""

    def append(self, new: Tensor) -> "Joined":
        return Joined(torch.cat([self.tensor, new], dim=2))

    def with_room(self) -> "Joined":
        return self


class JoinedSoftmax(Softmax):
    def extend(self, x: Inputs, state: SoftmaxState | None = None) -> tuple[Tensor, State]:
        out, after = super().extend(x, state)
        return out, SoftmaxState(*(Joined(t.tensor) for t in after)) if state is None else after


@dataclass(frozen=True)
class Decoding:
    """One way to keep the tokens, at one geometry."""

    name: Way
    geometry: Geometry

    def load(self, setting: Setting) -> Runner:
        cls = Softmax if self.name == "in place" else JoinedSoftmax
        return OperationRunner(cls(self.geometry, cls.Options()), self.geometry, setting)


def table(found: dict[tuple[Any, str], Times], lengths: list[int]) -> str:
    """Milliseconds per token by length and way, and how many times faster in place is, as Markdown."""
    lines = ["| tokens | torch.cat, ms | in place, ms | faster |", "|---:|---:|---:|---:|"]
    for length in lengths:
        ours, theirs = (np.array(found["decode", f"{way}@{length}"].samples) * 1e3 for way in WAYS)
        low, middle, high = np.quantile(theirs / ours, [0.25, 0.5, 0.75])
        times = f"{np.median(theirs):.4f} | {np.median(ours):.4f}"
        lines.append(f"| {length} | {times} | {middle:.2f}x ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    heads, dim = args.heads, args.dim
    geometry = Geometry(
        heads=heads, kv_heads=args.kv_heads or heads, head_dim=dim, hidden=heads * dim, scaling=dim**-0.5
    )
    params = BenchParams(
        phases=["decode"], min_iterations=args.rounds, decode_tokens=8, threads=args.threads, max_seconds=300
    )
    bound = [At(Decoding(way, geometry), length) for length in args.lengths for way in WAYS]
    print(table(measure_latency(bound, 0, params), args.lengths))


if __name__ == "__main__":
    main()
