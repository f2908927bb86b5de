"""The chunked distillation loss against the plain one: time of forward and backward, interleaved, and peak memory.

    python benchmarks/losses.py [--tokens 2048 --width 768 --vocab 50257 --chunk 256 --threads 2 --rounds 7]

Plain is what anyone would write: all logits of both models, F.log_softmax, F.kl_div, autograd. Both start from the
final hidden states of student and teacher. The student's head is frozen (the default scope) or trained. Peak memory is
that of a fresh process, above its inputs. Writes benchmarks/losses.json and prints its table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.bench.clock import Limits, interleave, seconds
from attnopt.bench.rulers import high_water, resting, return_freed_memory
from attnopt.core.files import write_json
from attnopt.core.machine import environment
from attnopt.targets.targets import HiddenTargets
from attnopt.teacher.head import Head
from attnopt.training.chunked_loss import LossSpec, distillation_loss

DTYPES = ("float32", "bfloat16")
HEADS = ("frozen", "trained")
Case = tuple[str, str]


class Inputs:
    """Final hidden states (N, C) and heads (V, C) of student and teacher, of a trained model's magnitudes; labels (N,).

    Args:
        case: the precision of the products (bfloat16 is autocast's), and whether the student's head trains.
    """

    def __init__(self, args: argparse.Namespace, case: Case):
        generator = torch.Generator().manual_seed(0)
        dtype, head = case
        self.chunk = args.chunk
        self.autocast = nullcontext if dtype == "float32" else lambda: torch.autocast(args.device, torch.bfloat16)
        make = lambda *shape: torch.randn(*shape, generator=generator).to(args.device)  # noqa: E731
        self.theirs, self.teacher = make(args.tokens, args.width), Head(make(args.vocab, args.width) * 0.1, None, 1.0)
        self.hidden = (self.theirs + 0.3 * make(args.tokens, args.width)).requires_grad_()
        weight = self.teacher.weight.clone().requires_grad_() if head == "trained" else self.teacher.weight
        self.head = Head(weight, None, 1.0)
        self.labels = torch.randint(args.vocab, (args.tokens,), generator=generator).to(args.device)


def plain(x: Inputs) -> Tensor:
    log_q = F.log_softmax(x.head(x.hidden), -1)
    with torch.no_grad():
        log_p = F.log_softmax(x.teacher(x.theirs), -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def chunked(x: Inputs) -> Tensor:
    targets = HiddenTargets(x.theirs, x.teacher)
    return distillation_loss(x.hidden, x.head, targets, x.labels, LossSpec(chunk=x.chunk))[0]


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {"plain": plain, "chunked": chunked}


def run(name: str, x: Inputs) -> float:
    """One forward and backward; the loss."""
    x.hidden.grad = x.head.weight.grad = None
    with x.autocast():
        loss = LOSSES[name](x)
    loss.backward()
    return loss.item()


def milliseconds(name: str, x: Inputs, cuda: bool) -> float:
    return 1e3 * seconds(partial(run, name), x, cuda)


def peak(name: str, args: argparse.Namespace, case: Case) -> float:
    """MiB above the inputs, of one forward and backward in this process. Code and thread pools are warm."""
    small = argparse.Namespace(**vars(args) | {"tokens": 8, "vocab": 64})
    run(name, Inputs(small, case))
    x = Inputs(args, case)
    return_freed_memory()
    cuda = args.device == "cuda"
    before = resting(cuda)
    with high_water(cuda) as high:
        run(name, x)
    return (high.bytes - before) / 2**20


def peak_of_fresh(name: str, case: Case) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", name, *case]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One for each case: milliseconds and MiB of both, and how far their losses are apart."""
    for case in ((dtype, head) for dtype in DTYPES for head in HEADS):
        x = Inputs(args, case)
        values = {name: run(name, x) for name in LOSSES}
        samplers = {name: partial(milliseconds, name, x, args.device == "cuda") for name in LOSSES}
        samples = interleave(samplers, Limits(args.rounds, 0, 1e9))
        yield {
            "dtype": case[0],
            "head": case[1],
            "ms": samples,
            "mib": {name: round(peak_of_fresh(name, case), 1) for name in LOSSES},
            "loss": values,
            "speed": statistics.median(a / b for a, b in zip(samples["plain"], samples["chunked"], strict=True)),
        }


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| products | head | plain, ms | chunked, ms | faster | plain, MiB | chunked, MiB | of its memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        ms = {name: statistics.median(values) for name, values in row["ms"].items()}
        mib = row["mib"]
        lines.append(
            f"| {row['dtype']} | {row['head']} | {ms['plain']:.0f} | {ms['chunked']:.0f} | {row['speed']:.2f}x "
            f"| {mib['plain']:.0f} | {mib['chunked']:.0f} | {mib['chunked'] / mib['plain']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"tokens": 2048, "width": 768, "vocab": 50257, "chunk": 256, "threads": 2, "rounds": 7}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args.peak[0], args, tuple(args.peak[1:]))))
        return
    found = list(rows(args))
    settings = {name: getattr(args, name) for name in (*sizes, "device")}
    write_json(args.out, {"environment": environment(), "settings": settings, "rows": found})
    print(table(found))


if __name__ == "__main__":
    main()
