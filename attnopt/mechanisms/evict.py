"""Softmax over a fixed number of tokens, the least useful of which are evicted while the sequence goes on.

Query t attends, in one softmax, to the tokens that are kept and to itself. After every b-th token, t = 0, b, 2 b, ...,
each key/value head is cut to M - b + 1 tokens where it has more, so that it never keeps more than M from one token to
the next. The first f tokens and the last w stay; of those between, the ones with the highest score. The earliest go
where scores are equal.

    score: keydiff   - cos(k_s, m),  m the mean of k / |k| over the kept keys: keys unlike the others stay
    score: tova      the attention weight that token t gives to s, summed over the query heads of the group
    score: h2o       all the attention that s got since it came, its own included, summed likewise

A score reads what came before it and nothing else, so that a token's output depends on no later one. (Published as
presses of a whole context, KeyDiff is scored on all of it at once, and H2O's sums are over all its queries.)

Source: Park et al. 2025 (KeyDiff); TOVA, Oren et al. 2024, arXiv:2401.06104; H2O, Zhang et al. 2023, arXiv:2306.14048.
Approximated: what was evicted has no weight, for good. Start: the scores are the teacher's own, there is nothing to fit
and nothing to train. Choices have no gradient; what is kept has that of softmax.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.ops.growing import Tokens
from attnopt.ops.output_pieces import Pieces
from attnopt.ops.tensors import MASKED, own_copy, wide

SPAN = 128
"""Queries that are taken together where nothing is evicted between them."""


class Kept(NamedTuple):
    """The state; of each key/value head its own n tokens, in the order in which they came.

    Attributes:
        k: (B, G, n, D) their keys.
        v: (B, G, n, D) their values.
        total: (B, G, n) the attention that they got, in at least float32, for `score: h2o`; else (B, G, 0).
        seen: how many tokens there have been in all.
    """

    k: Tokens
    v: Tokens
    total: Tensor
    seen: int


class Evict(Mechanism):
    source = "https://arxiv.org/abs/2504.15364"
    paper = "Park et al. 2025"
    growth = "window"
    cost = "tokens D"

    class Options(MechanismOptions):
        tokens: Annotated[int, Field(ge=1)] = 64
        """M: the most tokens that a key/value head keeps."""
        score: Literal["keydiff", "tova", "h2o"] = "keydiff"
        """What decides which of them stay: keys unlike the others, attention of the last query, attention so far."""
        sinks: Annotated[int, Field(ge=0)] = 4
        """f: the first tokens of the sequence always stay."""
        window: Annotated[int, Field(ge=0)] = 32
        """w: and so do the last ones; half of the tokens, where a budget chooses and this is left out."""
        every: Annotated[int, Field(ge=1)] = 8
        """b: tokens from one eviction to the next; at most an eighth of the tokens, likewise."""
        branches: Literal["both", "window", "far"] = "both"
        """Only the sinks, the last tokens and the query's own (window), or only those between (far; zero where there
        are none), to see what each does; the same tokens are kept."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        if (needed := options.sinks + options.window + options.every - 1) > options.tokens:
            raise ValueError(
                f"tokens: {options.tokens} are fewer than sinks {options.sinks}, window {options.window} and every "
                f"{options.every} less 1 need, {needed}"
            )
        self.normalised = options.branches != "far"

    def extend(self, x: Inputs, state: Kept | None = None) -> tuple[Tensor, State]:
        kept, pieces, start, count = state or self._nothing(x), Pieces(x.q.shape[2]), 0, x.q.shape[2]
        while start < count:
            stop = min(count, start + self._until_eviction(kept))
            out, kept = self._piece(x.slice(start, stop), kept)
            pieces.add(out)
            start = stop
        if count > 1:  # no room is left behind a prefill
            kept = kept._replace(k=Tokens(own_copy(kept.k.tensor)), v=Tokens(own_copy(kept.v.tensor)))
        return pieces.joined()[0], kept

    def _nothing(self, x: Inputs) -> Kept:
        """The state before the first token."""
        k, v = own_copy(x.k[:, :, :0]), own_copy(x.v[:, :, :0])
        return Kept(Tokens(k), Tokens(v), wide(k)[0].new_zeros(k.shape[:3]), 0)

    def _until_eviction(self, kept: Kept) -> int:
        """How many tokens can come before some have to go, the one that makes them go included; SPAN at most."""
        o = self.options
        room = max(o.tokens - o.every + 1 - kept.k.count, 0)  # tokens that may come without any having to go
        first = kept.seen + room
        return min(SPAN, first + -first % o.every - kept.seen + 1)

    def _piece(self, x: Inputs, kept: Kept) -> tuple[Tensor, Kept]:
        """`extend` of tokens of which none but the last evicts any."""
        k, v, seen = kept.k.append(x.k), kept.v.append(x.v), kept.seen + x.k.shape[2]
        out, logs = self._attend(x.q, k.tensor, v.tensor)
        total = kept.total
        if self.options.score == "h2o":
            got = logs.detach().exp().sum((2, 3))
            total = torch.cat([total, got.new_zeros(*got.shape[:2], x.k.shape[2])], 2) + got
        left = self.options.tokens - self.options.every + 1
        if (seen - 1) % self.options.every == 0 and k.count > left:
            stay = self._stay(self._scores(k.tensor, logs[:, :, :, -1], total), left)
            k, v = (Tokens(_picked(t.tensor, stay)) for t in (k, v))
            total = total.gather(2, stay) if self.options.score == "h2o" else total
        return out.to(x.q.dtype), Kept(k, v, total, seen)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the last tokens to all that are kept.

        Args:
            q: (B, H, T, D), whose own tokens are the last T of k and v (B, G, n, D).

        Returns: out (B, H, T, D) and the logs of the weights (B, G, H / G, T, n), in at least float32.
        """
        q, k, v = wide(q, k, v)
        group, new, count = (k.shape[1], q.shape[1] // k.shape[1]), q.shape[2], k.shape[2]
        later = torch.ones(new, count, dtype=torch.bool, device=q.device).triu(count - new + 1)
        scores = q.unflatten(1, group).flatten(2, 3) @ k.mT * self.geometry.scaling
        logs = scores.unflatten(2, (group[1], new)).masked_fill(later, MASKED).log_softmax(-1)
        return (self._weights(logs).flatten(2, 3) @ v).view(q.shape), logs

    def _weights(self, logs: Tensor) -> Tensor:
        """The weights (..., T, n) of the branch that runs, from the logs of all."""
        if self.options.branches == "both":
            return logs.exp()
        new, count = logs.shape[-2:]
        key, own = torch.arange(count, device=logs.device), torch.arange(count - new, count, device=logs.device)
        near = (key < self.options.sinks) | (own[:, None] - key <= self.options.window)
        left_out = (key > own[:, None]) | (near if self.options.branches == "far" else ~near)
        weights = logs.masked_fill(left_out, MASKED).softmax(-1)
        return weights.masked_fill(left_out.all(-1, keepdim=True), 0)

    @torch.no_grad()
    def _scores(self, k: Tensor, last: Tensor, total: Tensor) -> Tensor:
        """The score of each kept token, (B, G, n): the lowest go.

        Args:
            k: (B, G, n, D).
            last: (B, G, H / G, n), the logs of the last query's weights.
            total: (B, G, n), the attention that they got.
        """
        if self.options.score == "keydiff":
            unit = torch.nn.functional.normalize(wide(k)[0], dim=-1)
            return -(unit @ unit.mean(2, keepdim=True).mT)[..., 0]  # |m| is the same for all
        return total if self.options.score == "h2o" else last.logsumexp(2)

    def _stay(self, scores: Tensor, left: int) -> Tensor:
        """Which tokens stay, (B, G, left), in their order, by scores (B, G, n)."""
        sinks, window, count = self.options.sinks, self.options.window, scores.shape[2]
        best = scores[:, :, sinks : count - window].sort(dim=2, stable=True).indices[:, :, count - left :] + sinks
        index = torch.arange(count, device=scores.device).expand(*scores.shape[:2], -1)
        return torch.cat([index[:, :, :sinks], best.sort(2).values, index[:, :, count - window :]], 2)

    def reference(self, x: Inputs) -> Tensor:
        heads, groups = x.q.shape[1], x.k.shape[1]
        rows = [
            [self._head(x, b, g, range(g * heads // groups, (g + 1) * heads // groups)) for g in range(groups)]
            for b in range(len(x.q))
        ]
        return torch.stack([torch.cat(row) for row in rows])

    def _head(self, x: Inputs, b: int, g: int, heads: range) -> Tensor:
        """The output (H / G, T, D) of the query heads of one key/value head of one sequence, token by token."""
        o, k, v = self.options, x.k[b, g], x.v[b, g]
        kept: list[int] = []
        got: dict[int, float] = {}
        outs = []
        for t in range(len(k)):
            kept.append(t)
            scores = x.q[b, list(heads), t] @ k[kept].mT * self.geometry.scaling
            weights = scores.softmax(-1)
            outs.append(self._read(scores, v, kept))
            now = dict(zip(kept, weights.sum(0).tolist(), strict=True))
            got = {s: got.get(s, 0) + now[s] for s in kept}
            if t % o.every == 0:
                worth = {"keydiff": self._unlikeness(kept, k), "tova": now, "h2o": got}[o.score]
                kept = self._after_eviction(kept, worth)
        return torch.stack(outs, 1)

    def _read(self, scores: Tensor, v: Tensor, kept: list[int]) -> Tensor:
        """The output (H / G, D) of a query, the last of the positions that are kept, from its scores (H / G, n)."""
        o, t = self.options, kept[-1]
        near = [s < o.sinks or s >= t - o.window for s in kept]
        read = [i for i, is_near in enumerate(near) if o.branches == "both" or is_near == (o.branches == "window")]
        if not read:
            return scores.new_zeros(len(scores), v.shape[1])
        return scores[:, read].softmax(-1) @ v[[kept[i] for i in read]]

    def _unlikeness(self, kept: list[int], keys: Tensor) -> dict[int, float]:
        """KeyDiff's score of each position that is kept, from the keys (T, D) of all."""
        keys = keys.detach()
        mean = sum(keys[s] / keys[s].norm() for s in kept) / len(kept)
        return {s: -float(keys[s] @ mean / keys[s].norm() / mean.norm()) for s in kept}

    def _after_eviction(self, kept: list[int], scores: dict[int, float]) -> list[int]:
        """The positions that stay, of those that are kept."""
        o, excess = self.options, len(kept) - (self.options.tokens - self.options.every + 1)
        between = [s for s in kept if s >= o.sinks and s not in kept[len(kept) - o.window :]]
        gone = sorted(between, key=scores.__getitem__)[: max(excess, 0)]
        return [s for s in kept if s not in gone]

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        tokens, every = self.options.tokens, self.options.every
        count = min(length, tokens - every + 1 + (length - 1) % every)
        sums = count * max(dtype.itemsize, 4) if self.options.score == "h2o" else 0
        return batch * self.geometry.kv_heads * (2 * count * self.geometry.head_dim * dtype.itemsize + sums)

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        """The window and the steps between evictions grow with the tokens, unless they are given."""
        given = options.model_fields_set
        numbers = {
            "tokens": lambda n: n,
            "window": lambda n: n // 2,
            "every": lambda n: min(16, 2 ** max(0, n.bit_length() - 4)),
        }
        free = {name: f for name, f in numbers.items() if name not in given}
        if "tokens" in given:
            return ()

        def fits(n: int) -> bool:
            window, every = (free[name](n) if name in free else getattr(options, name) for name in ("window", "every"))
            return options.sinks + window + every - 1 <= n

        least = next(n for n in range(1, 2**20) if fits(n))
        return (Size(tuple(free), 1.0, lambda n: [f(n) for f in free.values()], least),)

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(tokens=length, sinks=0, window=0, every=1)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "each token": cls.Options(tokens=9, sinks=2, window=3, every=1),
            "tova": cls.Options(tokens=20, score="tova", sinks=1, window=4, every=3),
            "h2o": cls.Options(tokens=16, score="h2o", sinks=0, window=5, every=4),
            "window": cls.Options(tokens=12, score="tova", sinks=2, window=5, every=2, branches="window"),
            "far": cls.Options(tokens=12, score="h2o", sinks=2, window=5, every=2, branches="far"),
        }


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` (B, G, m) of x (B, G, n, D)."""
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[3]))
