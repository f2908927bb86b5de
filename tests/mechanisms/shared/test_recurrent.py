"""What retention, gla and gated_delta share: their branches, gates, state, start; and what each alone does."""

import math

import pytest
import torch
from softmax_teacher import DIM, LENGTH, build, distance, geometry, teacher

from attnopt.conformance.case import randomise
from attnopt.mechanisms import Inputs, load_mechanism
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.shared import recurrent
from attnopt.mechanisms.shared.gates import Gate, half_life_logit, log_decay
from attnopt.mechanisms.shared.look_back import Far, mean_entropy, mean_look_back
from attnopt.mechanisms.shared.projections import closest_projections
from attnopt.ops.tensors import repeat_heads

KINDS = ["retention", "gla", "gated_delta"]
GATED = ["gla", "gated_delta"]


def with_hidden(kv_heads: int = 4, batch: int = 6) -> Inputs:
    x, g = teacher(kv_heads, batch=batch), torch.Generator().manual_seed(5)
    return Inputs(x.q, x.k, x.v, torch.randn(batch, LENGTH, 64, generator=g, dtype=torch.float64))


def windowed_softmax(x: Inputs, window: int, sinks: int) -> torch.Tensor:
    age, first = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH), torch.arange(LENGTH) < sinks
    scores = x.q @ repeat_heads(x.k, 4).mT * 0.3
    return scores.masked_fill((age < 0) | ((age >= window) & ~first), -torch.inf).softmax(-1) @ repeat_heads(x.v, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_window_alone_is_softmax_over_window_and_sinks_whatever_the_parameters(kind, kv_heads):
    mechanism = randomise(build(kind, kv_heads, window=8, sinks=3, branches="window"))
    x = with_hidden(kv_heads)
    torch.testing.assert_close(mechanism(x)[0], windowed_softmax(x, 8, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_a_far_one_read_the_window_alone(kind):
    mechanism, x = randomise(build(kind, 2, window=8, sinks=3)), with_hidden(2)
    out, expected = mechanism(x)[0], windowed_softmax(x, 8, 3)
    torch.testing.assert_close(out[:, :, :11], expected[:, :, :11])
    assert (out - expected)[:, :, 11].abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_far_alone_reads_the_token_itself_and_those_between_sinks_and_window(kind):
    mechanism, x = randomise(build(kind, window=8, sinks=3, branches="far")), with_hidden()
    v = x.v.clone().requires_grad_()
    out, _ = mechanism(Inputs(x.q, x.k, v, x.hidden))
    (grad,) = torch.autograd.grad(out[:, :, 30].sum(), v)
    assert (grad.abs().amax((0, 1, 3)) > 0).nonzero()[:, 0].tolist() == [*range(3, 23), 30]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"window": 0}, {"window": 8}, {"window": 8, "branches": "far"}], ids=str)
def test_state_bytes_are_those_held(kind, options):
    mechanism, x = build(kind, 2, **options).float(), with_hidden(2).map(lambda t, _: t.float())
    for length in (3, 8, 12, 13, 40):
        _, state = mechanism(x.slice(0, length))
        assert measured_bytes(state) == mechanism.state_bytes(6, length, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", [1, 7, 20])
def test_spans_change_neither_output_nor_gradients(kind, span, monkeypatch):
    mechanism, x = randomise(build(kind, 2, window=8)), with_hidden(2, batch=1)
    results = []
    for size in (LENGTH, span):
        monkeypatch.setattr(recurrent, "CHECKPOINT_SPAN", size)
        inputs = x.map(lambda t, _: t.clone().requires_grad_())
        out, _ = mechanism(inputs)
        leaves = [inputs.q, inputs.k, inputs.v, inputs.hidden, *mechanism.parameters()]
        grads = torch.autograd.grad((out * out.detach().cos()).sum(), leaves, allow_unused=True)
        results.append([out, *[g for g in grads if g is not None]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["retention", "gla"])
@pytest.mark.parametrize(
    "options", [{"window": 0}, {"window": 8, "sinks": 3}, {"window": 8, "branches": "far"}, {"window": 60}], ids=str
)
def test_weights_times_values_are_the_output(kind, options):
    mechanism, x = randomise(build(kind, 2, **options)), with_hidden(2)
    weights = mechanism.weights(x)
    assert weights.min() >= 0
    assert mechanism.dense_weights
    torch.testing.assert_close(weights @ repeat_heads(x.v, 4), mechanism(x)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, 8])
def test_without_hidden_states_the_gates_are_their_constants(kind, window):
    mechanism, x = build(kind, 2, window=window), with_hidden(2)
    mechanism.fit(x)
    silent = Inputs(x.q, x.k, x.v)
    torch.testing.assert_close(mechanism(silent)[0], mechanism(x)[0])  # W is zero at the start
    torch.testing.assert_close(mechanism.reference(silent), mechanism(silent)[0])
    moved = (randomise(mechanism)(x)[0] - mechanism(silent)[0]).abs().max()
    assert (moved > 1e-3) == (kind in GATED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"window": 0}, {"window": 8}], ids=str)
