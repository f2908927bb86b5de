"""The branches of block-sparse attention against dense attention under a mask: outputs, log-sum-exp and gradients."""

import pytest
import torch
from torch import Tensor

from attnopt.ops.nsa import near, picked
from attnopt.ops.nsa import slots as blocks
from attnopt.ops.nsa.near import near_attention
from attnopt.ops.nsa.picked import picked_attention
from attnopt.ops.nsa.slots import Layout, slot_attention

X, D = 3, 6


def tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """q (X, R, T, D) on k, v (X, S, D) where mask, broadcast to (X, R, T, S), is True."""
    scores = torch.einsum("xrtd,xsd->xrts", q, k).masked_fill(~mask, -1e30)
    return torch.einsum("xrts,xsd->xrtd", scores.softmax(-1), v), scores.logsumexp(-1)


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], leaves: list[Tensor], rows=slice(None)):
    """Equal, in the rows given, and with equal gradients of a loss over these rows."""
    sides = []
    for out, lse in (got, expected):
        out, lse = out[:, :, rows], lse[:, :, rows]
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + (lse * lse).sum()
        sides.append((out, lse, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*sides)


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("window", [1, 4, 9, 40])
@pytest.mark.parametrize(("seen", "new"), [(0, 1), (0, 9), (0, 70), (3, 1), (8, 5), (50, 1), (29, 50), (30, 34)])
def test_near_is_the_window_from_the_start_of_a_block(seen: int, new: int, window: int, share: int):
    layout, total = Layout(seen, 4, window), seen + new
    q, k, v = tensor(X, share, new, D), tensor(X, total, D), tensor(X, total, D, seed=1)
    t, s = torch.arange(seen, total)[:, None], torch.arange(total)
    mask = (s <= t) & (s >= (t + 1 - window) // 4 * 4)
    got = near_attention(q, k[:, layout.start :], v[:, layout.start :], layout)
    assert_same(got, dense(q, k, v, mask), [q, k, v])


def best(q: Tensor, k: Tensor, far: Tensor, count: int) -> Tensor:
    """(X, T, N): the slots with the largest softmax weights, summed over heads, by sorting."""
    scores = torch.einsum("xrtd,xsd->xrts", q, k)
    readable = torch.arange(k.shape[1]) < far[:, None]
    weights = scores.masked_fill(~readable, -1e9).softmax(-1).sum(1).masked_fill(~readable, -1)
    order = weights.sort(-1, descending=True).indices[..., :count]
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, True) & readable


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize(("seen", "new", "picks"), [(0, 61, 2), (0, 300, 3), (200, 1, 4), (7, 40, 0), (90, 130, 60)])
def test_slots_and_their_best(monkeypatch, seen: int, new: int, picks: int, share: int, leave_out: bool):
    monkeypatch.setattr(blocks, "SCORES", 1000)
    monkeypatch.setattr(blocks, "TIE", 1e-9)
    layout = Layout(seen, 4, 6)
    q, k, v = tensor(X, share, new, D), tensor(X, (seen + new) // 4, D), tensor(X, (seen + new) // 4, D, seed=1)
    out, lse, chosen = slot_attention(q, k, v, layout, picks, leave_out)
    far = layout.far_of(slice(0, new))
    readable = torch.arange(k.shape[1]) < far[:, None]
    expected = best(q, k, far, picks)
    hits = torch.nn.functional.one_hot(chosen + 1, k.shape[1] + 1).sum(2)[..., 1:]
    torch.testing.assert_close(hits, expected.long())
    mask = readable & ~(expected & leave_out)[:, None]
    rows = mask.any(-1).all(0).all(0)
    if rows.any():
        assert_same((out, lse), dense(q, k, v, mask.expand(-1, share, -1, -1)), [q, k, v], rows)


def test_of_equal_slots_the_earliest_are_picked_once_each():
    q, k = torch.zeros(1, 1, 100, 4), torch.randn(1, 25, 4)
    _, _, chosen = slot_attention(q, k, k, Layout(0, 4, 4), 3, True)
    assert chosen[0, 6:12].tolist() == [[-1, -1, -1]] + [[0, -1, -1]] * 4 + [[0, 1, -1]]
    assert chosen[0, -1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("pairs", [1, 100, 10**6])
@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("room", [0, 5])
def test_picked_blocks(monkeypatch, room: int, share: int, pairs: int):
    """Also of keys that lie in a larger memory."""
    monkeypatch.setattr(picked, "PAIRS", pairs)
    size, new, count = 3, 50, 20
    q, k, v = tensor(X, share, new, D), tensor(X, count * size, D), tensor(X, count * size, D, seed=1)
    generator = torch.Generator().manual_seed(0)
    picks = torch.rand(X, new, count, generator=generator).topk(4, dim=-1).indices
    picks[:, 3, 1:] = picks[1, 7] = -1
    laid = [torch.cat([t, t[:, :room]], 1)[:, : count * size] for t in (k, v)]
    got = picked_attention(q, *laid, picks, size)
    mask = torch.nn.functional.one_hot(picks + 1, count + 1).sum(2)[..., 1:].bool().repeat_interleave(size, dim=-1)
    rows = torch.arange(new) != 7
    assert_same(got, dense(q, k, v, mask[:, None].expand(-1, share, -1, -1)), [q, k, v], rows)


def test_a_row_without_keys_is_finite_and_moves_nothing():
    q, k, v = tensor(X, 1, 20, D), tensor(X, 5, D), tensor(X, 5, D, seed=1)
    out, lse, _ = slot_attention(q, k, v, Layout(0, 4, 8), 0, False)
    assert out.isfinite().all()
    assert (lse[:, :, :11] < -1e20).all()
    grads = torch.autograd.grad((out[:, :, :11] * 0).sum(), [q, k, v])
    assert all(g.isfinite().all() and not g.any() for g in grads)


def test_tiles_are_smaller_than_these_tests():
    assert near.TILE < 70
    assert picked.TILE < 50
    assert blocks.GROUP < 300 // 4
