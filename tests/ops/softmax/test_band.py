"""The band and its pieces against dense masked softmax, in float64, with and without autograd (two code paths)."""

import pytest
import torch
from torch import Tensor

from attnopt.ops.softmax import spans
from attnopt.ops.softmax.band import Prefix, band_attention
from attnopt.ops.softmax.spans import attend_heads, merge, zero_empty
from attnopt.ops.tensors import MASKED, repeat_heads

LENGTHS = [(1, 0), (2, 0), (63, 0), (100, 0), (1, 40), (5, 3), (37, 90)]
HEADS = [(2, 2), (4, 2), (3, 1)]


def draw(heads: int, groups: int, tokens: int, past: int = 0, batch: int = 2, dim: int = 8) -> list[Tensor]:
    torch.manual_seed(tokens + past)
    shapes = (heads, tokens), (groups, past + tokens), (groups, past + tokens)
    return [torch.randn(batch, h, t, dim, dtype=torch.float64, requires_grad=True) for h, t in shapes]


def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """bias (H or 1, T, K), -inf where there is no key."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scores = q @ k.mT * scaling + bias
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def by_distance(bias: Tensor, tokens: int, past: int) -> Tensor:
    """(H or 1, width) -> (H or 1, T, P + T)."""
    distance = torch.arange(tokens)[:, None] + past - torch.arange(past + tokens)
    inside = (distance >= 0) & (distance < bias.shape[1])
    return bias[:, distance.clamp(0, bias.shape[1] - 1)].masked_fill(~inside, float("-inf"))


def same(fast: tuple[Tensor, Tensor], slow: tuple[Tensor, Tensor], leaves: list[Tensor]) -> None:
    """Outputs, log-sum-exps, and the gradients of a random function of both."""
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    weights = [torch.randn_like(t) for t in slow]
    grads = [torch.autograd.grad([*pair], leaves, weights, allow_unused=True) for pair in (fast, slow)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize(("tokens", "past"), LENGTHS)
@pytest.mark.parametrize("width", [1, 5, 16, 64, 200])
def test_band_is_masked_softmax(heads: int, groups: int, tokens: int, past: int, width: int):
    leaves = draw(heads, groups, tokens, past)
    bias = torch.randn(heads if tokens % 2 else 1, width, dtype=torch.float64, requires_grad=True)
    slow = dense(*leaves, by_distance(bias, tokens, past), 0.3)
    same(band_attention(*leaves, width, 0.3, bias=bias), slow, [*leaves, bias])
    with torch.no_grad():
        same_values(band_attention(*leaves, width, 0.3, bias=bias), slow)
        same_values(band_attention(*leaves, width, 0.3), dense(*leaves, by_distance(bias * 0, tokens, past), 0.3))


def same_values(fast: tuple[Tensor, Tensor], slow: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize(("tokens", "start"), [(1, 0), (2, 0), (63, 0), (100, 0), (1, 7), (30, 9)])
@pytest.mark.parametrize("gap", [0, 4, 9])
def test_band_with_the_first_tokens(heads: int, groups: int, tokens: int, start: int, gap: int):
    q, k, v = draw(heads, groups, tokens, start)
    first, width = 5, 4
    bias = torch.randn(heads, min(first, k.shape[2]), dtype=torch.float64, requires_grad=True)
    prefix = Prefix(k[:, :, :first], v[:, :, :first], start, gap, bias)
    distance = torch.arange(tokens)[:, None] + start - torch.arange(start + tokens)
    in_band = ((distance >= 0) & (distance < width)).double().expand(heads, -1, -1)
    seen = (distance >= gap) & (torch.arange(start + tokens) < first)
    columns = torch.arange(start + tokens).clamp(max=bias.shape[1] - 1)
    mass = in_band + seen * bias[:, columns].exp()[:, None]
    bias_of_mass = mass.where(mass > 0, 1).log().masked_fill(mass == 0, float("-inf"))
    slow = dense(q, k, v, bias_of_mass, 0.3)
    leaves = [q, k, v, bias]
    same(band_attention(q, k, v, width, 0.3, prefix=prefix), slow, leaves)
    with torch.no_grad():
        same_values(band_attention(q, k, v, width, 0.3, prefix=prefix), slow)


def test_spans_do_not_show(monkeypatch: pytest.MonkeyPatch):
    leaves = draw(2, 1, 150, 20)
    whole = band_attention(*leaves, 9, 0.3)
    monkeypatch.setattr(spans, "QUERY_SPAN", 64)
    same(band_attention(*leaves, 9, 0.3), whole, leaves)


def test_distances_taken_out_and_rows_without_keys():
    q, k, v = draw(2, 2, 40)
    bias = torch.full((1, 6), MASKED, dtype=torch.float64)
    bias[:, 5] = 0
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            out, lse = band_attention(q, k, v, 6, 0.3, bias=bias)
            torch.testing.assert_close(out[:, :, 5:], v[:, :, :-5])
            assert (lse[:, :, :5] < MASKED / 2).all()
            assert not zero_empty(out, lse)[:, :, :5].any()
            own = band_attention(q, k, v, 1, 0.3)
            torch.testing.assert_close(merge(own, (out, lse))[0][:, :, :5], v[:, :, :5], rtol=0, atol=0)
    same(merge(own_of(q, k, v), band_attention(q, k, v, 6, 0.3, bias=bias)), two_distances(q, k, v), [q, k, v])


def own_of(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return band_attention(q, k, v, 1, 0.3)


def two_distances(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    bias = torch.full((1, 6), float("-inf"), dtype=torch.float64)
    bias[:, [0, 5]] = 0
    return dense(q, k, v, by_distance(bias, q.shape[2], 0), 0.3)


def test_future_and_padding_have_no_weight_and_no_gradient():
    q, k, v = draw(2, 2, 50)
    torch.autograd.backward(band_attention(q, k, v, 7, 0.3)[0][:, :, 20].sum())
    for t in (k, v):
        outside = torch.cat([t.grad[:, :, :14], t.grad[:, :, 21:]], 2)
        assert not outside.any()
    with torch.no_grad():
        before = band_attention(q, k, v, 7, 0.3)[0]
        k[:, :, 21:] *= 30
        v[:, :, 21:] *= 30
        torch.testing.assert_close(band_attention(q, k, v, 7, 0.3)[0][:, :, :21], before[:, :, :21], rtol=0, atol=0)


@pytest.mark.parametrize("norm", [1, 8, 64])
def test_large_scores_and_half_precision(norm: int):
    q, k, v = (t.detach() * n for t, n in zip(draw(2, 2, 70), (norm, norm, 1), strict=True))
    exact = band_attention(q, k, v, 9, 0.3)[0]
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.3)):
        low = [t.to(dtype) for t in (q, k, v)]
        out, _ = band_attention(*low, 9, 0.3)
        assert out.dtype == torch.float32
        wide = band_attention(*(t.double() for t in low), 9, 0.3)[0]
        assert (out - wide).norm() <= 1e-3 * wide.norm()
        if norm == 1:
            assert (out - exact).norm() <= tolerance * exact.norm()


def test_inputs_with_strange_strides():
    q, k, v = draw(2, 2, 40)
    expected = band_attention(q, k, v, 9, 0.3)
    with torch.no_grad():
        odd = [t.mT.contiguous().mT for t in (q, k, v)]
        same_values(band_attention(*odd, 9, 0.3), expected)
        same_values(attend_heads(*odd, causal(40), 0.3), dense(q, k, v, causal(40), 0.3))


def causal(tokens: int) -> Tensor:
    return torch.full((1, tokens, tokens), MASKED, dtype=torch.float64).triu(1)
