"""What window + linear mechanisms share: their branches, their one normaliser, their state, their fit."""

import pytest
import torch
from softmax_teacher import LENGTH, build, distance, teacher

from attnopt.conformance.case import randomise
from attnopt.conformance.memory import peak_bytes
from attnopt.mechanisms import Inputs, load_mechanism
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.shared import hybrid as _hybrid
from attnopt.ops.tensors import repeat_heads

KINDS = ["based", "hedgehog"]


def banded_softmax(x: Inputs, window: int) -> torch.Tensor:
    age = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    scores = (x.q @ repeat_heads(x.k, 4).mT * 0.3).masked_fill((age < 0) | (age >= window), -torch.inf)
    return scores.softmax(-1) @ repeat_heads(x.v, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_window_alone_is_banded_softmax_whatever_the_parameters(kind, kv_heads):
    mechanism = randomise(build(kind, kv_heads, window=8, branches="window"))
    x = teacher(kv_heads)
    torch.testing.assert_close(mechanism(x)[0], banded_softmax(x, 8))
    torch.testing.assert_close(mechanism.reference(x), banded_softmax(x, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branches", ["window", "far", "both"])
def test_state_bytes_are_those_held(kind, branches):
    mechanism, x = build(kind, 2, window=8, branches=branches).float(), teacher(2).map(lambda t, _: t.float())
    for length in (3, 8, 9, 40):
        _, state = mechanism(x.slice(0, length))
        assert measured_bytes(state) == mechanism.state_bytes(6, length, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_far_alone_reads_the_token_itself_and_those_before_the_window(kind):
    mechanism, x = randomise(build(kind, window=8, branches="far")), teacher()
    v = x.v.clone().requires_grad_()
    out, _ = mechanism(Inputs(x.q, x.k, v))
    (grad,) = torch.autograd.grad(out[:, :, 30].sum(), v)
    read = (grad.abs().amax((0, 1, 3)) > 0).nonzero()[:, 0].tolist()
    assert read == [*range(23), 30]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", [1, 7, 20])
def test_spans_change_neither_output_nor_gradients(kind, span, monkeypatch):
    mechanism, x = randomise(build(kind, 2, window=8)), teacher(2, batch=1)
    results = []
    for size in (LENGTH, span):
        monkeypatch.setattr(_hybrid, "CHECKPOINT_SPAN", size)
        inputs = x.map(lambda t, _: t.clone().requires_grad_())
        out, state = mechanism(inputs)
        leaves = [inputs.q, inputs.k, inputs.v, *mechanism.parameters()]
        grads = torch.autograd.grad(out.square().sum() + state.far.sums.sum(), leaves)
        results.append([out, state.kept.k, *state.far, *grads])
        with torch.no_grad():
            torch.testing.assert_close(mechanism(x)[0], out)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_holds_one_span_at_a_time(kind, monkeypatch):
    mechanism, peaks = build(kind, window=8), []
    for size in (LENGTH, 8):
        monkeypatch.setattr(_hybrid, "CHECKPOINT_SPAN", size)
        x = teacher(batch=4).map(lambda t, _: t.requires_grad_())
        peaks.append(peak_bytes(lambda x=x: mechanism(x)[0].sum().backward()))
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize("kind", KINDS)
def test_mass_moves_weight_between_the_branches(kind):
    both, far, x = build(kind, window=8), build(kind, window=8, branches="far"), teacher()
    window = banded_softmax(x, 8)
    with torch.no_grad():
        both.log_mass.fill_(-50)
        torch.testing.assert_close(both(x)[0], window)
        both.log_mass.fill_(50)
        far.log_mass.fill_(50)
        torch.testing.assert_close(both(x)[0][:, :, 8:], far(x)[0][:, :, 8:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("options", [{"window": 8}, {"window": 0}])
def test_fit_brings_it_closer_to_softmax(kind, kv_heads, options):
    started, fitted = build(kind, kv_heads, **options), build(kind, kv_heads, **options)
    fitted.fit(teacher(kv_heads))
    x = teacher(kv_heads, seed=7)
    assert distance(fitted, x) < 0.7 * distance(started, x)


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_far_part_beats_its_window_alone(kind):
    both, window = build(kind, window=8), build(kind, window=8, branches="window")
    both.fit(teacher())
    x = teacher(seed=7)
    assert distance(both, x) < 0.5 * distance(window, x)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_on_a_part_of_the_data_is_finite_and_close_to_the_fit_on_all(kind, monkeypatch):
    whole, part = build(kind, window=16), build(kind, window=16)
    whole.fit(teacher())
    monkeypatch.setattr(_hybrid, "FIT_TOKENS", 12)
    part.fit(teacher())
    torch.testing.assert_close(part.log_mass, whole.log_mass, rtol=0, atol=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_on_sequences_within_the_window_leaves_the_mass(kind):
    mechanism = build(kind, window=LENGTH)
    mechanism.fit(teacher())
    assert all(p.isfinite().all() for p in mechanism.parameters())
    assert not mechanism.log_mass.any()


@pytest.mark.parametrize("kind", KINDS)
def test_window_branch_without_a_window_is_refused(kind):
    with pytest.raises(ValueError, match="branches: 'window' needs a window of 1 or more, and window is 0"):
        build(kind, window=0, branches="window")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_branch_is_refused(kind):
    with pytest.raises(ValueError, match="branches"):
        load_mechanism(kind).Options(branches="near")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_window_alone_has_its_sinks_and_they_count_once(kind, kv_heads):
    x, age = teacher(kv_heads), torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    scores = x.q @ repeat_heads(x.k, 4).mT * 0.3
    read = (age >= 0) & ((age < 8) | (torch.arange(LENGTH) < 3))
    expected = scores.masked_fill(~read, -torch.inf).softmax(-1) @ repeat_heads(x.v, 4)
    mechanism = randomise(build(kind, kv_heads, window=8, sinks=3, branches="window"))
    torch.testing.assert_close(mechanism(x)[0], expected)
    torch.testing.assert_close(mechanism.reference(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [3, 8, 11, 12, LENGTH])
def test_sinks_are_in_no_far_sum(kind, tokens):
    """The sums are those of a mechanism without sinks that never saw the first tokens."""
    with_sinks, without, x = build(kind, window=8, sinks=3), build(kind, window=8), teacher()
    _, state = with_sinks(x.slice(0, tokens))
    _, expected = without(x.slice(3, tokens)) if tokens > 3 else (None, None)
    assert (state.far is None) == (tokens <= 11)
    if state.far is not None:
        torch.testing.assert_close(tuple(state.far), tuple(expected.far))
    assert measured_bytes(state) == with_sinks.state_bytes(6, tokens, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_with_sinks_far_alone_reads_what_lies_between(kind):
    mechanism, x = randomise(build(kind, window=8, sinks=3, branches="far")), teacher()
    v = x.v.clone().requires_grad_()
    (grad,) = torch.autograd.grad(mechanism(Inputs(x.q, x.k, v))[0][:, :, 30].sum(), v)
    assert (grad.abs().amax((0, 1, 3)) > 0).nonzero()[:, 0].tolist() == [*range(3, 23), 30]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_of_the_mass_sees_the_far_tokens_alone(kind):
    mechanism, x = build(kind, window=8, sinks=3), teacher()
    mechanism.fit(x)
    q, k = mechanism.centre.queries(x.q), mechanism.centre.keys(x.k)
    exact, kernel = mechanism.far_logs(q, k)
    assert exact.shape == kernel.shape == (6, 4, LENGTH - 11, LENGTH - 3)
    scores = q[:, :, 20:21] @ k.mT * 0.3 + mechanism.centre.log_weight(k)[:, :, None]
    torch.testing.assert_close(exact[:, :, 9, :10], scores[:, :, 0, 3:13])
    assert exact[:, :, 9, 10:].isneginf().all()
    short = build(kind, window=8, sinks=LENGTH - 8)
    short.fit(x)
    assert not short.log_mass.any()


@pytest.mark.parametrize("kind", KINDS)
def test_sinks_without_a_window_are_refused(kind):
    with pytest.raises(ValueError, match="sinks: 4 need a window of 1 or more, and window is 0"):
        build(kind, window=0, sinks=4)
