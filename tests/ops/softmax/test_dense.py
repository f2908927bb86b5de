"""Dense forms of short sequences against the forms that stream, at the length where one takes over from the other."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs, load_mechanism
from attnopt.mechanisms.base import SHORT


@pytest.mark.parametrize("kind", ["window", "masks", "routing", "performer", "based", "hedgehog"])
@pytest.mark.parametrize("tokens", [SHORT, SHORT + 1])
def test_parallel_equals_streaming_in_value_and_gradient(
    kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, geometry = load_mechanism(kind), Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)
    torch.manual_seed(0)
    mechanism = cls(geometry, cls.Options()).double()
    shapes = [(2, 4, tokens, 8), *[(2, 2, tokens, 8)] * 2, (2, tokens, 32)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x = Inputs(*leaves)
    probe = torch.randn(2, 4, tokens, 8, dtype=torch.float64)
    streamed = mechanism.extend(x)[0]
    expected = torch.autograd.grad((streamed * probe).sum(), leaves[:3])
    calls: list[int] = []
    extend = mechanism.extend
    monkeypatch.setattr(mechanism, "extend", lambda *args: calls.append(1) or extend(*args))
    out, state = mechanism(x, keeps_state=False)
    assert (state, len(calls)) == (None, tokens > SHORT)
    torch.testing.assert_close(out, streamed)
    torch.testing.assert_close(torch.autograd.grad((out * probe).sum(), leaves[:3]), expected)
