"""What is evicted, when, and that it is gone for good."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.evict import Evict
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.mechanisms.window import Window

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=1.0)


def inputs(tokens: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, tokens, 4, generator=generator, dtype=torch.float64) for heads in (2, 1, 1))
    return Inputs(q, k, v)


def kept_positions(x: Inputs, **options) -> list[int]:
    """The positions that a state keeps after all tokens; their values say which they are."""
    x = Inputs(x.q, x.k, torch.arange(x.k.shape[2]).double()[:, None].expand_as(x.v))
    _, state = Evict(GEOMETRY, Evict.Options(**options))(x)
    return state.v.tensor[0, 0, :, 0].int().tolist()


@pytest.mark.parametrize("score", ["keydiff", "tova", "h2o"])
def test_with_nothing_between_sinks_and_window_it_is_a_window(score):
    x = inputs(40)
    evict = Evict(GEOMETRY, Evict.Options(tokens=9, sinks=3, window=6, every=1, score=score))
    window = Window(GEOMETRY, Window.Options(window=7, sinks=3))
    torch.testing.assert_close(evict(x)[0], window(x)[0])


@pytest.mark.parametrize("every", [1, 3, 8])
def test_between_calls_it_never_keeps_more_than_its_tokens_and_reaches_them(every):
    evict, x, state = Evict(GEOMETRY, Evict.Options(tokens=20, sinks=2, window=4, every=every)), inputs(70), None
    counts = []
    for t in range(70):
        _, state = evict(x.slice(t, t + 1), state)
        counts.append(state.k.count)
    assert max(counts) == 20
    assert min(counts[30:]) == 20 - every + 1
    assert counts[70 // every * every - 1] == 20, "where a budget of state looks: after a whole number of steps"


def test_keydiff_keeps_the_key_that_is_unlike_the_others():
    x = inputs(30)
    x.k.copy_(torch.tensor([1.0, 0, 0, 0]) + 0.01 * x.k)
    x.k[0, 0, 5] = torch.tensor([0.0, 1, 0, 0])
    kept = kept_positions(x, tokens=8, sinks=1, window=2, every=1)
    assert {0, 5, 28, 29} <= set(kept)
    assert len(kept) == 8


def test_tova_drops_what_the_last_query_does_not_look_at():
    x = inputs(9)
    x.k.zero_()
    x.k[0, 0, :, 0] = torch.tensor([0.0, 3, 5, 1, 4, 0, 6, 2, 0])
    x.q.zero_()[..., 0] = 1
    assert kept_positions(x, tokens=5, sinks=0, window=0, every=1, score="tova") == [1, 2, 4, 6, 7]
    x.q[:, :, 8, 0] = -1  # the last query alone looks the other way, at what is left
    assert kept_positions(x, tokens=5, sinks=0, window=0, every=1, score="tova") == [1, 2, 4, 7, 8]


def test_h2o_keeps_what_was_looked_at_before_though_the_last_query_does_not():
    x = inputs(9)
    x.k.zero_()
    x.k[0, 0, 2, 0] = 4
    x.q.zero_()[..., 0] = 1
    x.q[:, :, 8, 0] = -4
    options = {"tokens": 4, "sinks": 0, "window": 1, "every": 1}
    assert 2 in kept_positions(x, **options, score="h2o")
    assert 2 not in kept_positions(x, **options, score="tova")


def test_the_heads_of_a_group_decide_together():
    x = inputs(4)
    x.k.zero_()
    x.k[0, 0, 0, 0], x.k[0, 0, 1, 1], x.k[0, 0, 2, 0], x.k[0, 0, 2, 1] = 9, 9, 3, 3
    x.q.zero_()
    x.q[0, 0, 2:, 0], x.q[0, 1, 2:, 1] = 1, 1  # each head has its own favourite, and both are kept
    assert kept_positions(x, tokens=2, sinks=0, window=0, every=1, score="tova") == [0, 1]


def test_of_equal_scores_the_earliest_go():
    x = inputs(20)
    x.k.fill_(1)
    assert kept_positions(x, tokens=6, sinks=2, window=1, every=1) == [0, 1, 16, 17, 18, 19]


def test_what_was_evicted_is_never_read_again():
    x, evict = inputs(60), Evict(GEOMETRY, Evict.Options(tokens=12, sinks=1, window=3, every=4, score="h2o"))
    x.v.requires_grad_()
    out, _ = evict(x)
    out[:, :, 59].sum().backward()
    assert 9 <= int(x.v.grad[0, 0].any(-1).sum()) <= 13


def test_the_branches_read_what_the_whole_reads_between_them():
    x, read = inputs(60), {}
    for branches in ("both", "window", "far"):
        options = Evict.Options(tokens=12, sinks=2, window=4, every=4, score="tova", branches=branches)
        x.v.requires_grad_().grad = None
        Evict(GEOMETRY, options)(x)[0][:, :, 58].sum().backward()
        read[branches] = set(x.v.grad[0, 0].any(-1).nonzero()[:, 0].tolist())
    assert read["window"] == {0, 1, *range(54, 59)}
    assert read["far"] == read["both"] - read["window"]
    assert len(read["far"]) >= 3


def test_a_budget_makes_the_window_and_the_steps_with_the_tokens():
    geometry = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)
    room = softmax_bytes(geometry, 128, torch.float32)
    chosen = Evict.sized(geometry, Evict.Options(), room, 1024, torch.float32)
    assert (chosen.tokens, chosen.window, chosen.every) == (128, 64, 16)
    given = Evict.sized(geometry, Evict.Options(window=100, every=1), room, 1024, torch.float32)
    assert (given.tokens, given.window, given.every) == (128, 100, 1)
    sums = Evict.sized(geometry, Evict.Options(score="h2o"), room, 1024, torch.float32)
    assert sums.tokens == 128 * 16 // 17
    with pytest.raises(ValueError, match=r"tokens 200, .* and 16384 are allowed"):
        Evict.sized(geometry, Evict.Options(tokens=200), room, 1024, torch.float32)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"tokens": 0}, "tokens"),
        ({"score": "snapkv"}, "score"),
        ({"every": 0}, "every"),
        ({"window": -1}, "window"),
        ({"sinks": -1}, "sinks"),
        ({"tokens": 20, "window": 17}, "tokens: 20 are fewer than sinks 4, window 17 and every 8 less 1 need, 28"),
        ({"budget": 4}, "budget"),
    ],
)
def test_bad_options_are_refused(options: dict, names: str):
    with pytest.raises(ValueError, match=names):
        Evict(GEOMETRY, Evict.Options(**options))
