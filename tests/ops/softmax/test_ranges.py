import pytest
import torch

from attnopt.ops.softmax.ranges import range_attention
from attnopt.ops.tensors import MASKED


def draw(rows: int, queries: int, keys: int, width: int, crowd: bool) -> tuple[torch.Tensor, ...]:
    """Random ranges of 0 to `width` keys; in a crowd most end at the same key."""
    g = torch.Generator().manual_seed(queries)
    q, k, v = (
        torch.randn(rows, n, 8, generator=g, dtype=torch.float64, requires_grad=True) for n in (queries, keys, keys)
    )
    stop = torch.randint(0, keys + 1, (rows, queries), generator=g)
    stop = torch.where(torch.rand(stop.shape, generator=g) < 0.9 * crowd, keys // 2, stop)
    start = (stop - torch.randint(0, width + 1, stop.shape, generator=g)).clamp(min=0)
    return q, k, v, start, stop


@pytest.mark.parametrize("span", [4, 512])
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "keys", "width"),
    [(1, 1, 1, 1), (2, 1, 7, 3), (3, 70, 90, 5), (2, 100, 20, 20), (2, 33, 400, 40)],
)
def test_range_is_masked_softmax(
    rows: int, queries: int, keys: int, width: int, crowd: bool, span: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("attnopt.ops.softmax.ranges.QUERY_SPAN", span)
    q, k, v, start, stop = draw(rows, queries, keys, width, crowd)
    index = torch.arange(keys)
    inside = (index >= start[..., None]) & (index < stop[..., None])
    scores = (q @ k.mT * 0.3).masked_fill(~inside, MASKED)
    some = inside.any(-1)
    slow = (scores.softmax(-1) @ v)[some], scores.logsumexp(-1)[some]
    whole = range_attention(q, k, v, start, stop, width, 0.3)
    assert (whole[1][~some] < MASKED / 2).all()
    fast = tuple(t[some] for t in whole)
    torch.testing.assert_close(fast, slow)
    weights = [torch.randn_like(t) for t in slow]
    grads = [torch.autograd.grad(pair, (q, k, v), weights, allow_unused=True) for pair in (fast, slow)]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(tuple(t[some] for t in range_attention(q, k, v, start, stop, width, 0.3)), slow)
