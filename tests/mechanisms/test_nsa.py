"""Native sparse attention on our own kernels. The package behind the same options: test_nsa_package.py."""

from dataclasses import replace

import pytest
import softmax_teacher
import torch

from attnopt.conformance.memory import peak_bytes
from attnopt.mechanisms import Geometry, Inputs, load_mechanism
from attnopt.mechanisms.shared import nsa_native as _nsa_native
from attnopt.mechanisms.shared.states import filled_bytes, with_room
from attnopt.mechanisms.softmax import Softmax

NSA = load_mechanism("nsa")


def geometry(kv_heads=2, head_dim=8):
    return Geometry(heads=4, kv_heads=kv_heads, head_dim=head_dim, hidden=12, scaling=0.3)


def build(kv_heads=2, noise=0.5, dtype=torch.float64, head_dim=8, **options):
    mechanism = NSA(geometry(kv_heads, head_dim), NSA.Options(**options)).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in mechanism.parameters():
            p.add_(noise * torch.randn(p.shape, generator=generator).to(p))
    return mechanism


def inputs(length, kv_heads=2, batch=2, dtype=torch.float64, head_dim=8):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, n, length, head_dim) for n in (4, kv_heads, kv_heads)] + [(batch, length, 12)]
    return Inputs(*(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes))


def streamed(mechanism, x, sizes):
    outs, state, start = [], None, 0
    for size in sizes:
        out, state = mechanism(x.slice(start, start + size), state)
        start += size
        outs.append(out)
    return torch.cat(outs, dim=2), state


@pytest.mark.parametrize("merge", ["lse", "gates"])
@pytest.mark.parametrize(("length", "kv_heads"), [*((n, 2) for n in (1, 2, 7, 8, 9, 63, 100)), (63, 4), (63, 1)])
def test_equals_its_definition_token_by_token_with_gradients(length, kv_heads, merge):
    mechanism = build(kv_heads, merge=merge, window=5, selected=3)
    x = inputs(length, kv_heads).map(lambda t, _: t.requires_grad_())
    fast, slow = mechanism(x)[0], mechanism.reference(x)
    torch.testing.assert_close(fast, slow)
    leaves, weights = [x.q, x.k, x.v, x.hidden, *mechanism.parameters()], torch.randn_like(fast)
    got, expected = (
        torch.autograd.grad((o * weights).sum(), leaves, materialize_grads=True, allow_unused=True)
        for o in (fast, slow)
    )
    torch.testing.assert_close(got, expected)
    assert all(g.isfinite().all() for g in got)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [1, 1000, 10**6])
@pytest.mark.parametrize("sizes", [[1] * 70, [7] + [1] * 63, [3, 40, 1, 26], [69, 1]])
def test_any_split_equals_the_whole(monkeypatch, sizes, numbers):
    monkeypatch.setattr(_nsa_native, "NUMBERS", numbers)
    mechanism, x = build(), inputs(70)
    out, state = streamed(mechanism, x, sizes)
    torch.testing.assert_close(out, mechanism.reference(x))
    assert filled_bytes(state) == mechanism.state_bytes(2, 70, torch.float64)


