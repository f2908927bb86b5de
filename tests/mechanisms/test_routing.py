import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms import routing as module
from attnopt.mechanisms.routing import Routing

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=8, hidden=16, scaling=0.3)


def build(**options) -> Routing:
    return Routing(GEOMETRY, Routing.Options(**options)).double()


def inputs(tokens: int, seed: int = 0, batch: int = 2) -> Inputs:
    torch.manual_seed(seed)
    return Inputs(*(torch.randn(batch, h, tokens, 8, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1)))


def two_topics(tokens: int) -> Inputs:
    """Keys of two directions in turn, each query looking for its own token's one."""
    topic = torch.eye(8, dtype=torch.float64)[torch.arange(tokens) % 2] * 10
    return Inputs(topic.expand(1, 2, -1, -1), topic.expand(1, 1, -1, -1), torch.randn(1, 1, tokens, 8).double())


def test_fitted_it_reads_the_cluster_that_softmax_reads():
    routing, x = build(window=2, clusters=2, members=3), two_topics(40)
    routing.fit(x)
    assert torch.equal(routing.picks(x.q)[:, :1, :, 0], routing.cluster(x.k))
    v = x.v.clone().requires_grad_()
    out, _ = routing(Inputs(x.q, x.k, v))
    (grad,) = torch.autograd.grad(out[:, :, 30].sum(), v)
    assert grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [24, 26, 28, 29, 30]


def test_fit_improves_on_the_random_start():
    torch.manual_seed(3)
    routing, mix = build(window=4, clusters=4, members=8), torch.randn(8, 8, dtype=torch.float64)
    x = inputs(120, batch=4)
    x = Inputs(x.k.detach().expand(-1, 2, -1, -1) @ mix * 2, x.k.detach(), x.v.detach())
    softmax = torch.nn.functional.scaled_dot_product_attention(
        x.q, x.k, x.v, is_causal=True, scale=0.3, enable_gqa=True
    )
    before = (routing(x)[0] - softmax).norm()
    routing.fit(x)
    assert (routing(x)[0] - softmax).norm() < 0.9 * before


def test_fit_counts_the_last_members_only():
    routing, x = build(window=3, clusters=2, members=2), inputs(20, batch=1)
    routing.fit(x)
    reached = routing._reached(x.q, x.k)
    cluster, scores = routing.cluster(x.k)[0, 0], x.q[0, 1] @ x.k[0, 0].mT * 0.3
    for t in (3, 9, 19):
        p = scores[t, : t + 1].softmax(-1)
        for c in range(2):
            members = [s for s in range(t - 2) if cluster[s] == c][-2:]
            torch.testing.assert_close(reached[0, 1, t - 3, c], p[members].sum())


def test_queries_that_say_nothing_pick_the_heaviest_cluster():
    routing, x = build(window=2, clusters=2, members=8), inputs(30)
    k = torch.eye(8, dtype=torch.float64)[(torch.arange(30) > 2).long()].expand(2, 1, -1, -1)
    routing.fit(Inputs(x.q.detach() * 0, k, x.v))
    assert torch.equal(routing.picks(x.q * 0)[..., 0], routing.cluster(k)[:, :, -1:].expand(-1, 2, 30))
    assert routing.cluster(k)[0, 0, -1] == 1


def test_fit_is_a_function_of_the_data_alone():
    one, two = build(), build()
    for routing in (one, two):
        routing.fit(inputs(50))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_fit_to_sequences_within_the_window():
    routing, x = build(window=16), inputs(9)
    routing.fit(x)
    torch.testing.assert_close(routing(x)[0], routing.reference(x))


def test_queries_read_the_last_members_of_every_cluster_they_pick():
    routing, x = build(window=2, clusters=4, members=2, picks=3), inputs(40)
    (grad,) = torch.autograd.grad(routing(x)[0][0, 1, 30].sum(), x.v)
    cluster = routing.cluster(x.k)[0, 0].tolist()
    picks = (x.q[0, 1, 30] @ routing.weight[1].mT).topk(3).indices.tolist()
    expected = {29, 30}.union(*([s for s in range(29) if cluster[s] == pick][-2:] for pick in picks))
    assert set(grad[0, 0].any(-1).nonzero()[:, 0].tolist()) == expected


def test_with_all_clusters_picked_it_reads_their_last_members_whatever_the_query():
    routing, x = build(window=2, clusters=3, members=4, picks=3), inputs(40)
    (grad,) = torch.autograd.grad(routing(x)[0][0, :, 39].sum(), x.v)
    assert len(grad[0, 0].any(-1).nonzero()) == 2 + 3 * 4


@pytest.mark.parametrize("picks", [1, 2])
def test_state_is_bounded_and_long_streams_agree(picks: int):
    routing, x, state = build(window=4, clusters=3, members=5, picks=picks), inputs(150), None
    whole, _ = routing(x)
    outs, sizes = [], set()
    for t in range(150):
        out, state = routing(x.slice(t, t + 1), state)
        outs.append(out)
        sizes.add(state.members.k.shape[2] + state.kept.k.shape[2])
    torch.testing.assert_close(torch.cat(outs, 2), whole)
    torch.testing.assert_close(whole, routing.reference(x))
    assert max(sizes) == 3 * 5 + 3


def test_long_sequences_in_spans_are_the_same(monkeypatch):
    routing, x = build(window=5, members=4), inputs(60)
    whole, state = routing(x)
    monkeypatch.setattr(module, "EXTEND_SPAN", 7)
    in_spans, after = routing(x)
    torch.testing.assert_close(in_spans, whole)
    torch.testing.assert_close(after.members, state.members)


def test_branches_make_up_the_whole():
    x = inputs(60)
    seen = {}
    for branches in ("both", "window", "far"):
        torch.manual_seed(1)
        (grad,) = torch.autograd.grad(build(branches=branches, window=5, members=4)(x)[0][:, :, 50].sum(), x.v)
        seen[branches] = set(grad[0, 0].any(-1).nonzero()[:, 0].tolist())
    assert seen["window"] == set(range(46, 51))
    assert seen["far"]
    assert not seen["far"] & seen["window"]
    assert seen["both"] == seen["far"] | seen["window"]


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"clusters": 0}, {"members": 0}, {"picks": 0}, {"branches": "near"}]
)
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        Routing.Options(**options)


def test_more_picks_than_clusters_are_refused():
    with pytest.raises(ValueError, match="picks: 3 is more than there are clusters, 2"):
        build(clusters=2, picks=3)


def test_sinks_are_read_by_all_and_are_in_no_cluster():
    routing, x = build(window=3, sinks=2, clusters=1, members=4), inputs(40)
    out, state = routing(x)
    (grad,) = torch.autograd.grad(out[:, :, 30].sum(), x.v)
    assert grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [0, 1, 24, 25, 26, 27, 28, 29, 30]
    assert state.kept.first_k.shape[2] == 2
    (grad,) = torch.autograd.grad(routing(x)[0][:, :, 5].sum(), x.v)
    assert grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    routing.fit(x)
    torch.testing.assert_close(routing(x)[0], routing.reference(x))


def test_fit_counts_no_sink_among_the_members():
    routing, x = build(window=3, sinks=2, clusters=1, members=30), inputs(20, batch=1)
    p = (x.q[0, 1, 9] @ x.k[0, 0, :10].mT * 0.3).softmax(-1)
    torch.testing.assert_close(routing._reached(x.q, x.k)[0, 1, 6, 0], p[2:7].sum())
