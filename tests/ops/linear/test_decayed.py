"""Linear attention that decays, and the delta rule: against loops over tokens, and in pieces."""

import pytest
import torch
import torch.nn.functional as F

from attnopt.ops.linear import decayed, delta
from attnopt.ops.linear.decayed import LOWEST, decayed_attention, decayed_attention_reference
from attnopt.ops.linear.delta import delta_attention, delta_attention_reference

FORMS = {
    "decayed": (decayed_attention, decayed_attention_reference),
    "delta": (delta_attention, delta_attention_reference),
}


def arguments(form, tokens, groups=2, width=1, strongest=0.2, heads=4, features=6, dtype=torch.float64):
    """q, k, v, log_decay, for the delta rule the strength, and a state."""
    g = torch.Generator().manual_seed(tokens + 10 * groups + width)

    def drawn(*shape):
        return torch.randn(2, *shape, generator=g, dtype=torch.float64).to(dtype)

    q, k, v = drawn(heads, tokens, features), drawn(groups, tokens, features), drawn(groups, tokens, 3)
    decay = -strongest * drawn(groups, tokens, width).sigmoid()
    strength = [drawn(groups, tokens, 1).sigmoid()] if form == "delta" else []
    return [q, F.normalize(k, dim=-1), v, decay, *strength, drawn(groups, features, 3)]


@pytest.fixture
def several_segments(monkeypatch):
    for module in (decayed, delta):
        monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(decayed, "CPU_ROWS", 64 * 2 * 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 33, 150])
def test_equals_the_token_loop_in_value_and_every_gradient(form, width, groups, tokens, several_segments):
    results = []
    for function in FORMS[form]:
        leaves = [t.clone().requires_grad_() for t in arguments(form, tokens, groups, width)]
        returned = function(*leaves)
        g = torch.Generator().manual_seed(1)
        seeds = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in returned]
        results.append([*returned, *torch.autograd.grad(returned, leaves, seeds)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("cuts", [[1], [63, 64], [5, 6, 7, 90], list(range(1, 100))])
def test_pieces_and_single_steps_equal_the_whole(form, width, cuts):
    *tokens, state = arguments(form, 100, width=width)
    whole, after = FORMS[form][0](*tokens, state)
    outs = []
    for i, j in zip([0, *cuts], [*cuts, 100], strict=True):
        out, state = FORMS[form][0](*(t[:, :, i:j] for t in tokens), state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole)
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 70])
def test_a_state_is_left_as_it_was_and_the_new_one_owns_its_memory(form, tokens):
    args = arguments(form, tokens)
    before = args[-1].clone()
    _, after = FORMS[form][0](*args)
    assert torch.equal(args[-1], before)
    assert after.untyped_storage().nbytes() == after.numel() * after.itemsize
    assert after.data_ptr() != args[-1].data_ptr()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("width", "strongest"), [(1, 20.0), (6, -LOWEST)])
def test_strong_decays_stay_exact_in_float32(form, width, strongest):
    args = arguments(form, 150, width=width)
    args[3] = torch.where(args[3] < args[3].median(), -strongest, args[3])
    slow, _ = FORMS[form][1](*args)
    leaves = [t.float().requires_grad_() for t in args]
    out, after = FORMS[form][0](*leaves)
    torch.testing.assert_close(out.double(), slow, rtol=1e-3, atol=1e-4)
    grads = torch.autograd.grad(out.sum() + after.sum(), leaves)
    assert all(bool(t.isfinite().all()) for t in grads)


def test_the_delta_rule_of_full_strength_replaces_what_was_under_a_key():
    k, v = torch.eye(4)[None, None, [0, 1, 0]], torch.randn(1, 1, 3, 2)
    out, state = delta_attention(k, k, v, torch.zeros(1, 1, 3, 1), torch.ones(1, 1, 3, 1))
    torch.testing.assert_close(out, v)
    torch.testing.assert_close(state[0, 0, :2], v[0, 0, [2, 1]])


def test_decayed_attention_with_a_column_of_ones_is_a_moving_average():
    v = torch.randn(1, 1, 50, 2, dtype=torch.float64)
    ones = torch.ones_like(v[..., :1])
    out, _ = decayed_attention(ones, ones, torch.cat([v, ones], -1), ones * torch.tensor(0.9).log())
    weights = 0.9 ** torch.arange(49, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(
        out[0, 0, -1, :2] / out[0, 0, -1, 2], weights @ v[0, 0] / weights.sum(), rtol=1e-6, atol=0
    )
