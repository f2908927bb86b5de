"""The bound: no other choice of as many tokens keeps more of softmax's weight."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.moba import Moba
from attnopt.mechanisms.softmax import Softmax
from attnopt.mechanisms.topk import TopK

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=0.5)


def inputs(tokens: int, batch: int = 1) -> Inputs:
    torch.manual_seed(0)
    return Inputs(*(torch.randn(batch, h, tokens, 4, dtype=torch.float64) for h in (2, 1, 1)))


def test_a_query_reads_the_tokens_with_the_largest_scores():
    x = inputs(9)
    x.k.zero_()[0, 0, :, 0] = torch.tensor([1.0, 5, 2, 8, 3, 7, 0, 4, 9])
    x.q.zero_()[..., 0] = 1
    x.v.requires_grad_()
    TopK(GEOMETRY, TopK.Options(keep=3))(x)[0][:, :, 7].sum().backward()
    assert x.v.grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [1, 3, 5], (
        "9 comes later, and the query's own is not among"
    )


def test_of_equal_scores_the_earliest_are_read_and_no_more_than_asked():
    x = inputs(12)
    x.k.fill_(1)
    x.v.requires_grad_()
    TopK(GEOMETRY, TopK.Options(keep=4))(x)[0][:, :, 11].sum().backward()
    assert x.v.grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_no_choice_by_blocks_keeps_more_weight():
    """Which tokens are read is seen by values that are 1 at one token each."""
    x = inputs(64)
    scores = (x.q @ x.k.mT * 0.5).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf)
    weights = scores.softmax(-1)

    def kept(mechanism) -> torch.Tensor:
        values = torch.eye(64, dtype=torch.float64)[None, None].split(4, 3)
        read = torch.cat([mechanism(Inputs(x.q, x.k, v))[0] for v in values], 3) > 0
        return weights.where(read, 0).sum(-1)

    best = kept(TopK(GEOMETRY, TopK.Options(keep=12)))
    blocks = kept(Moba(GEOMETRY, Moba.Options(block=4, selected=2)))
    assert torch.all(best >= blocks - 1e-12)
    assert best.mean() > blocks.mean() + 0.01


def test_spans_of_queries_do_not_show(monkeypatch: pytest.MonkeyPatch):
    x = inputs(90, batch=2)
    topk = TopK(GEOMETRY, TopK.Options(keep=5))
    whole, state = topk(x)
    monkeypatch.setattr("attnopt.mechanisms.topk.QUERY_SPAN", 40)
    torch.testing.assert_close(topk(x)[0], whole)
    first, state = topk(x.slice(0, 37))
    torch.testing.assert_close(torch.cat([first, topk(x.slice(37), state)[0]], 2), whole)


def test_with_all_tokens_it_is_softmax():
    x = inputs(30)
    torch.testing.assert_close(TopK(GEOMETRY, TopK.Options(keep=100))(x)[0], Softmax(GEOMETRY, Softmax.Options())(x)[0])


@pytest.mark.parametrize("options", [{"keep": 0}, {"k": 3}])
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        TopK.Options(**options)
