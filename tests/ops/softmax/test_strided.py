import pytest
import torch

from attnopt.ops.softmax import spans
from attnopt.ops.softmax.strided import strided_attention
from attnopt.ops.tensors import repeat_heads


@pytest.mark.parametrize("stride", [1, 3, 8, 200])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (2, 0), (63, 0), (1, 30), (40, 13)])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2)])
def test_strided_is_masked_softmax(
    heads: int, groups: int, tokens: int, past: int, stride: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spans, "QUERY_SPAN", 16)
    torch.manual_seed(0)
    shapes = (heads, tokens), (groups, past + tokens), (groups, past + tokens)
    leaves = [torch.randn(2, h, t, 8, dtype=torch.float64, requires_grad=True) for h, t in shapes]
    q, k, v = leaves[0], *(repeat_heads(t, heads) for t in leaves[1:])
    distance = torch.arange(tokens)[:, None] + past - torch.arange(past + tokens)
    scores = (q @ k.mT * 0.3).masked_fill((distance < 0) | (distance % stride != 0), float("-inf"))
    slow = scores.softmax(-1) @ v, scores.logsumexp(-1)
    fast = strided_attention(*leaves, stride, 0.3)
    torch.testing.assert_close(fast, slow)
    weights = [torch.randn_like(t) for t in slow]
    torch.testing.assert_close(*(torch.autograd.grad(pair, leaves, weights) for pair in (fast, slow)))
    with torch.no_grad():
        torch.testing.assert_close(strided_attention(*leaves, stride, 0.3), slow)
