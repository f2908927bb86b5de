"""Watching calls: what layers get and give, and no hook left behind."""

import pytest
import torch
from families import IDS, pair, teacher
from torch import nn

from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism
from attnopt.student.attach import mechanisms_of
from attnopt.student.calls import attention_weights, layer_calls, layer_inputs, replayed_calls, watched
from attnopt.student.layers import attention_layers


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_calls_are_seen_while_the_context_lasts_and_not_after() -> None:
    layer, seen = nn.Linear(3, 2), []
    x = torch.ones(1, 3)
    with watched([layer], before=lambda *call: seen.append(len(call)), after=lambda *call: seen.append(len(call))):
        layer(input=x)
    layer(x)
    assert seen == [3, 4]


def test_what_is_watched_can_be_replaced() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with watched([layer], before=lambda _, args, kwargs: ((args[0] * 2,), kwargs)):
        torch.testing.assert_close(layer(x), layer.forward(2 * x))
    with watched([layer], after=lambda *call: call[-1] + 1):
        torch.testing.assert_close(layer(x), layer.forward(x) + 1)


def test_no_hook_is_left_where_the_call_fails() -> None:
    model = teacher("gpt2")
    with pytest.raises(ZeroDivisionError), watched(model.modules(), before=lambda *_: 1 / 0, after=lambda *_: None):
        model(IDS)
    assert hooks_of(model) == 0
    _, student = pair("gpt2")
    before = hooks_of(student)
    with pytest.raises(IndexError):
        layer_calls(student, IDS + 99)
    assert hooks_of(student) == before


def test_calls_can_be_made_again_and_give_the_same() -> None:
    original, student = pair("llama gqa")
    layers, calls = attention_layers(original), layer_calls(original, IDS)
    with torch.no_grad():
        for layer, other, call in zip(layers, attention_layers(student), calls, strict=True):
            assert call.inputs is None
            torch.testing.assert_close(layer(*call.args, **call.kwargs)[0], call.output, rtol=0, atol=1e-6)
            torch.testing.assert_close(other(*call.args, **call.kwargs)[0], call.output, rtol=0, atol=1e-6)


def test_layer_inputs_are_what_enters_the_mechanisms() -> None:
    _, student = pair("llama gqa")
    inputs = layer_inputs(student, IDS)
    assert [tuple(x.k.shape) for x in inputs] == [(2, 2, 11, 8)] * 3
    calls = layer_calls(student, IDS)
    projected = attention_layers(student)[1].v_proj(inputs[1].hidden).view(2, 11, 2, 8).transpose(1, 2)
    torch.testing.assert_close(inputs[1].v, projected)
    out, _ = mechanisms_of(student)[1](inputs[1], keeps_state=False)
    given = attention_layers(student)[1].o_proj(out.transpose(1, 2).reshape(2, 11, 32))
    torch.testing.assert_close(given, calls[1].output)


@pytest.mark.parametrize("family", ["gpt2", "llama gqa", "gpt-neox", "qwen2"])
@pytest.mark.parametrize("swapped", [False, True])
def test_replayed_calls_are_those_of_a_whole_run(family: str, swapped: bool) -> None:
    model = pair(family)[swapped]
    positions = torch.arange(11) + torch.tensor([[0], [5]]) * (torch.arange(11) > 0)
    calls = layer_calls(model, IDS, positions)
    hidden, outputs = torch.stack([call.hidden for call in calls]), torch.stack([call.output for call in calls])
    before, ran = hooks_of(model), []
    layers = attention_layers(model)
    with watched(layers, after=lambda *_: ran.append(1)):
        replayed = list(replayed_calls(model, IDS, positions, hidden, outputs))
    assert not ran, "no layer runs to its end"
    assert hooks_of(model) == before
    with torch.no_grad():
        for layer, ours, theirs in zip(layers, replayed, calls, strict=True):
            torch.testing.assert_close(layer(*ours.args, **ours.kwargs)[0], theirs.output)
            assert torch.equal(ours.output, theirs.output)
            assert (ours.inputs is None) == (theirs.inputs is None) == (not swapped)
            if ours.inputs is not None and theirs.inputs is not None:
                torch.testing.assert_close((ours.inputs.q, ours.inputs.k), (theirs.inputs.q, theirs.inputs.k))


def dense(kind: str = "performer") -> tuple[Mechanism, Inputs]:
    cls = load_mechanism(kind)
    mechanism = cls(Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3), cls.Options())
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    return mechanism, Inputs(q, k, v)


@pytest.mark.parametrize("kind", ["softmax", "performer", "hedgehog"])
def test_attention_weights_are_those_that_give_the_output(kind: str) -> None:
    mechanism, x = dense(kind)
    expected = mechanism(x, keeps_state=False)[0]
    with attention_weights(mechanism) as weights:
        out, _ = mechanism(x, keeps_state=False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0] @ x.v.repeat_interleave(2, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 9), rtol=1e-4, atol=1e-4)
    assert weights[0].triu(1).abs().max() == 0
    assert torch.equal(mechanism(x, keeps_state=False)[0], expected)


def test_attention_weights_are_refused_where_they_would_not_be_all() -> None:
    mechanism, x = dense()
    _, state = mechanism(x)
    with attention_weights(mechanism):
        with pytest.raises(ValueError, match="without a mask and without a state"):
            mechanism(x, state)
        with pytest.raises(ValueError, match="without a mask and without a state"):
            mechanism(Inputs(x.q, x.k, x.v, keep=torch.ones(2, 9, dtype=torch.bool)))
    with pytest.raises(ValueError, match="window has no attention weights"), attention_weights(dense("window")[0]):
        pass
