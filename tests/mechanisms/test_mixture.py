"""What the router reads and writes, its load term, what it starts from, and what running it costs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnopt import conformance
from attnopt.core.errors import UserError
from attnopt.core.section import validated
from attnopt.mechanisms import Geometry, Inputs, load_mechanism, mechanism_names
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.mixture import Mixture, largest, load
from attnopt.mechanisms.shared.extra_loss import training_step
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.mechanisms.softmax import Softmax

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=4, hidden=8, scaling=0.5)
WINDOW = {"kind": "window", "options": {"window": 3, "sinks": 1}}


def inputs(tokens: int, batch: int = 2) -> Inputs:
    torch.manual_seed(0)
    shapes = [(batch, h, tokens, 4) for h in (4, 2, 2)] + [(batch, tokens, 8)]
    return Inputs(*(torch.randn(shape) for shape in shapes))


def build(**options) -> Mixture:
    return Mixture(GEOMETRY, Mixture.Options(**{"experts": (WINDOW, "softmax")} | options))


def choosing(mixture: Mixture, x: Inputs, choices: Tensor) -> Inputs:
    """The second expert where `choices` (T,) is 1, by the first number of the hidden states."""
    with torch.no_grad():
        mixture.bias.zero_(), mixture.weight.zero_()
        mixture.weight[..., 0] = 1
    x.hidden[..., 0] = 20.0 * (2 * choices - 1)
    return x


def test_each_token_reads_through_the_expert_that_it_chooses():
    mixture, choices = build(), torch.arange(30) % 3 == 0
    x = choosing(mixture, inputs(30), choices.float())
    out, _ = mixture(x)
    window, softmax = (part(x)[0] for part in mixture.parts)
    torch.testing.assert_close(out, torch.where(choices[:, None], softmax, window))


def test_the_largest_weights_sum_to_one_and_of_equal_ones_the_first_stand():
    found = largest(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]), 2)
    torch.testing.assert_close(found, torch.tensor([[0, 0.625, 0.375], [0.5, 0, 0.5]]))
    assert largest(torch.full((1, 3), 1 / 3), 1).tolist() == [[1, 0, 0]]


def test_training_is_soft_and_use_is_not():
    mixture, x = build(start=0.6), inputs(20)
    with training_step():
        learned, _ = mixture(x)
    each = [part(x)[0] for part in mixture.parts]
    torch.testing.assert_close(learned, 0.6 * each[0] + 0.4 * each[1])
    torch.testing.assert_close(mixture(x)[0], each[0])


def test_straight_through_sees_use_and_has_the_gradient_of_all():
    mixture, x = build(training="straight", start=0.6), inputs(20)
    with training_step():
        out, _ = mixture(x)
    torch.testing.assert_close(out, mixture(x)[0])
    (grad,) = torch.autograd.grad(out.square().sum(), mixture.weight)
    assert grad.abs().max() > 0


def test_the_load_term_reaches_the_loss_and_moves_the_router_towards_equal_loads():
    mixture, x = build(start=0.9, load_weight=2.0), inputs(50)
    with training_step() as terms:
        mixture(x, keeps_state=False)
    (term,) = terms
    assert float(term) == pytest.approx(2.0 * 2 * (1 * 0.9 + 0 * 0.1))
    term.backward()
    assert (mixture.bias.grad < 0).all(), "downhill is up for the one that nobody reads"
    with training_step() as terms:
        build(load_weight=0.0)(x)
    assert terms == []


def test_the_load_is_least_where_experts_are_read_alike():
    alike = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).view(1, 1, 2, 2)
    assert float(load(alike)) == pytest.approx(1)
    assert float(load(torch.tensor([[1.0, 0.0]] * 2).view(1, 1, 2, 2))) == pytest.approx(2)


def test_outside_of_training_nothing_is_added_and_nothing_kept():
    mixture, before = build(), set(vars(build()))
    mixture(inputs(10))
    assert set(vars(mixture)) == before


def test_the_fit_starts_at_the_best_single_expert():
    """The wider window comes closer to softmax."""
    wide = {"kind": "window", "options": {"window": 20}}
    for experts, best in (((WINDOW, wide), 1), ((wide, WINDOW), 0), ((WINDOW, "none", wide), 2)):
        mixture, x = build(experts=experts), inputs(40)
        mixture.fit(x)
        torch.testing.assert_close(mixture(x)[0], mixture.parts[best](x)[0])
        weights = mixture.soft(x)
        torch.testing.assert_close(weights[..., best], torch.full_like(weights[..., 0], 0.9))


def test_the_state_is_the_sum_of_the_experts_whatever_is_chosen():
    mixture = build()
    for choice in (0.0, 1.0):
        x = choosing(mixture, inputs(30), torch.full((30,), choice))
        _, state = mixture(x)
        assert measured_bytes(state) == mixture.state_bytes(2, 30, torch.float32)
        assert measured_bytes(state) == sum(measured_bytes(part(x)[1]) for part in mixture.parts)


def test_an_expert_that_nobody_reads_takes_the_tokens_in_and_computes_no_output(monkeypatch: pytest.MonkeyPatch):
    mixture, calls = build(), []
    x = choosing(mixture, inputs(30), (torch.arange(30) == 29).float())
    whole, _ = mixture(x)
    softmax, extend = mixture.parts[1], Softmax.extend
    monkeypatch.setattr(softmax, "extend", lambda *args: calls.append(1) or extend(softmax, *args))
    _, state = mixture(x.slice(0, 20))
    for t in range(20, 29):
        _, state = mixture(x.slice(t, t + 1), state)
    assert calls == []
    out, _ = mixture(x.slice(29, 30), state)
    assert calls == [1]
    torch.testing.assert_close(out[:, :, 0], whole[:, :, 29])


@pytest.mark.parametrize("kind", mechanism_names())
def test_what_absorbs_is_left_as_what_extends(kind: str):
    cls = load_mechanism(kind)
    mechanism, x = cls(replace(GEOMETRY, head_dim=4), cls.Options()), inputs(40)
    _, state = mechanism(x.slice(0, 30))
    absorbed, extended = mechanism.absorb(x.slice(30, 39), state), mechanism(x.slice(30, 39), state)[1]
    after = x.slice(39, 40)
    assert measured_bytes(absorbed) == measured_bytes(extended)
    torch.testing.assert_close(mechanism(after, absorbed)[0], mechanism(after, extended)[0])
    fresh = mechanism.absorb(x.slice(0, 30))
    torch.testing.assert_close(mechanism(after, fresh)[0], mechanism(after, state)[0])


def test_a_budget_is_shared_equally():
    total = softmax_bytes(GEOMETRY, 1024, torch.float32)
    options = Mixture.Options()
    sized = Mixture.sized(GEOMETRY, options, total // 8, 1024, torch.float32)
    held = [part.state_bytes(1, 1024, torch.float32) for part in Mixture(GEOMETRY, sized).parts]
    assert 0.95 * total / 8 < sum(held) <= total / 8
    assert abs(held[0] - held[1]) < 0.1 * total / 8
    with pytest.raises(ValueError, match=r"hold \d+ bytes a layer too many"):
        Mixture.sized(GEOMETRY, Mixture.Options(experts=("softmax", "none")), total // 8, 1024, torch.float32)


class ReadsAhead(Mixture):
    """The router sees the next token."""

    def soft(self, x: Inputs) -> Tensor:
        return super().soft(replace(x, hidden=x.hidden.roll(-1, 1)))


class WritesWhatIsRead(Mixture):
    """An expert that no token reads never sees the tokens."""

    def extend(self, x, state=None):
        out, after = super().extend(x, state)
        before = state or (None,) * len(self.parts)
        read = self._read(self.routed(x))
        return out, tuple(new if r else old for r, old, new in zip(read, before, after, strict=True))


class RoutesByTheBatch(Mixture):
    """All sequences are routed alike."""

    def soft(self, x: Inputs) -> Tensor:
        return super().soft(replace(x, hidden=x.hidden.mean(0, keepdim=True).expand_as(x.hidden)))


@pytest.mark.parametrize(
    ("mutant", "check"), [(ReadsAhead, "causality"), (WritesWhatIsRead, "streaming"), (RoutesByTheBatch, "padding")]
)
def test_the_suite_kills(mutant: type[Mixture], check: str):
    options = mutant.Options(start=0.6)
    (healthy,) = conformance.check(Mixture, options, only=[check])
    assert healthy.passed, healthy.detail
    (result,) = conformance.check(mutant, options, only=[check])
    assert result.passed is False
    assert "Error" not in result.detail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": ["window", "mixture"]}, "'v.experts.1' is 'mixture': 'mixture' is made of other mechanisms"),
        ({"experts": ["window", "heads"]}, "'heads' is made of other mechanisms itself"),
        ({"experts": ["window", "hedghog"]}, r"did you mean hedgehog\?"),
        ({"experts": ["window"]}, "v.experts"),
        ({"top": 3}, "top: 3 of 2 experts"),
        ({"top": 0}, "v.top"),
        ({"start": 0.5}, "start: 0.5 is no more than an equal share of 2 experts"),
        ({"load_weight": -1}, "v.load_weight"),
        ({"experts": ["window", {"kind": "hedgehog", "options": {"windo": 1}}]}, "unknown option 'windo'"),
        ({"router": 1}, "unknown key 'v.router'"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        validated(Mixture.Options, options, "v")
    assert "\n" not in str(caught.value)


def test_options_come_back_from_a_card():
    options = Mixture.Options(experts=(WINDOW, "hedgehog"), top=None)
    assert Mixture.Options.model_validate_json(options.model_dump_json()) == options


def test_without_hidden_states_it_refuses():
    with pytest.raises(ValueError, match="mixture needs the layer's hidden states for its router, there are none"):
        build()(replace(inputs(5), hidden=None))
