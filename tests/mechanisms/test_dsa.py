"""Which tokens a query reads, what the warm-up learns, and that the indexer sees where tokens stand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.dsa import DSA
from attnopt.mechanisms.moba import Moba
from attnopt.mechanisms.softmax import Softmax

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=4, hidden=8, scaling=0.5)


def inputs(tokens: int, batch: int = 1, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    shapes = [(batch, h, tokens, 4) for h in (2, 1, 1)] + [(batch, tokens, 8)]
    return Inputs(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))


def build(geometry: Geometry = GEOMETRY, **options) -> DSA:
    torch.manual_seed(0)
    paper = {"sinks": 0, "window": 0, "index_heads": 2, "index_dim": 4}
    return DSA(geometry, DSA.Options(**paper | options)).double()


def liking(dsa: DSA, *liked: float) -> Inputs:
    """Tokens that every query likes so much."""
    x = inputs(len(liked))
    x.hidden.zero_()[0, :, 0], x.hidden[0, :, 1] = torch.tensor(liked), 1
    for name in ("query", "key", "weight", "bias"):
        getattr(dsa, name).zero_()
    dsa.query[1, 0] = dsa.key[0, 0] = dsa.bias[0] = 1
    return x


def read_by(dsa: DSA, x: Inputs, t: int) -> list[list[int]]:
    """The positions whose values query t reads, by head: from a prefill, and the same from a decoding step."""
    found = []
    for start in (None, t):
        v = x.v.detach().requires_grad_()
        whole = replace(x, v=v).slice(0, t + 1)
        if start:
            _, state = dsa(whole.slice(0, t))
            out, _ = dsa(whole.slice(t), state)
        else:
            out, _ = dsa(whole)
        grads = [torch.autograd.grad(out[0, h, -1].sum(), v, retain_graph=True)[0] for h in range(2)]
        found.append([g[0, 0].any(-1).nonzero()[:, 0].tolist() for g in grads])
    assert found[0] == found[1]
    return found[0]


def test_all_heads_read_the_tokens_that_the_indexer_likes_best():
    dsa = build(keep=3)
    x = liking(dsa, 1, 5, 2, 8, 3, 7, 0, 4, 9)
    assert read_by(dsa, x, 7) == [[1, 3, 5]] * 2, "9 comes later, and the query's own is not among"
    assert read_by(dsa, x, 1) == [[0, 1]] * 2


def test_the_first_and_the_last_tokens_are_always_read_and_count_among_those_kept():
    dsa = build(keep=5, sinks=1, window=2)
    x = liking(dsa, 1, 5, 2, 8, 3, 7, 0, 4, 9)
    assert read_by(dsa, x, 7)[0] == [0, 3, 5, 6, 7]
    assert read_by(build(keep=3, sinks=1, window=2), x, 7)[0] == [0, 6, 7]


def test_each_branch_reads_its_own_part():
    for branch, read in {"window": [0, 6, 7], "far": [3, 5]}.items():
        dsa = build(keep=5, sinks=1, window=2, branches=branch)
        assert read_by(dsa, liking(dsa, 1, 5, 2, 8, 3, 7, 0, 4, 9), 7)[0] == read
    out, state = dsa(liking(dsa, 1, 5, 2))
    assert not out.any(), "none beyond the first and the last"
    assert dsa(liking(dsa, 1), state)[0].any(), "one"
    first = liking(dsa, 1).map(lambda t, _: t.requires_grad_())
    out, state = dsa(first)
    assert not out.any()
    assert torch.autograd.grad(out.sum(), first.q)[0].count_nonzero() == 0
    assert not state.index_keys.tensor.requires_grad, "the indexer is not trained, nor what it reads"


def test_of_equal_scores_the_earliest_are_read_and_no_more_than_asked():
    dsa = build(keep=4)
    assert read_by(dsa, liking(dsa, *[1.0] * 12), 11)[0] == [0, 1, 2, 3]
    assert read_by(dsa, liking(dsa, *[-1.0] * 12), 11)[0] == [0, 1, 2, 3], "what is not liked is equal at 0"


def test_with_all_tokens_it_is_softmax():
    x = inputs(30)
    torch.testing.assert_close(build(keep=100)(x)[0], Softmax(GEOMETRY, Softmax.Options())(x)[0])


def test_spans_of_queries_do_not_show(monkeypatch: pytest.MonkeyPatch):
    x, dsa = inputs(90, batch=2), build(keep=9, sinks=1, window=3)
    whole, _ = dsa(x)
    monkeypatch.setattr("attnopt.mechanisms.dsa.QUERY_SPAN", 40)
    torch.testing.assert_close(dsa(x)[0], whole)
    first, state = dsa(x.slice(0, 37))
    torch.testing.assert_close(torch.cat([first, dsa(x.slice(37), state)[0]], 2), whole)


def test_a_step_gathers_what_it_reads_of_each_sequence():
    """Sequences choose differently, and what they do not read has no gradient, as it was not computed with."""
    x, dsa = inputs(40, batch=3), build(keep=6, sinks=1, window=2)
    whole, _ = dsa(x)
    _, state = dsa(x.slice(0, 39))
    torch.testing.assert_close(dsa(x.slice(39), state)[0], whole[:, :, 39:])


def planted(tokens: int, seed: int) -> tuple[Inputs, Tensor]:
    """Queries that look for one of four names that an earlier token carries, among noise; and which tokens these are.

    Names are in the hidden states, where a query's stands in other coordinates than a key's.
    """
    x = inputs(tokens, batch=4, seed=seed)
    names = torch.eye(4, dtype=torch.float64)
    own, sought = (torch.randint(4, (4, tokens), generator=torch.Generator().manual_seed(seed + i)) for i in (1, 2))
    x.hidden[..., :4], x.hidden[..., 4:] = names[own], names[sought]
    x.k[:, 0], x.q[:] = 4 * names[own], 4 * names[sought][:, None]
    return x, own[:, None] == sought[:, :, None]


def test_the_warm_up_teaches_the_indexer_where_the_teacher_looks():
    dsa = build(keep=8, sinks=1, window=2)
    x, alike = planted(48, seed=3)

    def share() -> float:
        """Of the tokens that a late query reads beyond the first and the last, those that it looks for."""
        index = dsa.index_key(x.hidden, 0)
        far = dsa.chosen(x.hidden[:, 40:], index)
        far[..., 0] = False
        for i in range(8):
            far[:, i, 39 + i :] = False
        return float((far & alike[:, 40:]).sum() / far.sum())

    before = share()
    with torch.no_grad():
        dsa.fit(planted(48, seed=7)[0])
    assert before < 0.5
    assert share() > 0.95
    assert not any(t.requires_grad for t in dsa.buffers())


def test_the_warm_up_is_the_same_each_time_and_leaves_the_random_state():
    states, x = [], inputs(30, batch=2)
    for _ in range(2):
        dsa = build(keep=8, warmup=3)
        torch.manual_seed(len(states))
        before = torch.random.get_rng_state()
        dsa.fit(x)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(dsa.state_dict())
    assert states[0].keys() == {"query", "key", "weight", "bias"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_without_a_warm_up_or_anything_to_choose_the_indexer_stays_as_drawn():
    for options, tokens in (({"warmup": 0}, 20), ({"warmup": 4, "window": 20}, 20)):
        dsa = build(keep=50, **options)
        drawn = {name: t.clone() for name, t in dsa.state_dict().items()}
        dsa.fit(inputs(tokens))
        assert all(torch.equal(t, drawn[name]) for name, t in dsa.state_dict().items())


def test_what_the_indexer_is_warmed_up_by_is_the_cross_entropy_of_the_heads_mean_attention():
    dsa, x = build(keep=9, sinks=1, window=2), inputs(12, batch=2)
    (k,), expected = x.k.unbind(1), []
    index = dsa.scores(x.hidden, dsa.index_key(x.hidden, 0))
    for b in range(2):
        for t in range(5, 12):
            weights = torch.stack([(0.5 * k[b, : t + 1] @ x.q[b, h, t]).softmax(0) for h in range(2)]).mean(0)
            among = slice(1, t - 1)
            expected.append(-(weights[among] * index[b, t, among].log_softmax(0)).sum())
    torch.testing.assert_close(dsa._cross_entropy(x.q[:, :, 5:], x.k, x.hidden), torch.stack(expected).mean())


def test_with_rotary_positions_the_indexer_sees_distances_and_not_places():
    """Tokens that are alike differ by where they stand, and a common shift does not show."""
    dsa = build(replace(GEOMETRY, rotary=True), keep=5)
    hidden = inputs(1).hidden.expand(1, 12, 8)
    scores = dsa.scores(hidden, dsa.index_key(hidden, 0))[0]
    for distance in range(12):
        torch.testing.assert_close(scores.diagonal(-distance), scores[distance, 0].expand(12 - distance))
    assert scores[11].std() > 1e-3
    assert build(keep=5).scores(hidden, build(keep=5).index_key(hidden, 0))[0, 11].std() < 1e-12


def test_with_rotary_positions_it_streams_as_its_reference():
    dsa, x = build(replace(GEOMETRY, rotary=True), keep=6, sinks=1, window=2), inputs(40, batch=2)
    whole = dsa.reference(x)
    torch.testing.assert_close(dsa(x)[0], whole)
    outs, state = [], None
    for start, stop in ((0, 13), (13, 30), *((t, t + 1) for t in range(30, 40))):
        out, state = dsa(x.slice(start, stop), state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole)


def test_the_state_is_softmaxs_and_the_indexers_keys():
    dsa, x = DSA(GEOMETRY, DSA.Options()), inputs(100).map(lambda t, _: t.float())
    _, state = dsa(x)
    softmax = Softmax(GEOMETRY, Softmax.Options()).state_bytes(1, 100, torch.float32)
    assert measured_bytes(state) == dsa.state_bytes(1, 100, torch.float32) == softmax + 100 * 64 * 4


def test_without_hidden_states_it_refuses():
    bare, dsa = replace(inputs(5), hidden=None), build(keep=2)
    for call in (dsa, dsa.fit, dsa.reference):
        with pytest.raises(ValueError, match="dsa needs the layer's hidden states for its indexer, there are none"):
            call(bare)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep": 0}, "keep"),
        ({"index_heads": 0}, "index_heads"),
        ({"index_dim": 0}, "index_dim"),
        ({"topk": 4}, "topk"),
        ({"warmup": -1}, "warmup"),
        ({"keep": 8}, "keep: 8 are fewer than sinks 4 and window 32"),
        ({"branches": "window", "sinks": 0, "window": 0}, "branches: window"),
        ({"index_dim": 5}, "index_dim: 5 is odd"),
    ],
)
def test_bad_options_are_refused(options: dict, named: str):
    with pytest.raises(ValueError, match=named):
        DSA(replace(GEOMETRY, rotary=True), DSA.Options(**options))


def test_where_the_indexer_reads_single_tokens_it_finds_what_blocks_miss():
    """Of as many tokens read: sought ones lie apart, and a block brings its neighbours."""
    x, _ = planted(48, seed=3)
    dsa = build(keep=16, sinks=1, window=2)
    with torch.no_grad():
        dsa.fit(planted(48, seed=7)[0])
    softmax = Softmax(GEOMETRY, Softmax.Options())(x)[0]
    errors = [(m(x)[0] - softmax)[:, :, 24:].norm() for m in (dsa, Moba(GEOMETRY, Moba.Options(block=4, selected=3)))]
    assert errors[0] < 0.5 * errors[1]
