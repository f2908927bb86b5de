"""The (T, T) form that trains short blocks (`Mechanism.parallel`) beside the one that streams: forward and backward.

    python benchmarks/parallel.py                          # at 128, 256, 512 and 1024 tokens
    python benchmarks/parallel.py --lengths 192 384 --only based

One layer of the bundled teacher's shape, 4 heads of 64, float32, 2048 tokens in all; medians of interleaved pairs.
MiB is what one layer keeps for its backward pass; 0 where it keeps its inputs alone and computes the rest again.
`Mechanism.parallel_up_to` is set by the last column: the longest length up to which the (T, T) form is the faster one.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from attnopt import mechanisms
from attnopt.bench.clock import Limits, interleave, keep_freed_memory, quartiles, seconds
from attnopt.core.machine import environment
from attnopt.mechanisms import Geometry, Inputs, Mechanism

GEOMETRY = Geometry(heads=4, kv_heads=4, head_dim=64, hidden=256, scaling=0.125)
TOKENS = 2048
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "window 16": ("window", {"window": 16, "sinks": 4}),
    "window 60": ("window", {"window": 60, "sinks": 4}),
    "window 124": ("window", {"window": 124, "sinks": 4}),
    "masks": ("masks", {"candidates": ("last:1", "last:2", "last:3", "last:4", "last:5", "window:16", "stride:8")}),
    "performer, 256 features": ("performer", {"features": 256}),
    "hedgehog": ("hedgehog", {"window": 0}),
    "hedgehog, feature_dim 256, window 16": ("hedgehog", {"window": 16, "feature_dim": 256}),
    "based, feature_dim 16": ("based", {"feature_dim": 16}),
    "based, feature_dim 32": ("based", {"feature_dim": 32}),
    "routing, 4 of 8 clusters": ("routing", {"window": 16, "clusters": 8, "members": 8, "picks": 4}),
}
"""By name: a kind and options."""

Run = Callable[[Inputs], Tensor]


def make_mechanism(kind: str, options: dict[str, Any]) -> Mechanism:
    cls = mechanisms.load_mechanism(kind)
    torch.manual_seed(0)
    return cls(GEOMETRY, cls.Options(**options))


def inputs(tokens: int) -> Inputs:
    batch = max(1, TOKENS // tokens)
    return Inputs(*(torch.randn(batch, GEOMETRY.heads, tokens, GEOMETRY.head_dim, requires_grad=True) for _ in "qkv"))


def streamed(mechanism: Mechanism, x: Inputs) -> Tensor:
    return mechanism.extend(x)[0]


def passes(run: Run, x: Inputs, _: Any) -> None:
    torch.autograd.backward(run(x).sum())


def kept_mib(run: Run, x: Inputs) -> float:
    """What the forward pass keeps for the backward pass, each storage once, the inputs' own excepted."""
    kept: dict[int, Tensor] = {}
    own = {t.untyped_storage().data_ptr() for t in (x.q, x.k, x.v)}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        run(x)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own) / 2**20


def compare(mechanism: Mechanism, tokens: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of a forward and backward pass, and MiB kept between them, by form."""
    x = inputs(tokens)
    runs: dict[str, Run] = {"streaming": partial(streamed, mechanism), "parallel": mechanism.parallel}
    samplers = {how: partial(seconds, partial(passes, run, x)) for how, run in runs.items()}
    for sampler in samplers.values():
        sampler()
    times = interleave(samplers, Limits(12, 0.5, 3.0))
    ms = {how: quartiles(samples).median * 1e3 for how, samples in times.items()}
    return ms, {how: kept_mib(run, x) for how, run in runs.items()}


def longest(faster: dict[int, bool]) -> int | None:
    """The last length before the first at which the (T, T) form is not faster."""
    found = None
    for tokens, wins in sorted(faster.items()):
        if not wins:
            break
        found = tokens
    return found


def row(name: str, lengths: Sequence[int]) -> str:
    kind, options = OPTIONS[name]
    mechanism, cells, faster = make_mechanism(kind, options), [], {}
    for tokens in lengths:
        ms, mib = compare(mechanism, tokens)
        faster[tokens] = ms["parallel"] < ms["streaming"]
        ratio = ms["streaming"] / ms["parallel"]
        cells.append(f"{ms['streaming']:.1f} / {ms['parallel']:.1f} ({ratio:.2g}×)")
        cells.append(f"{mib['streaming']:.0f} / {mib['parallel']:.0f}")
    return f"| {name} | " + " | ".join(cells) + f" | {longest(faster)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--only", default="", help="names that begin so")
    args = parser.parse_args()
    keep_freed_memory()
    print(
        f"{environment()['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}; streaming / parallel\n"
    )
    print("| | " + " | ".join(f"{n}, ms | MiB" for n in args.lengths) + " | parallel_up_to |")
    print("|---|" + "---:|" * (2 * len(args.lengths) + 1))
    for name in OPTIONS:
        if name.startswith(args.only):
            print(row(name, args.lengths), flush=True)


if __name__ == "__main__":
    main()
