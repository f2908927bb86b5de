"""Fused decoding steps, held to the eager ones."""

import pytest
import torch

from attnopt.core.errors import UserError
from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism
from attnopt.mechanisms.shared import compiled

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)


def inputs(tokens: int) -> Inputs:
    torch.manual_seed(tokens)
    return Inputs(torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8))


def decoded(mechanism: Mechanism) -> torch.Tensor:
    """What it gives for ten tokens after a prefill."""
    _, state = mechanism(inputs(40))
    outs, new = [], inputs(10)
    for t in range(10):
        out, state = mechanism(new.slice(t, t + 1), state)
        outs.append(out)
    return torch.cat(outs, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("performer", {}), ("hedgehog", {"window": 8, "sinks": 2})])
@torch.inference_mode()
def test_a_compiled_step_gives_what_the_eager_one_does(kind: str, options: dict) -> None:
    cls = load_mechanism(kind)
    mechanism = cls(GEOMETRY, cls.Options(**options)).eval()
    mechanism.fit(inputs(40))
    expected = decoded(mechanism)
    assert compiled.compile_steps([mechanism]) == 1
    torch.testing.assert_close(decoded(mechanism), expected, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    compiled._probe.cache_clear()
    cls = load_mechanism("performer")
    with pytest.raises(UserError, match=r"^compile: torch\.compile does not work on this machine: no C\+\+ compiler"):
        compiled.compile_steps([cls(GEOMETRY, cls.Options())])


def test_what_has_nothing_to_compile_stays_as_it_is() -> None:
    cls = load_mechanism("window")
    assert compiled.compile_steps([cls(GEOMETRY, cls.Options())]) == 0
