"""A single query against the memory of a window, held to softmax over the tokens that it may read."""

import pytest
import torch

from attnopt.ops.softmax.step import attend_memory, attend_rows, reads_memory
from attnopt.ops.window_state import append_tokens


def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of q (B, H, 1, D) over all keys (B, G, S, D), at a scaling of 0.3."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = 0.3 * q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("window", "first"), [(5, 3), (1, 2), (20, 0), (4, 0)])
def test_each_step_reads_the_window_and_the_sinks_once(window: int, first: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 60, 8, dtype=dtype)
    k, v = torch.randn(2, 2, 2, 60, 8, dtype=dtype)
    state = append_tokens(None, k[:, :, :2], v[:, :, :2], first).cut(window - 1)
    for t in range(2, 60):
        kept = append_tokens(state, k[:, :, t : t + 1], v[:, :, t : t + 1], first)
        assert reads_memory(q[:, :, t : t + 1], kept)
        got = attend_memory(q[:, :, t : t + 1], kept, window, 0.3)
        read = [s for s in range(t + 1) if s > t - window or s < first]
        for one, other in zip(got, softmax(q[:, :, t : t + 1], k[:, :, read], v[:, :, read]), strict=True):
            torch.testing.assert_close(one, other)
        state = kept.cut(window - 1)


def test_a_mask_may_differ_between_heads() -> None:
    torch.manual_seed(0)
    q, (k, v) = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 2, 9, 8)
    mask = torch.randn(2, 2, 2, 9)
    out, lse = attend_rows(q, k, v, mask, 0.3)
    for head in range(4):
        scores = 0.3 * q[:, head] @ k[:, head // 2].mT + mask[:, head // 2, head % 2, None]
        torch.testing.assert_close(out[:, head], scores.softmax(-1) @ v[:, head // 2])
        torch.testing.assert_close(lse[:, head], scores.logsumexp(-1))


def test_who_wants_gradients_or_more_than_a_token_goes_another_way() -> None:
    k = torch.randn(1, 2, 6, 8)
    state = append_tokens(None, k, k, 2)
    q = torch.randn(1, 2, 1, 8)
    assert not reads_memory(q, state)  # a prompt of one token has no memory yet
    kept = append_tokens(state.cut(4), k[:, :, :1], k[:, :, :1], 2)
    assert reads_memory(q, kept)
    assert not reads_memory(q.expand(-1, -1, 2, -1), kept)
    assert not reads_memory(q.bfloat16(), kept)
    assert not reads_memory(q.clone().requires_grad_(), kept)
    assert not reads_memory(q, kept, torch.zeros(1, requires_grad=True))
    with torch.no_grad():
        assert reads_memory(q.clone().requires_grad_(), kept)
