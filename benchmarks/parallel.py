"""The form that trains short blocks (`Mechanism.parallel`) beside the one that streams: forward and backward.

    python benchmarks/parallel.py            # at 128 tokens
    python benchmarks/parallel.py --tokens 192

One layer of the bundled teacher's shape, 8 sequences, 4 heads of 64, float32; medians of interleaved pairs.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnopt import mechanisms
from attnopt.bench.clock import Limits, interleave, keep_freed_memory, quartiles, seconds
from attnopt.core.machine import environment
from attnopt.mechanisms import Geometry, Inputs, Mechanism

GEOMETRY = Geometry(heads=4, kv_heads=4, head_dim=64, hidden=256, scaling=0.125)
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("window", {"window": 16, "sinks": 0}),
    "masks": ("masks", {"candidates": ("last:1", "last:2", "last:3", "last:4", "last:5", "window:16", "stride:8")}),
    "performer, 256 features": ("performer", {"features": 256}),
    "hedgehog": ("hedgehog", {"window": 0}),
    "hedgehog, feature_dim 256, window 16": ("hedgehog", {"window": 16, "feature_dim": 256}),
    "based, feature_dim 16": ("based", {"feature_dim": 16}),
    "based, feature_dim 32": ("based", {"feature_dim": 32}),
    "routing, 4 of 8 clusters": ("routing", {"window": 16, "clusters": 8, "members": 8, "picks": 4}),
}
"""By name: a kind and the default study's options."""


def passes(run: Callable[[Inputs], Tensor], x: Inputs, _: Any) -> None:
    torch.autograd.backward(run(x).sum())


def streamed(mechanism: Mechanism, x: Inputs) -> Tensor:
    return mechanism(x)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128)
    tokens = parser.parse_args().tokens
    keep_freed_memory()
    print(f"{environment()['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}; {tokens} tokens\n")
    print("| | streaming, ms | parallel, ms | faster |\n|---|---:|---:|---:|")
    for name, (kind, options) in OPTIONS.items():
        cls = mechanisms.load_mechanism(kind)
        torch.manual_seed(0)
        mechanism = cls(GEOMETRY, cls.Options(**options))
        x = Inputs(*(torch.randn(8, 4, tokens, 64, requires_grad=True) for _ in range(3)))
        runs: dict[str, Callable[[Inputs], Tensor]] = {
            "streaming": partial(streamed, mechanism),
            "parallel": mechanism.parallel,
        }
        samplers = {how: partial(seconds, partial(passes, run, x)) for how, run in runs.items()}
        for sampler in samplers.values():
            sampler()
        found = {how: quartiles(s).median * 1e3 for how, s in interleave(samplers, Limits(30, 1.0, 60.0)).items()}
        print(f"| {name} | {found['streaming']:.1f} | {found['parallel']:.1f} | ", end="")
        print(f"{found['streaming'] / found['parallel']:.1f}× |", flush=True)


if __name__ == "__main__":
    main()
