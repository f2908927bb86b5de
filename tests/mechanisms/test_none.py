import torch

from attnopt.mechanisms import Geometry, Inputs, load_mechanism


def test_gives_zeros_in_chunks_and_keeps_no_state():
    geometry = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=0.5)
    none = load_mechanism("none")
    mechanism = none(geometry, none.Options())
    q, k, v = torch.randn(3, 2, 5, 4), torch.randn(3, 1, 5, 4), torch.randn(3, 1, 5, 4)
    keep = torch.tensor([[True] * 5, [False] * 5, [False, True, True, False, True]])
    for x in (Inputs(q, k, v), Inputs(q, k, v, keep=keep)):
        out, state = mechanism(x)
        again, _ = mechanism(x.slice(0, 1), state)
        assert out.shape == q.shape
        assert not out.any()
        assert not again.any()
    assert mechanism.state_bytes(3, 5, q.dtype) == 0
