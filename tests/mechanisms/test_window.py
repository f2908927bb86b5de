import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.window import Window

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=0.5)


def test_reads_the_last_and_the_first_tokens_only():
    window = Window(GEOMETRY, Window.Options(window=3, sinks=2))
    q, k, v = torch.randn(1, 2, 12, 4), torch.randn(1, 1, 12, 4), torch.randn(1, 1, 12, 4, requires_grad=True)
    out, _ = window(Inputs(q, k, v))
    out[:, :, 9].sum().backward()
    assert v.grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [0, 1, 7, 8, 9]


def test_first_tokens_within_the_window_count_once():
    x = Inputs(torch.randn(1, 2, 6, 4), torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4))
    outs = [Window(GEOMETRY, Window.Options(window=6, sinks=sinks))(x)[0] for sinks in (0, 4)]
    torch.testing.assert_close(*outs)


def test_one_step_far_on_takes_the_first_tokens_from_the_state():
    window = Window(GEOMETRY, Window.Options(window=4, sinks=3)).double()
    q, k, v = (torch.randn(1, heads, 50, 4, dtype=torch.float64) for heads in (2, 1, 1))
    x, state = Inputs(q, k, v), None
    for t in range(50):
        out, state = window(x.slice(t, t + 1), state)
    torch.testing.assert_close(out, window.reference(x)[:, :, -1:])
    assert state.k.shape[2] + state.first_k.shape[2] == 6


@pytest.mark.parametrize("options", [{"window": 0}, {"sinks": -1}, {"size": 4}])
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        Window.Options(**options)
