"""Chunked linear attention against a loop over tokens."""

import pytest
import torch

from attnopt.ops.linear import chunked as linear
from attnopt.ops.linear.chunked import LinearState, absorb, linear_attention, linear_attention_reference, recall


def features(tokens, heads=4, groups=2, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.rand(batch, h, tokens, 5, generator=g, dtype=torch.float64) + 0.01 for h in (heads, groups))
    return q, k, torch.randn(batch, groups, tokens, 3, generator=g, dtype=torch.float64)


def started(groups=2, batch=2):
    g = torch.Generator().manual_seed(9)
    sums = torch.randn(batch, groups, 5, 3, generator=g, dtype=torch.float64)
    return LinearState(sums, torch.rand(batch, groups, 5, generator=g, dtype=torch.float64))


def leaves(tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("tokens", [1, 2, 63, 100, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_token_loop_in_value_and_every_gradient(tokens, groups, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 16)
    monkeypatch.setattr(linear, "CPU_ROWS", 64 * 2 * 4)
    g = torch.Generator().manual_seed(1)
    results = []
    for f in (linear_attention, linear_attention_reference):
        inputs = leaves([*features(tokens, groups=groups), *started(groups)])
        out, norm, state = f(*inputs[:3], LinearState(*inputs[3:]))
        returned = [out, norm, *state]
        g.manual_seed(1)
        seeds = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in returned]
        results.append([*returned, *torch.autograd.grad(returned, inputs, seeds)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cuts", [[1], [63, 64], [5, 6, 7, 90], list(range(1, 100))])
def test_pieces_and_single_steps_equal_the_whole(cuts):
    q, k, v = features(100)
    whole = linear_attention(q, k, v)
    state, outs = None, []
    for i, j in zip([0, *cuts], [*cuts, 100], strict=True):
        out, _, state = linear_attention(q[:, :, i:j], k[:, :, i:j], v[:, :, i:j], state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole[0])
    torch.testing.assert_close(tuple(state), tuple(whole[2]))


def test_a_state_is_left_as_it_was():
    q, k, v = features(70)
    _, _, state = linear_attention(q, k, v)
    before = [t.clone() for t in state]
    linear_attention(q, k, v, state)
    linear_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


def test_recall_after_absorb_is_attention_over_everything():
    q, k, v = features(40)
    out, norm = recall(q, absorb(k, v, started()))
    _, _, state = linear_attention(q, k, v, started())
    again, norm_again = recall(q, state)
    torch.testing.assert_close((out, norm), (again, norm_again))
    last, _, _ = linear_attention(q, k, v, started())
    torch.testing.assert_close(out[:, :, -1], last[:, :, -1])


def test_float32_sums_do_not_stall_over_a_long_sequence():
    q, k = torch.full((1, 1, 8192, 4), 0.5), torch.full((1, 1, 8192, 4), 0.5)
    _, norm, _ = linear_attention(q, k, torch.ones(1, 1, 8192, 2))
    torch.testing.assert_close(norm[0, 0], torch.arange(1.0, 8193))
