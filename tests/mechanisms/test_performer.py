"""The Performer's kernel is softmax's in expectation, and its stabilisers are blind to the future."""

import pytest
import torch
from softmax_teacher import DIM, build, distance, teacher

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.performer import Performer

DRAWS = 512


def many_draws(**options) -> Performer:
    """One projection per head, so that a mean over heads is a mean over draws."""
    torch.manual_seed(0)
    geometry = Geometry(heads=DRAWS, kv_heads=DRAWS, head_dim=8, hidden=8, scaling=0.4)
    return Performer(geometry, Performer.Options(**options)).double()


def vectors(tokens: int, seed: int) -> torch.Tensor:
    """The same vectors for every head: (1, DRAWS, tokens, 8)."""
    x = torch.randn(1, 1, tokens, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * x).expand(1, DRAWS, tokens, 8)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_kernel_is_unbiased(orthogonal):
    performer, q, k = many_draws(orthogonal=orthogonal), vectors(6, 1), vectors(7, 2)
    with torch.no_grad():
        kernel = (performer.key_features(q) @ performer.key_features(k).mT / 64).mean(1)
    torch.testing.assert_close(kernel, (0.4 * q @ k.mT).exp()[:, 0], rtol=0.08, atol=0)


def test_kernel_is_unbiased_whatever_the_shift_and_the_balance():
    performer, q, k = many_draws(), vectors(6, 1), vectors(7, 2)
    with torch.no_grad():
        performer.key_shift.copy_(torch.linspace(-0.3, 0.3, 8).expand_as(performer.key_shift))
        performer.log_balance.copy_(torch.linspace(0.3, -0.3, 8).roll(3).expand_as(performer.log_balance))
        exponents = performer._query_exponents(q)[..., None, :] + performer._key_exponents(k)[..., None, :, :]
        logs = exponents.exp().mean((1, 4)).log()
    excess = logs - 0.4 * (q @ k.mT)[:, 0]
    torch.testing.assert_close(excess, excess.mean(-1, keepdim=True).expand_as(excess), rtol=0, atol=0.05)


def test_rows_are_orthogonal_within_blocks_and_as_long_as_normal_vectors():
    rows = build("performer", features=2 * DIM + 3).projection.detach()
    for block in rows.split(DIM, 1):
        gram = block @ block.mT
        torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)
    lengths = many_draws().projection.detach().square().sum(-1)
    assert lengths.mean().item() == pytest.approx(8, rel=0.02)
    assert lengths.var().item() == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("factor", [3, 30, 1000])
def test_large_future_queries_and_keys_move_nothing_before_them(factor):
    performer, x = build("performer").float(), teacher().map(lambda t, _: t.float())
    q, k = x.q.clone(), x.k.clone()
    for t in (q, k):
        t[:, :, 30:] *= factor
    before, after = (performer(inputs)[0][:, :, :30] for inputs in (x, Inputs(q, k, x.v)))
    assert torch.equal(before, after)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_fit_brings_it_closer_to_softmax(kv_heads):
    started, fitted = ([build("performer", kv_heads, seed) for seed in range(5)] for _ in range(2))
    for performer in fitted:
        performer.fit(teacher(kv_heads))
    other = teacher(kv_heads, seed=7)
    assert sum(distance(m, other) for m in fitted) < 0.75 * sum(distance(m, other) for m in started)


def test_fit_without_centre_changes_no_output():
    performer, x = build("performer", centre=False), teacher()
    before, _ = performer(x)
    performer.fit(x)
    torch.testing.assert_close(performer(x)[0], before)


def test_more_features_are_closer():
    few, many = ([build("performer", seed=seed, features=f) for seed in range(5)] for f in (16, 256))
    for performer in few + many:
        performer.fit(teacher())
    x = teacher(seed=7)
    assert sum(distance(m, x) for m in many) < 0.8 * sum(distance(m, x) for m in few)


def test_a_fixed_projection_is_saved_and_does_not_train():
    fixed = build("performer", trainable=False)
    assert "projection" in fixed.state_dict()
    assert "projection" not in dict(fixed.named_parameters())
    assert "projection" in dict(build("performer").named_parameters())
    assert not torch.equal(build("performer", seed=1).projection, fixed.projection)
    other = build("performer", seed=1, trainable=False)
    other.load_state_dict(fixed.state_dict())
    assert torch.equal(other(teacher())[0], fixed(teacher())[0])