@pytest.mark.parametrize("merge", ["lse", "gates"])
def test_gradients_pass_through_the_state_and_through_a_few_heads_at_a_time(monkeypatch, merge):
    monkeypatch.setattr(_nsa_native, "NUMBERS", 1000)
    mechanism, x = build(merge=merge), inputs(70).map(lambda t, _: t.requires_grad_())
    weights = torch.randn_like(x.q)
    outs = streamed(mechanism, x, [40, 7, 1, 22])[0], mechanism.reference(x)
    got, expected = (torch.autograd.grad((o * weights).sum(), [x.q, x.k, x.v]) for o in outs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_with_all_far_blocks_selected_it_is_softmax(kv_heads):
    x = inputs(100, kv_heads)
    mechanism = NSA(geometry(kv_heads), NSA.limit(100))
    torch.testing.assert_close(mechanism(x)[0], Softmax(geometry(kv_heads), Softmax.Options()).reference(x))
    fewer = NSA(geometry(kv_heads), NSA.Options(selected=8))
    assert (fewer(x)[0] - mechanism(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("window", [1, 2, 8, 13])
def test_where_all_keys_are_equal_every_token_counts_once(window):
    """Whether in the window, in a selected block, or in a slot: 1 / (t + 1) each."""
    x = inputs(60, head_dim=60)
    one_hot = torch.eye(60, dtype=torch.float64).expand(2, 2, 60, 60)
    out, _ = build(noise=0, head_dim=60, window=window)(Inputs(x.q, torch.zeros_like(x.k), one_hot))
    uniform = torch.ones(60, 60, dtype=torch.float64).tril() / torch.arange(1, 61)[:, None]
    torch.testing.assert_close(out, uniform.expand_as(out))


def test_only_complete_blocks_outside_the_window_are_pooled_or_selected():
    block, window = 4, 6
    x = inputs(25)
    for branches, merge in (("compressed", "lse"), ("selected", "lse"), ("far", "gates")):
        mechanism = build(branches=branches, merge=merge, block=block, window=window, selected=2)
        out = mechanism(x)[0]
        assert not out[:, :, : block + window - 1].any()
        for t in range(25):
            first_near = max(0, (t + 1 - window) // block * block)
            near = (torch.arange(25) >= first_near).double().view(-1, 1)
            moved = mechanism(Inputs(x.q, x.k + 9 * near, x.v - 9 * near, x.hidden))[0]
            torch.testing.assert_close(moved[:, :, t], out[:, :, t])
            if first_near:
                last_far = (torch.arange(25) == first_near - 1).double().view(-1, 1)
                moved = mechanism(Inputs(x.q, x.k, x.v - 9 * last_far, x.hidden))[0]
                assert branches == "selected" or (moved[:, :, t] - out[:, :, t]).abs().min() > 0


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_equal_keys_are_picked_alike_in_steps_and_at_once(kv_heads):
    """In float32 rounding tells equal keys apart, differently for every shape of a matrix product."""
    mechanism, x = build(kv_heads, dtype=torch.float32, head_dim=64), inputs(80, kv_heads, 1, torch.float32, 64)
    x = Inputs(x.q, x.k[:, :, :1].expand_as(x.k), x.v)
    whole, _ = mechanism(x)
    torch.testing.assert_close(whole, streamed(mechanism, x, [1] * 80)[0])
    torch.testing.assert_close(whole, mechanism.reference(x))


def test_heads_of_a_group_share_their_selection():
    mechanism, x = build(1, branches="selected", selected=1), inputs(40, 1)
    marked = torch.arange(40.0).div(8, rounding_mode="floor").to(x.v)[:, None].expand(2, 1, 40, 8)
    shared = mechanism(Inputs(x.q, x.k, marked))[0].round()
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert shared.unique().tolist() == [0, 1, 2]
    alone = build(4, branches="selected", selected=1)
    own = alone(Inputs(x.q, x.k.expand_as(x.q), marked.expand_as(x.q)))[0].round()
    assert not torch.equal(own, own[:, :1].expand_as(own))


def test_a_step_does_not_copy_the_cache():
    """Of slots neither, of which there are no whole groups here."""
    x = inputs(4201, batch=1, dtype=torch.float32, head_dim=64)
    mechanism = build(dtype=torch.float32, head_dim=64)
    with torch.no_grad():
        _, state = mechanism(x.slice(0, 4200))
        state = with_room(state)
        held = peak_bytes(lambda: mechanism(x.slice(4200, 4201), state))
    assert held < mechanism.state_bytes(1, 4200, torch.float32) / 50


@pytest.mark.parametrize("merge", ["lse", "gates"])
def test_fit_starts_closer_to_the_teacher_and_depends_on_the_data_alone(merge):
    mechanism, x = (
        softmax_teacher.build("nsa", kv_heads=2, merge=merge, block=4, window=4, selected=1),
        softmax_teacher.teacher(2),
    )
    x = replace(x, hidden=torch.zeros(6, softmax_teacher.LENGTH, 64, dtype=torch.float64))
    before = softmax_teacher.distance(mechanism, x)
    mechanism.fit(x)
    after = softmax_teacher.distance(mechanism, x)
    assert after < 0.95 * before
    mechanism.fit(x)
    assert softmax_teacher.distance(mechanism, x) == pytest.approx(after)


def test_the_gates_start_as_given_and_follow_the_hidden_state():
    mechanism, x = build(noise=0, merge="gates"), inputs(60)
    shares = mechanism.backend._gate_logits(x).exp()
    for share, start in zip(shares.unbind(2), _nsa_native.GATES, strict=True):
        torch.testing.assert_close(share, torch.full_like(share, start))
    moved = build(noise=0.5, merge="gates")
    assert (moved(x)[0] - moved(Inputs(x.q, x.k, x.v, -x.hidden))[0]).abs().max() > 0.01


def test_what_it_cannot_do_is_refused():
    x = inputs(30)
    with pytest.raises(ValueError, match="hidden states"):
        build(merge="gates")(Inputs(x.q, x.k, x.v))
    for wrong in ({"block": 0}, {"window": 0}, {"selected": -1}, {"branches": "none"}, {"merge": "mean"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NSA.Options(**wrong)
    for native in ({"merge": "gates"}, {"branches": "far"}):
        with pytest.raises(ValueError, match="backend: native"):
            NSA.Options(backend="package", **native)
