"""The window's state, held to slices of the whole sequence."""

import pytest
import torch

from attnopt.mechanisms.shared.states import filled_bytes, measured_bytes
from attnopt.ops.window_state import append_tokens


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [2, 1, 7, 20], [29, 1]])
@pytest.mark.parametrize(("last", "first"), [(7, 4), (1, 0), (0, 3), (50, 2)])
def test_it_keeps_the_last_tokens_and_the_first(sizes: list[int], last: int, first: int) -> None:
    k, v = torch.randn(2, 2, 3, 30, 4)
    state, seen = None, 0
    for size in sizes:
        now = slice(seen, seen + size)
        joined = append_tokens(state, k[:, :, now], v[:, :, now], first)
        state, seen = joined.cut(last), seen + size
        assert joined.seen == state.seen == seen
        for got, whole in ((joined.k, k), (joined.v, v)):
            assert torch.equal(got, whole[:, :, max(0, seen - size - last) : seen])
        for got, whole in ((state.k, k), (state.v, v)):
            assert torch.equal(got, whole[:, :, max(0, seen - last) : seen])
        assert torch.equal(state.first_k, k[:, :, : min(first, seen)])
        assert torch.equal(state.first_v, v[:, :, : min(first, seen)])
        assert filled_bytes(state) == 2 * k[:, :, :1].nbytes * min(last + first, seen)
        assert measured_bytes(state) <= filled_bytes(state) * (1 if seen == size else 2)
