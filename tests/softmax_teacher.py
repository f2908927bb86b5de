"""Queries, keys and values like a teacher's: far from zero mean, correlated, and of low rank with a little noise."""

import torch
from torch import Tensor

from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism

LENGTH, DIM = 48, 16


def geometry(kv_heads: int = 4) -> Geometry:
    return Geometry(heads=4, kv_heads=kv_heads, head_dim=DIM, hidden=64, scaling=0.3)


def build(kind: str, kv_heads: int = 4, seed: int = 0, **options) -> Mechanism:
    torch.manual_seed(seed)
    cls = load_mechanism(kind)
    return cls(geometry(kv_heads), cls.Options(**options)).double()


def teacher(kv_heads: int = 4, seed: int = 0, batch: int = 6) -> Inputs:
    g = torch.Generator().manual_seed(seed + 1)
    fixed = torch.Generator().manual_seed(99)
    q, k = (_correlated(batch, heads, g, fixed) for heads in (4, kv_heads))
    return Inputs(q, k, torch.randn(batch, kv_heads, LENGTH, DIM, generator=g, dtype=torch.float64))


def _correlated(batch: int, heads: int, g: torch.Generator, fixed: torch.Generator) -> Tensor:
    mixing = torch.randn(1, heads, 5, DIM, generator=fixed, dtype=torch.float64)
    mean = torch.randn(1, 1, 1, DIM, generator=fixed, dtype=torch.float64)
    mean = mean + 0.5 * torch.randn(1, heads, 1, DIM, generator=fixed, dtype=torch.float64)
    noise = torch.randn(batch, heads, LENGTH, DIM, generator=g, dtype=torch.float64)
    return 0.4 * torch.randn(batch, heads, LENGTH, 5, generator=g, dtype=torch.float64) @ mixing + mean + 0.1 * noise


@torch.no_grad()
def distance(mechanism: Mechanism, x: Inputs) -> float:
    """|out - softmax's out| / |softmax's out|."""
    expected = load_mechanism("softmax")(mechanism.geometry, None).reference(x)
    return ((mechanism(x)[0] - expected).norm() / expected.norm()).item()
