"""Routing by clusters, made causal: each query reads a few clusters of the keys, and a local window.

Every key belongs to the cluster of the nearest centroid, every query picks p clusters, by frozen maps of its own head:

    cluster(k_s) = argmin_c |k_s - mu_c|     picks(q_t) = the p clusters c of the largest  w_c . q_t + b_c

Query t attends, in one softmax, to the tokens t - window < s <= t, to the first f (the sinks, none by default), and, of
each cluster it picks, to the last m tokens f <= s <= t - window whose key is in it. The sets have no token in common.
Ties go to the first clusters.

Source: Roy et al. 2021 (Routing Transformer), where p = 1 and each cluster takes its top-k tokens over the sequence,
later ones included; here nothing depends on later tokens. At the same p m, which is the work, and the same clusters m,
which is the state, more and smaller clusters leave the query more of a choice. Approximated: tokens in other clusters,
and those that are no longer among the last m, have no weight.

Start: the scores are the teacher's own, and `fit` sets the maps. mu comes by k-means on the teacher's keys, per
key/value head; w and b by ridge regression, per query head, of the attention that the teacher gives to the last m
members of each cluster. (The nearest centroids in the queries' own space, or mu . q, find clusters that get much less
of it.) Before `fit`, mu and w are random.

Work is sub-quadratic: keys are sorted by cluster, so that what a query reads there is one range (`ops/softmax/ranges`).
"""

from itertools import product
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.mechanisms.shared.members import Members
from attnopt.ops.kmeans import k_means, nearest
from attnopt.ops.output_pieces import Pieces
from attnopt.ops.softmax.dense import ages, dense_attention, only
from attnopt.ops.softmax.ranges import range_attention
from attnopt.ops.softmax.spans import Part, merge, zero_empty
from attnopt.ops.softmax.step import attend_memory, attend_rows, reads_memory
from attnopt.ops.softmax.window import window_attention
from attnopt.ops.tensors import MASKED, repeat_heads, wide
from attnopt.ops.window_state import WindowState, append_tokens

EXTEND_SPAN = 2048
"""Longer sequences are taken in spans of this many tokens, so that what they need in between stays small."""
FIT_TOKENS = 512
"""Tokens of each sequence that `fit` looks at."""
SHARE = 0.51
"""Of a budget of state, what the clusters take: as many tokens as the window, and their counts."""
RIDGE = 1e-3
"""The ridge of the regression, relative to the mean square of a query's entries."""


class Routed(NamedTuple):
    """The state.

    Attributes:
        kept: the last n < window tokens, and the sinks.
        members: of the tokens between.
    """

    kept: WindowState
    members: Members


