"""Forms for short sequences against the forms that stream, at the length where one takes over from the other."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism, mechanism_names

KINDS = [
    kind
    for kind, cls in ((kind, load_mechanism(kind)) for kind in mechanism_names())
    if cls.parallel is not Mechanism.parallel and cls.control != "leaks"
]
"""A leaking control's `parallel` is its `extend`."""


def test_the_registry_finds_mechanisms_with_a_form_of_their_own() -> None:
    assert {"window", "masks", "routing", "performer", "based", "hedgehog"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beyond", [0, 1])
def test_parallel_equals_streaming_in_value_and_gradient(
    kind: str, beyond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, geometry = load_mechanism(kind), Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)
    torch.manual_seed(0)
    mechanism = cls(geometry, cls.Options()).double()
    tokens = mechanism.parallel_up_to + beyond
    shapes = [(2, 4, tokens, 8), *[(2, 2, tokens, 8)] * 2, (2, tokens, 32)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x = Inputs(*leaves)
    weights = torch.randn(2, 4, tokens, 8, dtype=torch.float64)
    streamed = mechanism.extend(x)[0]
    expected = torch.autograd.grad((streamed * weights).sum(), leaves[:3])
    calls: list[int] = []
    extend = mechanism.extend
    monkeypatch.setattr(mechanism, "extend", lambda *args: calls.append(1) or extend(*args))
    out, state = mechanism(x, keeps_state=False)
    assert (state, len(calls)) == (None, beyond)
    torch.testing.assert_close(out, streamed)
    torch.testing.assert_close(torch.autograd.grad((out * weights).sum(), leaves[:3]), expected)


@pytest.mark.parametrize("kind", ["based", "hedgehog", "performer"])
def test_weights_are_the_streaming_outputs_for_unit_vectors(kind: str) -> None:
    cls, geometry = load_mechanism(kind), Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)
    torch.manual_seed(0)
    mechanism = cls(geometry, cls.Options()).double()
    shapes = [(2, 4, 40, 8), *[(2, 2, 40, 8)] * 2]
    x = Inputs(*(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes))
    assert mechanism.dense_weights
    assert cls.weights is not Mechanism.weights
    found, expected = mechanism.weights(x), Mechanism.weights(mechanism, x)
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((w * factors).sum(), (x.q, x.k)) for w in (found, expected))
    torch.testing.assert_close(ours, theirs)
