"""Measure what the swap costs a whole model in decoding, and what mechanisms gain or lose in it, eager or compiled.

    python benchmarks/swap.py                                    # the bundled teacher, after 512 and 1000 tokens
    python benchmarks/swap.py --mechanisms window performer --compile

The teacher as transformers runs it, whose cache joins keys and values anew at every token; its softmax through the
swap; and mechanisms sized to an eighth of softmax's state, not trained. All take turns in one process; a ratio is the
median over rounds, with its quartiles.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from decode import HYBRIDS
from mechanisms import At

from attnopt.bench.latency import Times, measure_latency
from attnopt.bench.model_runner import ModelRunner
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Runner, Setting
from attnopt.student.attach import attach
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams

UNTOUCHED, SOFTMAX = "transformers", "softmax"
USUAL = "window", "masks", "performer", "hedgehog", "based", "routing"


@dataclass(frozen=True)
class Model:
    """The bundled teacher, untouched or with a mechanism in all layers."""

    name: str
    length: int

    def load(self, setting: Setting) -> Runner:
        model = load_teacher(TeacherParams())[0]
        if self.name != UNTOUCHED:
            given = {"window": int(HYBRIDS[self.name] * self.length), "sinks": 4} if self.name in HYBRIDS else {}
            budget = None if self.name == SOFTMAX else StateParams(share=0.125, length=self.length)
            model = attach(model, Swap(self.name, given, state=budget))
        return ModelRunner(model, setting)


def table(found: dict[tuple[Any, str], Times], names: list[str], length: int) -> str:
    """Milliseconds per token, and the ratios to the first two, as Markdown."""
    times = {name: np.array(found["decode", f"{name}@{length}"].samples) * 1e3 for name in names}
    lines = [f"| {length} tokens | ms per token | over {UNTOUCHED} | over {SOFTMAX} |", "|---|---:|---:|---:|"]
    for name in names:
        ratios = [np.quantile(times[name] / times[other], [0.25, 0.5, 0.75]) for other in (UNTOUCHED, SOFTMAX)]
        shown = " | ".join(f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in ratios)
        lines.append(f"| {name} | {np.median(times[name]):.2f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mechanisms", nargs="*", default=["window", "masks", "performer", "hedgehog", "based", "routing"]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1000])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    names = [UNTOUCHED, SOFTMAX, *args.mechanisms]
    params = BenchParams(
        phases=["decode"],
        min_iterations=args.rounds,
        decode_tokens=16,
        threads=args.threads,
        max_seconds=600,
        max_spread=9,
        compile=args.compile,
    )
    for length in args.lengths:
        subjects = [At(Model(name, length), length) for name in names]
        print(table(measure_latency(subjects, length, params), names, length), flush=True)


if __name__ == "__main__":
    main()
