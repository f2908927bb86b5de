"""Attention by blocks against one dense softmax, wherever the first query stands."""

import pytest
import torch

from attnopt.ops.softmax.blocks import earlier_blocks_attention, own_block_attention
from attnopt.ops.softmax.spans import merge
from attnopt.ops.tensors import MASKED, repeat_heads


def tensors(queries: int, tokens: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4, queries, 8), (2, 2, tokens, 8), (2, 2, tokens, 8))
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    scores = q @ repeat_heads(k, 4).mT * 0.3
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ repeat_heads(v, 4)


@pytest.mark.parametrize("first", [0, 5, 8, 23, 49])
@pytest.mark.parametrize("size", [1, 8, 64])
def test_own_block_and_the_tokens_of_earlier_ones_are_softmax(first: int, size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attnopt.ops.softmax.blocks.QUERY_SPAN", 14)
    q, k, v = tensors(50 - first, 50)
    start, whole = first // size * size, 50 // size * size
    parts = [own_block_attention(q, k[:, :, start:], v[:, :, start:], size, 0.3)]
    if whole:
        parts.append(earlier_blocks_attention(q, k[:, :, :whole], v[:, :, :whole], first, size, size, 0.3))
    out, _ = merge(*parts)
    causal = torch.ones(50, 50, dtype=torch.bool).tril()[first:]
    expected = dense(q, k, v, causal)
    torch.testing.assert_close(out, expected)
    for got, want in zip(*(torch.autograd.grad(t.sin().sum(), (q, k, v)) for t in (out, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_a_query_reads_the_slots_of_blocks_before_its_own_with_their_mass():
    q, k, v = tensors(20, 6)
    out, lse = earlier_blocks_attention(q, k, v, 3, 7, 2, 0.3, mass=1.5)
    blocks = torch.arange(3, 23) // 7
    seen = torch.arange(6) < 2 * blocks[:, None]
    assert torch.all(lse[:, :, :4] < MASKED / 2)
    torch.testing.assert_close(out[:, :, 4:], dense(q, k, v, seen)[:, :, 4:])
    scores = (q @ repeat_heads(k, 4).mT * 0.3 + 1.5).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(lse[:, :, 4:], scores.logsumexp(-1)[:, :, 4:])
