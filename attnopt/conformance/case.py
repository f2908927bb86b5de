"""What every check works with: a mechanism on a small geometry, random inputs, and a measure of disagreement."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from attnopt.mechanisms import Geometry, Inputs, Mechanism
from attnopt.mechanisms.base import Rows, State

LENGTHS = (1, 2, 63, 100)
"""Of the sequences: the shortest there are, and two that no block size divides."""

GEOMETRIES = {
    name: Geometry(heads=4, kv_heads=kv_heads, head_dim=8, hidden=32, scaling=0.3)
    for name, kv_heads in (("MHA", 4), ("GQA", 2), ("MQA", 1))
}
"""`scaling` is not head_dim^-0.5, so that a mechanism that ignores it shows."""


class Finding(NamedTuple):
    """One measured deviation, the largest that is allowed, and where it was seen."""

    deviation: float
    allowed: float
    where: str

    @property
    def passed(self) -> bool:
        return self.deviation <= self.allowed


Findings = Iterator[Finding]


class NotApplicable(Exception):
    """Raised by a check that says nothing about this mechanism; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """A mechanism class with its options on one geometry."""

    cls: type[Mechanism]
    options: Any
    geometry: Geometry

    def build(self, *, seed: int = 0, dtype: torch.dtype = torch.float64, randomised: bool = True) -> Mechanism:
        """A new mechanism from `seed`; randomised: fitted to random data, then noise on every parameter."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mechanism = self.cls(self.geometry, self.options).to(dtype).eval()
        if randomised:
            mechanism.fit(self.inputs(64, batch=2, seed=seed + 100, dtype=dtype))
            randomise(mechanism, seed)
        return mechanism

    def inputs(
        self, length: int, *, batch: int = 2, seed: int = 1, scale: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> Inputs:
        """Normal q, k, v and hidden states, each entry of standard deviation `scale`."""
        g, generator = self.geometry, torch.Generator().manual_seed(seed)
        shapes = [(batch, heads, length, g.head_dim) for heads in (g.heads, g.kv_heads, g.kv_heads)]
        q, k, v, hidden = (
            (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
            for shape in (*shapes, (batch, length, g.hidden))
        )
        return Inputs(q, k, v, hidden)


def randomise(mechanism: Mechanism, seed: int = 0) -> Mechanism:
    """Noise on every parameter, in place: defects hide behind the zeros and identities of a fresh start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in mechanism.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return mechanism


def deviation(got: Tensor, expected: Tensor) -> float:
    """max |got - expected| / max(1, max |expected|); infinite where shapes differ or a value is not finite."""
    if got.shape != expected.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(difference.nan_to_num(nan=float("inf")))


def compare(got: Tensor, expected: Tensor, where: str, allowed: float = 1e-9) -> Finding:
    return Finding(deviation(got.detach(), expected.detach()), allowed, where)


def same_bits(got: State, expected: State, where: str) -> Finding:
    """Whether two nests hold the same tensors, bit for bit."""
    got_leaves, expected_leaves = tree_leaves(unwrap(got)), tree_leaves(unwrap(expected))
    equal = len(got_leaves) == len(expected_leaves) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(got_leaves, expected_leaves, strict=True)
    )
    return Finding(0.0 if equal else float("inf"), 0.0, where)


def snapshot(state: State) -> State:
    """A copy that later writes to the state cannot reach."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), copy.copy(unwrap(state)))


def unwrap(state: State) -> State:
    return state.rows if isinstance(state, Rows) else state


def stream(mechanism: Mechanism, x: Inputs, sizes: list[int], state: State = None) -> tuple[Tensor, State]:
    """The output and the last state of `x` fed in consecutive pieces of these sizes."""
    outs, start = [], 0
    for size in sizes:
        out, state = mechanism(x.slice(start, start + size), state)
        outs.append(out)
        start += size
    return torch.cat(outs, dim=2), state


def splits(length: int) -> dict[str, list[int]]:
    """Ways to cut a sequence: uneven chunks and, where it is short, single steps and steps after a prefill."""
    chunks, left = [], length
    for size in (1, 6, 33, 2, 17, 1, length):
        chunks.append(min(size, left))
        left -= chunks[-1]
    ways = {"chunks": chunks}
    if length < 64:
        half, steps = length // 2, min(9, length - length // 2)
        ways |= {"steps": [1] * length, "prefill + steps": [half, *[1] * steps, length - half - steps]}
    return {name: [size for size in sizes if size] for name, sizes in ways.items()}


def require_gradients(x: Inputs) -> tuple[Inputs, dict[str, Tensor]]:
    """Leaf copies of the inputs that record gradients, and the same leaves by name."""
    leaves = x.map(lambda t, _: t.detach().clone().requires_grad_())
    named = {"q": leaves.q, "k": leaves.k, "v": leaves.v, "hidden": leaves.hidden}
    return leaves, {name: t for name, t in named.items() if t is not None}


def gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """d value / d leaf for each leaf, zeros where it has no influence."""
    if not leaves or not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def random_weights(shape: torch.Size, dtype: torch.dtype = torch.float64) -> Tensor:
    """Fixed random weights: the sum of output x weights has a gradient that no symmetry cancels."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
