"""DeepSeek sparse attention: every head of a query reads the few tokens that a small learned indexer likes best.

The lightning indexer reads the layer's input h. It has J queries and one key of d numbers, and scores s <= t by

    I_ts = sum_j w_tj ReLU(q^I_tj . k^I_s) / sqrt(J d)      q^I, k^I linear in h, w affine

With rotary positions, which h does not show, q^I and k^I are rotated too. Query t attends, in one softmax over its own
scores, to at most k tokens, the same for all heads: the first f and the last w, its own included, and of the others
those with the largest I, the earliest where several are equal.

Source: DeepSeek-AI 2025 (V3.2), where f = w = 0 and h gives q^I by way of the queries' latent. Approximated: all other
tokens have no weight. Start: `fit` warms the indexer up, drawn at random, by the cross-entropy of softmax I to the
teacher's attention, summed over heads, to the tokens between the first f and the last w. A query counts by how much it
looks at these.

The indexer then stays as it is. A choice has no gradient, and V3.2 goes on training the indexer by the KL on the tokens
that were read, which is a loss of each call: `Mechanism.penalty` is none. It would not be worth one: at the end of 100
steps of the bundled study the KL on validation blocks is 0.038 with the indexer as fitted, 0.049 with that loss, and
0.225 with a gradient straight through the choice, to I by way of the weights of what was read.

It buys time in decoding and no memory: a step reads d numbers of each token and k tokens in full, and the state is that
of softmax and d numbers a token more. On whole sequences scores are computed for all tokens and masked.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.spans import QUERY_SPAN, Part, attend, attend_heads, in_spans, zero_empty
from attnopt.ops.tensors import MASKED, own_copy, repeat_heads, wide

BASE = 10000.0
"""Of the indexer's rotary angles."""
LR = 0.01
"""The warm-up's first learning rate; it falls to zero in a line."""
SEQUENCES, QUERIES = 4, 64
"""What a step of the warm-up sees: so many sequences, and queries of each."""


class DSAState(NamedTuple):
    """All tokens so far.

    Attributes:
        k: (B, G, S, D) their keys.
        v: (B, G, S, D) their values.
        index_keys: (B, 1, S, d) the indexer's keys, in at least float32: rounded to fewer bits, tokens that are liked
            about equally would change places.
    """

    k: Tokens
    v: Tokens
    index_keys: Tokens


