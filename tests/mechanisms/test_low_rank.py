"""What a rank keeps, and that a step without keys is the same as one with them."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.low_rank import LowRank
from attnopt.mechanisms.softmax import Softmax

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=4, hidden=8, scaling=0.5)


def within(rank: int, tokens: int = 60, batch: int = 2, seed: int = 0) -> Inputs:
    """Inputs whose keys and values, all heads together, lie in `rank` directions around a mean."""
    generator = torch.Generator().manual_seed(seed)
    directions, mean = torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)
    basis = torch.randn(rank, 16, generator=directions, dtype=torch.float64)
    z = torch.randn(batch, tokens, rank, generator=generator, dtype=torch.float64) @ basis
    z = z + 3 * torch.randn(16, generator=mean, dtype=torch.float64)
    k, v = z.unflatten(2, (2, 8)).transpose(1, 2).chunk(2, dim=3)
    return Inputs(torch.randn(batch, 4, tokens, 4, generator=generator, dtype=torch.float64), k, v)


def fitted(x: Inputs, **options) -> LowRank:
    mechanism = LowRank(GEOMETRY, LowRank.Options(**options)).double()
    mechanism.fit(x)
    return mechanism


def off(mechanism: LowRank, x: Inputs) -> float:
    exact, _ = Softmax(GEOMETRY, Softmax.Options())(x)
    return float((mechanism(x)[0] - exact).norm() / exact.norm())


def test_a_rank_that_the_data_have_is_exact_on_other_data_too():
    mechanism = fitted(within(5), rank=5)
    assert off(mechanism, within(5, seed=1)) < 1e-9
    assert off(fitted(within(5), rank=4), within(5, seed=1)) > 0.01


def test_full_rank_is_softmax_before_and_after_the_fit():
    x = within(16)
    assert off(LowRank(GEOMETRY, LowRank.Options(rank=None)).double(), x) < 1e-9
    assert off(fitted(within(16, seed=3), rank=16), x) < 1e-9


def test_more_rank_is_nearer():
    x = within(16)
    errors = [off(fitted(within(16, seed=1), rank=rank), x) for rank in (2, 6, 10, 14)]
    assert errors == sorted(errors, reverse=True)


def test_large_keys_do_not_take_all_of_the_rank():
    x = within(16)
    large = Inputs(x.q / 100, x.k * 100, x.v)
    assert off(fitted(large, rank=8), large) == pytest.approx(off(fitted(x, rank=8), x), rel=1e-6)


def test_the_fit_has_the_least_squared_error_of_its_rank():
    x = within(16)
    mechanism = fitted(x, rank=6)
    k, v = mechanism.decode(mechanism.encode(x.k, x.v))
    scales = [(t - t.mean((0, 2), keepdim=True)).square().mean().sqrt() for t in (x.k, x.v)]
    error = sum(((a - b) / s).square().sum() for a, b, s in zip((k, v), (x.k, x.v), scales, strict=True))
    z = torch.cat([x.k / scales[0], x.v / scales[1]], 3).transpose(1, 2).flatten(2).flatten(0, 1)
    singular = torch.linalg.svdvals(z - z.mean(0))
    torch.testing.assert_close(error, singular[6:].square().sum())


def test_a_step_reads_latents_as_a_prefill_reads_the_keys_made_of_them():
    x, mechanism = within(16), fitted(within(16, seed=2), rank=6)
    whole, _ = mechanism(x)
    _, state = mechanism(x.slice(0, 59))
    torch.testing.assert_close(mechanism(x.slice(59), state)[0], whole[:, :, 59:])


def test_a_state_is_the_rank_per_token():
    _, state = fitted(within(16), rank=6)(within(16))
    assert measured_bytes(state) == 2 * 60 * 6 * 8


@pytest.mark.parametrize(
    ("options", "names"),
    [({"rank": 0}, "rank"), ({"rank": 17}, "rank: 17 is more than all keys and .* have, 16"), ({"dim": 3}, "dim")],
)
def test_bad_options_are_refused(options: dict, names: str):
    with pytest.raises(ValueError, match=names):
        LowRank(GEOMETRY, LowRank.Options(**options))
