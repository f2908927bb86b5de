"""Hedgehog's features and their start."""

import torch
from softmax_teacher import DIM, build, teacher

from attnopt.mechanisms.hedgehog import SHARPNESS


def test_features_at_the_start_are_softmax_of_x_and_minus_x():
    hedgehog, x = build("hedgehog"), teacher()
    scaled = x.q * (0.3 * DIM**0.5) ** 0.5
    expected = torch.cat([scaled, -scaled], -1).softmax(-1)
    torch.testing.assert_close(hedgehog.query_map(x.q), expected)
    torch.testing.assert_close(hedgehog.key_map(x.q), expected)


def test_rows_beyond_the_dimension_are_rotations():
    hedgehog = build("hedgehog", feature_dim=2 * DIM + 3)
    assert hedgehog.size() == 2 * (2 * DIM + 3)
    first, second, third = hedgehog.key_weight[0].detach().split(DIM)
    torch.testing.assert_close(first, torch.eye(DIM).double())
    torch.testing.assert_close(second @ second.mT, torch.eye(DIM).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(third @ third.mT, torch.eye(3).double(), atol=1e-6, rtol=0)
    assert not torch.allclose(second, first)


def test_no_product_of_features_vanishes():
    hedgehog, x = build("hedgehog").float(), teacher().map(lambda t, _: 1000 * t.float())
    assert (hedgehog.kernel(x.q, x.k) > 0).all()


def test_fit_keeps_multiples_of_the_identity_and_picks_the_closest():
    hedgehog, x = build("hedgehog", 2, window=8), teacher(2)
    hedgehog.fit(x)
    factors = hedgehog.key_weight[:, 0, 0].detach().clone()
    torch.testing.assert_close(hedgehog.key_weight.detach(), factors[:, None, None] * torch.eye(DIM).double())
    torch.testing.assert_close(hedgehog.query_weight, hedgehog.key_weight.repeat_interleave(2, 0))
    q, k = hedgehog.centre.queries(x.q), hedgehog.centre.keys(x.k)
    with torch.no_grad():
        losses = torch.stack([hedgehog._cross_entropy(q, k, f) for f in SHARPNESS])
    torch.testing.assert_close(factors, torch.tensor(SHARPNESS, dtype=torch.float64)[losses.argmin(0)])