class Routing(Mechanism):
    source = "https://arxiv.org/abs/2003.05997"
    paper = "Roy et al. 2021"
    growth = "window"
    parallel_up_to = 512
    cost = "(window + f + p m + clusters) D"
    compiles = ("step",)

    class Options(MechanismOptions):
        window: Annotated[int, Field(ge=1)] = 16
        """A token attends to itself and to the window - 1 tokens before it."""
        sinks: Annotated[int, Field(ge=0)] = 0
        """f: and to the first f tokens of the sequence, which are in no cluster."""
        clusters: Annotated[int, Field(ge=1)] = 4
        """Clusters of keys, per key/value head."""
        members: Annotated[int, Field(ge=1)] = 16
        """m: of a cluster that it picks, a token attends to the last m members before the window."""
        picks: Annotated[int, Field(ge=1)] = 1
        """p: clusters that a token picks; half of them, where a budget chooses both and this is left out."""
        branches: Literal["both", "window", "far"] = "both"
        """Only the window and the sinks or only the cluster (far; zero where it is empty), to see what each does."""

    centroids: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        clusters, dim = options.clusters, geometry.head_dim
        if options.picks > clusters:
            raise ValueError(f"picks: {options.picks} is more than there are clusters, {clusters}")
        self.register_buffer("centroids", torch.randn(geometry.kv_heads, clusters, dim))
        self.register_buffer("weight", torch.randn(geometry.heads, clusters, dim))
        self.register_buffer("bias", torch.zeros(geometry.heads, clusters))
        self.normalised = options.branches != "far"

    def extend(self, x: Inputs, state: Routed | None = None) -> tuple[Tensor, State]:
        pieces = Pieces(x.q.shape[2])
        for q, k, v in zip(
            x.q.split(EXTEND_SPAN, 2), x.k.split(EXTEND_SPAN, 2), x.v.split(EXTEND_SPAN, 2), strict=True
        ):
            out, state = self._extend(Inputs(q, k, v), state)
            pieces.add(out)
        return pieces.joined()[0], state

    def _extend(self, x: Inputs, state: Routed | None) -> tuple[Tensor, Routed]:
        """`extend` of up to EXTEND_SPAN tokens."""
        clusters = self.options.clusters if self.options.branches != "window" else 0
        before, members = state or (None, Members.none(x.k, clusters, self.options.members))
        kept, window = append_tokens(before, x.k, x.v, self.options.sinks), self.options.window
        parts: list[Part] = []
        if self.options.branches == "both" and reads_memory(x.q, kept):
            out, members = self._step(x.q, kept, members)
            return out, Routed(kept.cut(window - 1), members)
        if self.options.branches != "far":
            parts.append(window_attention(x.q, kept, window, self.geometry.scaling))
        if self.options.branches != "window":
            far, members = self._far(x.q, kept, members)
            parts += far
        out = zero_empty(*merge(*parts)).to(x.q.dtype)
        return out, Routed(kept.cut(window - 1), members)

    def _step(self, q: Tensor, kept: WindowState, old: Members) -> tuple[Tensor, Members]:
        """One token's output (B, H, 1, D), and the members after it: all of them are read where they are, masked.

        Args:
            q: (B, H, 1, D).
            kept: the window, whose first token joins the members, and the query's own.
            old: the members before it.
        """
        near = attend_memory(q, kept, self.options.window, self.geometry.scaling)
        joins = kept.seen >= self.options.window + self.options.sinks
        out, *after = self.step(joins, q, kept.k[:, :, :1].contiguous(), kept.v[:, :, :1].contiguous(), *near, *old)
        return out, Members(*after)

    def step(
        self, joins: bool, q: Tensor, k: Tensor, v: Tensor, near: Tensor, near_log: Tensor, *old: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`_step` of tensors, to be compiled.

        Args:
            joins: whether the token k, v (B, G, 1, D) joins the members after this step.
            q: (B, H, 1, D).
            near, near_log: (B, H, 1, D) and (B, H, 1), the window's part.
            old: the three tensors of `Members`.
        """
        members = Members(*old)
        groups, picks = k.shape[1], self.picks(q)[:, :, 0]
        unread = torch.ones(*picks.shape[:2], self.options.clusters, dtype=torch.bool, device=q.device)
        unread = unread.scatter_(2, picks, False).unflatten(1, (groups, -1))[..., None] | members.empty()[:, :, None]
        mask = torch.zeros(unread.shape, dtype=q.dtype, device=q.device).masked_fill_(unread, MASKED).flatten(3)
        far = attend_rows(q, members.k, members.v, mask, self.geometry.scaling)
        return merge((near, near_log), far)[0], *(members.joined(self.cluster(k), k, v) if joins else members)

    def parallel(self, x: Inputs) -> Tensor:
        if self.options.branches != "both":
            return self.extend(x)[0]
        age = ages(x.q.shape[2], x.q)
        cluster = repeat_heads(self.cluster(x.k), x.q.shape[1])[:, :, None]
        first = torch.arange(len(age), device=age.device) < self.options.sinks
        seen, behind = (age >= 0) & ((age < self.options.window) | first), (age >= self.options.window) & ~first
        for picked in self.picks(x.q).unbind(-1):
            seen = seen | self._last((cluster == picked[..., None]) & behind)
        return dense_attention(x.q, x.k, x.v, only(seen, x.q), self.geometry.scaling)

    def _far(self, q: Tensor, kept: WindowState, old: Members) -> tuple[list[Part], Members]:
        """Attention to every picked cluster, and the members after these tokens.

        Members and tokens are sorted by cluster, and then by position: what a query reads of a cluster is one range of
        the list. Each of a query's p picks is treated as a head of its own.

        Args:
            q: (B, H, T, D).
            kept: the tokens within the window of the first query and the new ones, not cut yet.
            old: the members before them.

        Returns: a part, out (B, H, T, D) and lse (B, H, T), for each pick; the new members.
        """
        k, v = kept.k, kept.v
        (heads, tokens, dim), groups, window = q.shape[1:], k.shape[1], self.options.window
        k_all, v_all = torch.cat([old.k, k], 2), torch.cat([old.v, v], 2)
        size, device = k_all.shape[2], k.device
        sinks = torch.arange(kept.seen - k.shape[2], kept.seen, device=device) < self.options.sinks
        cluster = torch.cat([old.clusters(), self.cluster(k).masked_fill(sinks, self.options.clusters)], 2)
        order = cluster.argsort(dim=2, stable=True)
        code = cluster.gather(2, order) * size + order
        k_all, v_all = (t.gather(2, order[..., None].expand_as(t)) for t in (k_all, v_all))

        picks, q = self.picks(q).mT.flatten(1, 2), q.repeat_interleave(self.options.picks, 1)
        own = torch.arange(size - tokens, size, device=device).repeat(q.shape[1] // groups)
        start, stop = self._ranges(code, picks.unflatten(1, (groups, -1)).flatten(2), own - window + 1)
        rows = (q.reshape(-1, start.shape[2], dim), k_all.flatten(0, 1), v_all.flatten(0, 1))
        ends = (start.flatten(0, 1), stop.flatten(0, 1))
        out, lse = range_attention(*rows, *ends, self.options.members, self.geometry.scaling)

        names = torch.arange(self.options.clusters, device=device)
        before = torch.full_like(names, size - window + 1)
        members = self._members(k_all, v_all, *self._ranges(code, names.expand(*k.shape[:2], -1), before))
        outs, logs = (
            out.view(-1, heads, self.options.picks, tokens, dim),
            lse.view(-1, heads, self.options.picks, tokens),
        )
        return list(zip(outs.unbind(2), logs.unbind(2), strict=True)), members

    def _ranges(self, code: Tensor, cluster: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the sorted list the last m members of clusters lie, of those that come before some token.

        Args:
            code: (B, G, S), sorted: cluster times S, plus the token's position in the unsorted list.
            cluster: (B, G, n), the clusters that are asked for.
            before: (n,), for each the position before which the members have to come.

        Returns: start and stop, (B, G, n) each; equal where there is no member.
        """
        size = code.shape[2]
        first = torch.searchsorted(code, cluster * size)
        stop = torch.searchsorted(code, cluster * size + before.clamp(min=0))
        return torch.maximum(first, stop - self.options.members), stop

    def _members(self, k: Tensor, v: Tensor, start: Tensor, stop: Tensor) -> Members:
        """The members in the ranges start:stop (B, G, clusters) of the sorted lists k and v (B, G, S, D)."""
        index = stop[..., None] + torch.arange(-self.options.members, 0, device=k.device)
        empty = (index < start[..., None]).flatten(2)[..., None]
        index = index.clamp(min=0).flatten(2)[..., None].expand(-1, -1, -1, k.shape[3])
        return Members(k.gather(2, index).masked_fill(empty, 0), v.gather(2, index).masked_fill(empty, 0), stop - start)

    def cluster(self, k: Tensor) -> Tensor:
        """The cluster (B, G, T) of each key (B, G, T, D)."""
        k, centroids = wide(k, self.centroids)
        return nearest(k, centroids.to(k))

    def picks(self, q: Tensor) -> Tensor:
        """The clusters (B, H, T, p) that each query (B, H, T, D) reads, the best first."""
        q, weight, bias = wide(q, self.weight, self.bias)
        scores = q @ weight.to(q).mT + bias.to(q)[:, None]
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.options.picks]

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        q, k = x.q[:, :, :FIT_TOKENS].double(), x.k[:, :, :FIT_TOKENS].double()
        inner = k[:, :, self.options.sinks :] if k.shape[2] > self.options.sinks else k
        self.centroids.copy_(
            torch.stack([k_means(points, self.options.clusters) for points in inner.transpose(0, 1).flatten(1, 2)])
        )
        if q.shape[2] > self.options.window:
            reached = torch.cat([self._reached(*pair) for pair in zip(q.split(1), k.split(1), strict=True)])
            q = torch.cat([q, torch.ones_like(q[..., :1])], 3)[:, :, self.options.window :]
            q, reached = (t.transpose(0, 1).flatten(1, 2) for t in (q, reached))
            ridge = RIDGE * q.square().mean() * q.shape[1] * torch.eye(q.shape[2], dtype=q.dtype, device=q.device)
            solution = torch.linalg.solve(q.mT @ q + ridge, q.mT @ reached).mT
            self.weight.copy_(solution[..., :-1])
            self.bias.copy_(solution[..., -1])

    def _reached(self, q: Tensor, k: Tensor) -> Tensor:
        """The attention that softmax gives to the last m members of each cluster, (B, H, T - window, clusters).

        For each query from the `window`-th on; q (B, H, T, D), k (B, G, T, D).
        """
        (heads, tokens), window = q.shape[1:3], self.options.window
        cluster, k = repeat_heads(self.cluster(k), heads), repeat_heads(k, heads)
        index = torch.arange(tokens, device=q.device)
        distance, inner = index[:, None] - index, index >= self.options.sinks
        p = (q @ k.mT * self.geometry.scaling).masked_fill(distance < 0, -torch.inf).softmax(-1)[:, :, window:]
        reached = []
        for c in range(self.options.clusters):
            member = (cluster == c)[:, :, None] & ((distance >= window) & inner)[window:]
            reached.append(p.masked_fill(~self._last(member), 0).sum(-1))
        return torch.stack(reached, -1)

    def _last(self, member: Tensor) -> Tensor:
        """Of the tokens that are members, (..., T) bool, only the last m."""
        return member & (member.flip(-1).cumsum(-1).flip(-1) <= self.options.members)

    def reference(self, x: Inputs) -> Tensor:
        heads, tokens = x.q.shape[1:3]
        k, v = repeat_heads(x.k, heads), repeat_heads(x.v, heads)
        cluster, picks, outs = repeat_heads(self.cluster(x.k), heads).tolist(), self.picks(x.q), []
        for t in range(tokens):
            seen = torch.zeros(*x.q.shape[:2], t + 1, dtype=torch.bool, device=x.q.device)
            for row, head in product(range(len(seen)), range(heads)):
                seen[row, head, self._seen(t, cluster[row][head], picks[row, head, t].tolist())] = True
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1) if seen.any() else scores * 0
            outs.append(torch.einsum("bhs,bhsd->bhd", weights.nan_to_num(), v[:, :, : t + 1]))
        return torch.stack(outs, dim=2)

    def _seen(self, t: int, cluster: list[int], picks: list[int]) -> list[int]:
        """The positions that query t attends, from the cluster of each of T keys and the p clusters that it picks."""
        old = max(0, t + 1 - self.options.window)
        sinks = min(self.options.sinks, old)
        seen = [*range(sinks), *range(old, t + 1)] if self.options.branches != "far" else []
        for pick in picks if self.options.branches != "window" else ():
            seen += [s for s in range(sinks, old) if cluster[s] == pick][-self.options.members :]
        return seen

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        clusters = self.options.clusters if self.options.branches != "window" else 0
        tokens = min(length, self.options.window - 1 + self.options.sinks)
        tokens += clusters * self.options.members
        counts = clusters * torch.long.itemsize
        return batch * self.geometry.kv_heads * (2 * tokens * self.geometry.head_dim * dtype.itemsize + counts)

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        """As many clusters as they have members, half of them picked; one number alone where the others are set."""
        window, given = Size(("window",)), options.model_fields_set
        if options.branches == "window":
            return (window,)
        if "clusters" in given:
            return Size(("members",), SHARE), window
        least = options.picks if "picks" in given else 1
        numbers = {"clusters": lambda n: n, "members": lambda n: n, "picks": lambda n: max(1, n // 2)}
        free = {name: f for name, f in numbers.items() if name not in given}
        return Size(tuple(free), SHARE, lambda n: [f(n) for f in free.values()], least), window

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(clusters=1, members=length)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "picks": cls.Options(window=3, clusters=4, members=3, picks=2),
            "sinks": cls.Options(window=3, sinks=2, clusters=4, members=3, picks=2),
            "far": cls.Options(window=3, clusters=3, members=5, picks=2, branches="far", sinks=4),
            "window": cls.Options(window=1, branches="window"),
        }
