"""Which blocks a query reads."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.moba import Moba
from attnopt.mechanisms.softmax import Softmax

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=0.5)


def inputs(tokens: int) -> Inputs:
    torch.manual_seed(0)
    return Inputs(*(torch.randn(1, h, tokens, 4, dtype=torch.float64) for h in (2, 1, 1)))


def read_by(x: Inputs, head: int, t: int, **options) -> list[int]:
    """The positions whose values a query reads."""
    x.v.requires_grad_().grad = None
    Moba(GEOMETRY, Moba.Options(**{"sinks": 0} | options))(x)[0][:, head, t].sum().backward()
    return x.v.grad[0, 0].any(-1).nonzero()[:, 0].tolist()


def test_a_query_reads_its_own_block_and_the_ones_whose_mean_key_it_likes_best():
    x = inputs(22)
    x.k[0, 0, :, 0] = torch.tensor([0.0, 5, 1, 3, 0]).repeat_interleave(5)[:22]
    x.q.zero_()[..., 0] = 1
    assert read_by(x, 0, 21, block=5, selected=2) == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19, 20, 21]
    assert read_by(x, 0, 21, block=5, selected=0) == [20, 21]
    assert read_by(x, 0, 21, block=5, selected=2, branches="window") == [20, 21]
    assert read_by(x, 0, 21, block=5, selected=1, branches="far") == [5, 6, 7, 8, 9]
    assert read_by(x, 0, 4, block=5, selected=1, branches="far") == []
    assert read_by(x, 0, 6, block=5, selected=3) == [0, 1, 2, 3, 4, 5, 6], "fewer blocks than it may pick"


def test_the_first_blocks_are_read_by_all_and_count_among_the_selected():
    x = inputs(22)
    x.k[0, 0, :, 0] = torch.tensor([0.0, 5, 1, 3, 0]).repeat_interleave(5)[:22]
    x.q.zero_()[..., 0] = 1
    assert read_by(x, 0, 21, block=5, selected=2, sinks=1) == [*range(10), 20, 21]
    assert read_by(x, 0, 21, block=5, selected=1, sinks=1) == [*range(5), 20, 21]
    assert read_by(x, 0, 3, block=5, selected=1, sinks=1) == [0, 1, 2, 3]


def test_one_large_key_does_not_make_a_block():
    """It is the mean that counts, not the largest."""
    x = inputs(10)
    x.k.zero_()[0, 0, :, 0] = torch.tensor([9.0, -4, -4, 1, 1, 1, 0, 0, 0, 0])
    x.q.zero_()[..., 0] = 1
    assert read_by(x, 0, 8, block=3, selected=1) == [3, 4, 5, 6, 7, 8]


def test_each_query_head_of_a_group_picks_for_itself():
    x = inputs(9)
    x.k.zero_()[0, 0, :3, 0], x.k[0, 0, 3:6, 1] = 1, 1
    x.q.zero_()[0, 0, :, 0], x.q[0, 1, :, 1] = 1, 1
    assert [read_by(x, head, 8, block=3, selected=1) for head in (0, 1)] == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 6, 7, 8],
    ]


def test_of_equal_blocks_the_earliest_is_read():
    x = inputs(9)
    x.k.fill_(1)
    assert read_by(x, 0, 8, block=2, selected=1) == [0, 1, 8]


@pytest.mark.parametrize("selected", [9, 50])
def test_with_all_blocks_it_is_softmax_however_many_queries_at_a_time(selected: int):
    x = inputs(150)
    out, _ = Moba(GEOMETRY, Moba.Options(block=16, selected=selected))(x)
    torch.testing.assert_close(out, Softmax(GEOMETRY, Softmax.Options())(x)[0])


@pytest.mark.parametrize("options", [{"block": 0}, {"selected": -1}, {"sinks": 4}, {"topk": 4}])
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        Moba(GEOMETRY, Moba.Options(**options))