def test_the_fit_comes_closer_to_softmax(kind, options):
    mechanism, x, other = build(kind, 2, feature_dim=4, **options), teacher(2), teacher(2, seed=7)
    before = distance(mechanism, other)
    mechanism.fit(x)
    assert distance(mechanism, other) < 0.9 * before


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_halves_the_state_in_the_mean_look_back(kind):
    mechanism, x = build(kind, 2, window=8), teacher(2)
    mechanism.fit(x)
    far = Far.of(x.q, x.k, x.v, 8, 4)
    scores = far.causal(far.q @ repeat_heads(far.k, 4).mT * 0.3)
    index = torch.arange(scores.shape[-1])
    looked = (scores.softmax(-1) * (index[:, None] - index)).sum(-1).mean((0, 2)).view(2, 2).mean(1)
    half = (log_decay(mechanism.decay.bias, -5.0).detach() * looked[:, None]).exp()
    torch.testing.assert_close(half, torch.full_like(half, 0.5))


def test_the_fit_sets_write_strength_and_read_scale_in_their_ranges():
    mechanism, x = build("gated_delta", 2, window=8), teacher(2)
    mechanism.fit(x)
    strength = mechanism.strength(None, x.k)
    assert 0.3 <= strength.min() <= strength.max() <= 0.7
    assert 0.1 <= mechanism.read_scale.min() <= mechanism.read_scale.max() <= 10


def test_a_sequence_shorter_than_the_window_leaves_the_start_but_for_the_means():
    mechanism, x = build("gla", 2, window=LENGTH), teacher(2)
    before = {n: p.detach().clone() for n, p in mechanism.named_parameters()}
    mechanism.fit(x)
    changed = {n for n, p in mechanism.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"centre.key_mean", "centre.query_mean"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0, "branches": "window"}, "branches: 'window' needs a window"),
        ({"window": 0, "sinks": 2}, "sinks: 2"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_options_that_do_not_go_together_are_refused_by_name(kind, options, said):
    with pytest.raises(ValueError, match=said):
        build(kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"window": 0}, {"window": 40}, {"branches": "window"}], ids=str)
def test_a_budget_is_filled_and_kept(kind, options):
    cls = load_mechanism(kind)
    allowed = 2 * 2 * DIM * 4 * 128
    chosen = cls.sized(geometry(2), cls.Options(**options), allowed, 1024, torch.float32)
    held = cls(geometry(2), chosen).state_bytes(1, 1024, torch.float32)
    assert 0.96 * allowed <= held <= allowed


def test_channels_of_one_decay_are_the_gate_per_head():
    x = teacher(2)
    for kind in GATED:
        one, many = (build(kind, 2, window=8, channels=value) for value in (False, True))
        one.fit(x)
        many.fit(x)
        torch.testing.assert_close(one(x)[0], many(x)[0])


# the parts


def test_look_back_and_entropy_of_equal_weights():
    scores = torch.zeros(1, 2, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(mean_look_back(scores), torch.full((2,), 1.0))  # mean of 0, 1/2, 1, 3/2, 2
    torch.testing.assert_close(mean_entropy(scores), torch.ones(2))
    sharp = scores + 50 * torch.eye(5)
    torch.testing.assert_close(mean_entropy(sharp), torch.zeros(2), atol=1e-5, rtol=0)


def test_half_life():
    decay = log_decay(half_life_logit(torch.tensor([1.0, 10.0])), -5.0)
    torch.testing.assert_close(decay, torch.tensor([math.log(0.5), math.log(0.5) / 10]))


def test_closest_projections_of_full_rank_are_exact():
    x = teacher(2)
    left, right = closest_projections(x.q, x.k, DIM, 0.3)
    got = (x.q @ repeat_heads(left[None], 4)[0].mT) @ repeat_heads(x.k @ right.mT, 4).mT
    torch.testing.assert_close(got, x.q @ repeat_heads(x.k, 4).mT * 0.3)


@pytest.mark.parametrize("width", [1, 6])
def test_a_gate_begins_as_its_constant_and_reads_the_hidden_states(width):
    gate, hidden, like = Gate(geometry(2), width), torch.randn(3, 7, 64), torch.zeros(3, 4, 7, 2)
    gate.set(torch.tensor([1.0, 2.0]))
    expected = torch.tensor([1.0, 2.0])[:, None, None].expand(3, 2, 7, width)
    assert torch.equal(gate(hidden, like), expected)
    assert torch.equal(gate(None, like), expected)
    gate(hidden, like).square().sum().backward()
    assert gate.up.grad.abs().max() > 0
