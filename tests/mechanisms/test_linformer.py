import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.linformer import Linformer, pool

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)


def build(**options) -> Linformer:
    return Linformer(GEOMETRY, Linformer.Options(**options)).double()


def inputs(tokens: int) -> Inputs:
    torch.manual_seed(tokens)
    return Inputs(*(torch.randn(2, h, tokens, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)))


def test_starts_as_the_mean_of_neighbours():
    linformer, x = build(segment=6, slots=3), inputs(12)
    expected = x.k.unflatten(2, (6, 2)).mean(3)
    torch.testing.assert_close(pool(linformer.pool_k, x.k), expected)


def test_pooling_keeps_the_mass_whatever_is_learnt():
    weight = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(pool(weight, torch.ones(1, 2, 12, 4).double()), torch.ones(1, 2, 6, 4).double())


@pytest.mark.parametrize("branches", ["both", "far"])
@pytest.mark.parametrize("segment", [4, 24])
def test_spans_of_queries_do_not_show(branches: str, segment: int, monkeypatch: pytest.MonkeyPatch):
    """Several spans, of which the first ones see no slot where segments are long, computed again in the backward pass."""
    monkeypatch.setattr("attnopt.ops.softmax.blocks.QUERY_SPAN", 32)
    linformer, x = build(segment=segment, slots=2, branches=branches), inputs(75)
    with torch.no_grad():
        for p in linformer.parameters():
            p += torch.randn_like(p)
    out, expected = linformer(x)[0], linformer.reference(x)
    torch.testing.assert_close(out, expected)
    leaves, weights = [x.q, x.k, x.v, *linformer.parameters()], torch.randn_like(out)
    grads = [torch.autograd.grad(t, leaves, weights, retain_graph=True) for t in (out, expected)]
    torch.testing.assert_close(*grads)


def test_branches_see_their_own_part():
    x = inputs(30)
    for branches, expected in (("window", range(24, 29)), ("far", range(24)), ("both", range(29))):
        (grad,) = torch.autograd.grad(build(segment=8, branches=branches)(x)[0][:, :, 28].sum(), x.v)
        assert grad[0, 0].any(-1).nonzero()[:, 0].tolist() == list(expected)
    assert not build(segment=8, branches="far")(x)[0][:, :, :8].any()


def test_state_holds_slots_of_complete_segments_only():
    x, linformer = inputs(30), build(segment=8, slots=2)
    for tokens in (7, 8, 9, 30):
        _, state = linformer(x.slice(0, tokens))
        assert state.slot_k.count == tokens // 8 * 2
        assert state.k.shape[2] == tokens % 8


@pytest.mark.parametrize(
    ("options", "message"),
    [({"slots": 5}, "slots: 5 does not divide segment, 16"), ({"segment": 0}, "segment"), ({"branches": "x"}, "far")],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Linformer.Options(**options)