class DSA(Mechanism):
    source = "https://arxiv.org/abs/2512.02556"
    paper = "DeepSeek-AI 2025"
    growth = "linear"
    cost = "keep D + S index_heads index_dim / H"

    class Options(MechanismOptions):
        keep: Annotated[int, Field(ge=1)] = 64
        """k: tokens that each query reads, the first and the last ones included."""
        index_heads: Annotated[int, Field(ge=1)] = 2
        """J: queries of the indexer."""
        index_dim: Annotated[int, Field(ge=1)] = 64
        """d: numbers of each, and of the key that is kept of a token."""
        sinks: Annotated[int, Field(ge=0)] = 4
        """f: the first tokens are always read; 0 in the paper."""
        window: Annotated[int, Field(ge=0)] = 32
        """w: and so are the last ones, a query's own included; 0 in the paper."""
        warmup: Annotated[int, Field(ge=0)] = 300
        """Steps of the fit."""
        branches: Literal["both", "window", "far"] = "both"
        """Only the first and the last tokens (window), or only those that the indexer chooses (far; zero where there
        are none), to see what each does."""

    query: Tensor
    key: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        near, dim, heads = options.sinks + options.window, options.index_dim, options.index_heads
        if near > options.keep:
            raise ValueError(f"keep: {options.keep} are fewer than sinks {options.sinks} and window {options.window}")
        if options.branches == "window" and not near:
            raise ValueError("branches: window, where sinks and window are both 0, reads nothing")
        if geometry.rotary and dim % 2:
            raise ValueError(f"index_dim: {dim} is odd, and with rotary positions its numbers are turned in pairs")
        self.normalised = options.branches != "far"
        for name, width in {"query": heads * dim, "key": dim, "weight": heads}.items():
            self.register_buffer(name, torch.randn(geometry.hidden, width) * geometry.hidden**-0.5)
        self.weight *= 0.1
        self.register_buffer("bias", torch.ones(heads))

    def extend(self, x: Inputs, state: DSAState | None = None) -> tuple[Tensor, State]:
        """As `Mechanism.extend`. Raises ValueError where there are no hidden states."""
        seen = 0 if state is None else state.k.count
        hidden = self._hidden(x)
        index = self.index_key(hidden, seen)[:, None]
        if state is None:
            after = DSAState(Tokens(own_copy(x.k)), Tokens(own_copy(x.v)), Tokens(own_copy(index)))
        else:
            after = DSAState(state.k.append(x.k), state.v.append(x.v), state.index_keys.append(index))
        k, v = (x.k, x.v) if state is None else (after.k.tensor, after.v.tensor)
        run = self._step if x.q.shape[2] == 1 else self._attend
        return run(x.q, k, v, hidden, after.index_keys.tensor[:, 0]).to(x.q.dtype), after

    def _hidden(self, x: Inputs) -> Tensor:
        """The layer's input (B, T, C) in at least float32, without gradient."""
        if x.hidden is None:
            raise ValueError("dsa needs the layer's hidden states for its indexer, there are none")
        return wide(x.hidden)[0].detach()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, index: Tensor) -> Tensor:
        """The output (B, H, T, D) of queries q, whose own tokens are the last T of k and v (B, G, S, D).

        Args:
            hidden: (B, T, C), of the queries' tokens.
            index: (B, S, d), the indexer's keys of all.
        """
        q, k, v = wide(q, k, v)
        group, seen = (k.shape[1], q.shape[1] // k.shape[1]), k.shape[2] - q.shape[2]

        def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return q[:, :, start:stop], k[:, :, : seen + stop], v[:, :, : seen + stop]

        def attend_span(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> Part:
            read = self.chosen(hidden[:, start:stop], index[:, : seen + stop])[:, None]
            mask = torch.zeros_like(read, dtype=q.dtype).masked_fill_(~read, MASKED).repeat(1, 1, group[1], 1)
            out, lse = attend(q.unflatten(1, group).flatten(2, 3), k, v, mask, self.geometry.scaling)
            return out.reshape(q.shape), lse.reshape(q.shape[:3])

        return zero_empty(*in_spans(attend_span, cut, (q, k, v), q.shape[2], QUERY_SPAN // 4))

    def _step(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, index: Tensor) -> Tensor:
        """`_attend` of one query, for which only the tokens that are read are gathered; equally many in all rows."""
        read = self.chosen(hidden, index)[:, 0].nonzero()[:, 1].view(len(q), 1, -1, 1)
        if not read.shape[2]:
            return q * 0
        k, v = (t.take_along_dim(read, 2) for t in (k, v))
        return attend_heads(q, k, v, q.new_zeros(1, read.shape[2]), self.geometry.scaling)[0]

    @torch.no_grad()
    def chosen(self, hidden: Tensor, index: Tensor) -> Tensor:
        """Which tokens each query reads, (B, T, S) bool.

        Args:
            hidden: (B, T, C), of the queries' tokens, which are the last T of the S.
            index: (B, S, d), the indexer's keys, in the precision of hidden.
        """
        o, tokens, count = self.options, hidden.shape[1], index.shape[1]
        key, position = (torch.arange(n, count, device=index.device) for n in (0, count - tokens))
        later = key > position[:, None]
        near = ((key < o.sinks) | (position[:, None] - key < o.window)) & ~later
        if o.branches == "window":
            return near.expand(len(index), -1, -1)
        scores = self.scores(hidden, index).masked_fill_(near, torch.inf).masked_fill_(later, -torch.inf)
        least = scores.topk(min(o.keep, count)).values[..., -1:]
        more, equal = scores > least, scores == least
        read = more | (equal & (equal.cumsum(-1) <= o.keep - more.sum(-1, keepdim=True)) & ~later)
        return read & ~near if o.branches == "far" else read

    def scores(self, hidden: Tensor, index: Tensor) -> Tensor:
        """I (B, T, S) of the tokens (B, T, C), the last T of the S whose keys are index (B, S, d), later ones too."""
        o, (batch, tokens) = self.options, hidden.shape[:2]
        q = (hidden @ self.query.to(hidden.dtype)).view(batch, tokens, o.index_heads, -1)
        q = self._turned(q.transpose(1, 2), index.shape[1] - tokens).transpose(1, 2).flatten(1, 2)
        w = (hidden @ self.weight.to(hidden.dtype) + self.bias.to(hidden.dtype)) * (o.index_heads * o.index_dim) ** -0.5
        liked = (q @ index.mT).relu().unflatten(1, (tokens, -1))
        return torch.einsum("btj,btjs->bts", w, liked)

    def index_key(self, hidden: Tensor, seen: int) -> Tensor:
        """k^I (B, T, d) of tokens (B, T, C), before which there were `seen`."""
        return self._turned(hidden @ self.key.to(hidden.dtype), seen)

    def _turned(self, x: Tensor, seen: int) -> Tensor:
        """x (..., T, d) turned by the positions seen, seen + 1, ..., where q and k come so."""
        if not self.geometry.rotary:
            return x
        half = x.shape[-1] // 2
        rates = BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        angle = torch.arange(seen, seen + x.shape[-2], device=x.device)[:, None] * rates
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        one, other = x[..., :half], x[..., half:]
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

    def fit(self, x: Inputs) -> None:
        """As `Mechanism.fit`: the warm-up. Raises ValueError where there are no hidden states."""
        learned = (self.query, self.key, self.weight, self.bias)
        optimizer = torch.optim.Adam(learned, lr=LR)
        hidden, generator = self._hidden(x), torch.Generator().manual_seed(0)
        count, tokens = min(QUERIES, x.q.shape[2]), x.q.shape[2]
        with torch.enable_grad():
            for step in range(self.options.warmup):
                rows = torch.randperm(len(hidden), generator=generator)[:SEQUENCES].to(hidden.device)
                stop = int(torch.randint(count, tokens + 1, (), generator=generator))
                for tensor in learned:
                    tensor.requires_grad_()
                loss = self._cross_entropy(x.q[rows, :, stop - count : stop], x.k[rows, :, :stop], hidden[rows, :stop])
                loss.backward()
                optimizer.param_groups[0]["lr"] = LR * (1 - step / self.options.warmup)
                optimizer.step()
                optimizer.zero_grad()
        for tensor in learned:
            tensor.requires_grad_(False)

    def _cross_entropy(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        """Of softmax I to the heads' mean attention, over the tokens that the indexer chooses among; mean over queries.

        Args:
            q: (B, H, n, D), the last n of the S tokens.
            k: (B, G, S, D). hidden: (B, S, C).
        """
        q, k = (t.detach() for t in wide(q, k))
        count, tokens = q.shape[2], k.shape[2]
        key, position = (torch.arange(n, tokens, device=q.device) for n in (0, tokens - count))
        distance = position[:, None] - key
        chosen = (distance >= self.options.window) & (distance >= 0) & (key >= self.options.sinks)
        scores = q @ repeat_heads(k, q.shape[1]).mT * self.geometry.scaling
        weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1).mean(1)
        index = self.scores(hidden[:, tokens - count :], self.index_key(hidden, 0)).masked_fill(~chosen, MASKED)
        return -(weights * index.log_softmax(-1) * chosen).sum(-1).mean()

    def reference(self, x: Inputs) -> Tensor:
        heads, outs = x.q.shape[1], []
        k, v, hidden = repeat_heads(x.k, heads), repeat_heads(x.v, heads), self._hidden(x)
        for t in range(x.q.shape[2]):
            read = torch.stack([self._read_by(t, row[: t + 1]) for row in hidden])
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            weights = scores.masked_fill(~read[:, None], -torch.inf).softmax(-1) if read.any() else scores * 0
            outs.append(torch.einsum("bhs,bhsd->bhd", weights, v[:, :, : t + 1]))
        return torch.stack(outs, dim=2)

    def _read_by(self, t: int, hidden: Tensor) -> Tensor:
        """Which tokens query t reads, (t + 1,) bool, from the hidden states (t + 1, C) of one sequence."""
        o = self.options
        near = {s for s in range(t + 1) if s < o.sinks or t - s < o.window}
        w = hidden[t] @ self.weight + self.bias
        queries = self._turned((hidden[t] @ self.query).view(o.index_heads, 1, -1), t)
        liked = []
        for s in range(t + 1):
            key = self._turned((hidden[s] @ self.key)[None], s)[0]
            liked.append(float(sum(w[j] * (queries[j, 0] @ key).relu() for j in range(o.index_heads))))
        others = sorted((s for s in range(t + 1) if s not in near), key=lambda s: -liked[s])[: o.keep - len(near)]
        read = {"both": near | set(others), "window": near, "far": set(others)}[o.branches]
        return torch.tensor([s in read for s in range(t + 1)])

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        pair = 2 * self.geometry.kv_heads * self.geometry.head_dim * dtype.itemsize
        return batch * length * (pair + self.options.index_dim * max(dtype.itemsize, 4))

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(keep=length, sinks=0, window=0)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "as published": cls.Options(keep=9, sinks=0, window=0, index_heads=3, index_dim=5, warmup=5),
            "small": cls.Options(keep=8, sinks=1, window=3, index_heads=2, index_dim=4, warmup=5),
            "window": cls.Options(keep=9, sinks=2, window=5, warmup=5, branches="window"),
            "far": cls.Options(keep=12, sinks=2, window=5, warmup=5, branches="far"),
        }
