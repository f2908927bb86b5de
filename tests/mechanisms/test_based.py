"""The Taylor features, and the low-rank start."""

import pytest
import torch
from softmax_teacher import DIM, build, teacher

from attnopt.mechanisms.based import _taylor


@pytest.mark.parametrize("rank", [1, 2, 5, 16])
def test_features_are_the_polynomial(rank):
    x, y = torch.randn(2, 40, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = x @ y.mT
    torch.testing.assert_close(_taylor(x) @ _taylor(y).mT, 1 + s + s**2 / 2)
    assert _taylor(x).shape[-1] == 1 + rank + rank * (rank + 1) // 2 == build("based", feature_dim=rank).size()


def test_rank_is_the_head_dim_at_most():
    assert build("based", feature_dim=64).rank == DIM


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_fitted_scores_of_full_rank_are_exact(kv_heads):
    based, x = build("based", kv_heads, feature_dim=DIM), teacher(kv_heads)
    based.fit(x)
    q, k = based.centre.queries(x.q), based.centre.keys(x.k)
    s = 0.3 * q @ k.repeat_interleave(4 // kv_heads, 1).mT
    torch.testing.assert_close(based.kernel(q, k), 1 + s + s**2 / 2, rtol=1e-5, atol=1e-5)


def test_fitted_scores_of_low_rank_leave_the_least_squares():
    """Of a 5-dimensional signal with a little noise, rank 5 leaves little and rank 4 leaves more."""
    x, left = teacher(), []
    for rank in (5, 4):
        based = build("based", feature_dim=rank)
        based.fit(x)
        q, k = based.centre.queries(x.q), based.centre.keys(x.k)
        exact = 0.3 * q @ k.mT
        got = based._project_queries(q) @ based._project_keys(k).mT
        left.append(((got - exact).square().mean() / exact.square().mean()).item())
    assert left[0] < 0.002 < left[1]


def test_start_scores_have_the_spread_of_the_full_ones():
    based = build("based", feature_dim=4)
    q, k = torch.randn(2, 1, 4, 2000, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = based._project_queries(q) @ based._project_keys(k).mT
    assert s.std().item() == pytest.approx((0.3 * q @ k.mT).std().item(), rel=0.1)


def test_weights_of_orthogonal_vectors_stay_near_1_in_float32_at_any_norm():
    based = build("based", feature_dim=DIM).float()
    with torch.no_grad():
        based.query_weight.copy_(torch.eye(DIM))
        based.key_weight.copy_(torch.eye(DIM))
    q, k = torch.randn(2, 1, 4, 500, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k -= (q * k).sum(-1, keepdim=True) / (q * q).sum(-1, keepdim=True) * q
    weights = (based.query_map(1000 * q.float()) * based.key_map(1000 * k.float())).sum(-1)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=0.1)


def test_dead_directions_of_a_teacher_are_no_trouble():
    based, x = build("based", feature_dim=DIM), teacher().map(lambda t, _: 1000 * t)
    x.q[..., 3] = x.k[..., 5] = 0
    x.k[:, 1] = 2.0
    based.fit(x)
    assert all(p.isfinite().all() for p in based.parameters())
    assert based.query_weight[0].abs().max() < 100
    assert based.key_weight[0].abs().max() < 100
