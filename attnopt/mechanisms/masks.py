"""Softmax weights times a learnable combination of fixed masks: single offsets, windows, first tokens, strides.

    p_ts ~ softmax_s(scaling q_t . k_s) m_ts,   m_ts = sum_c sigmoid(alpha_c) M_c,ts,   out_t = sum_s p_ts v_s

The p_ts are renormalised over s, which makes them softmax with the bias log m on the support of m.

Candidates M_c, each a fixed binary causal mask (t the query, s the key):

    last:i     the i-th-to-last token alone; last:1 is the token itself     s = t - i + 1
    window:w   the last w tokens                                           t - w < s <= t
    first:f    the first f tokens                                          s < f
    stride:n   the token itself and every n-th before it                   n divides t - s
    full       all tokens

Source: local and strided masks are those of Child et al. 2019 (Sparse Transformers); that a learnable mask combines
fixed ones is this project's own. Approximated: tokens outside of the support have no weight. The start is the teacher's
scores on the support, with the same coefficient for each candidate (`start: zeros`); there is nothing to fit.

Only the support is computed: bands of distances, the first tokens, and for `stride` and `full` residue classes of
positions, merged by their log-sum-exps. A set of `last`, `window` and `first` takes O(T w) time and a state of w + f
tokens; `stride:n` and `full` keep all tokens and take O(T^2 / n) and O(T^2) time.
"""

import re
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.band import Prefix, band_attention
from attnopt.ops.softmax.dense import dense_attention, only
from attnopt.ops.softmax.spans import BLOCK, Part, merge
from attnopt.ops.softmax.step import attend_rows, reads_memory
from attnopt.ops.softmax.strided import strided_attention
from attnopt.ops.tensors import MASKED, own_copy, repeat_heads, wide
from attnopt.ops.window_state import WindowState, append_tokens

FORMS = "last:i, window:w, first:f, stride:n, full"
NEAREST = 5
"""Single offsets among the candidates that a budget chooses."""


class Candidate(NamedTuple):
    """One fixed mask.

    Attributes:
        form: last, window, first or stride; full is a stride of 1.
        size: the number behind the colon.
    """

    form: str
    size: int

    @classmethod
    def parse(cls, name: str) -> "Candidate":
        """The candidate of a name such as "window:8" or "full".

        Raises:
            ValueError: where the name is none of `FORMS`.
        """
        if name == "full":
            return cls("stride", 1)
        match = re.fullmatch(r"(last|window|first|stride):([1-9]\d*)", name)
        if not match:
            raise ValueError(f"candidate '{name}' is none of {FORMS}, with numbers of 1 or more")
        return cls(match[1], int(match[2]))

    @property
    def keeps_itself(self) -> bool:
        """Whether a token always reads itself, so that its row of the mask is never empty."""
        return self.form in ("window", "stride") or self == ("last", 1)

    @property
    def span(self) -> tuple[int, int]:
        """The distances start:stop that it selects; for `last` and `window` only."""
        return (self.size - 1 if self.form == "last" else 0), self.size

    def selects(self, distance: Tensor, s: Tensor) -> Tensor:
        """Where it selects the key at position `s` that stands `distance` >= 0 tokens before the query.

        Args:
            distance: integers of any shape.
            s: integers that broadcast with them.

        Returns: bool of their common shape.
        """
        if self.form == "last":
            return distance == self.size - 1
        if self.form == "window":
            return distance < self.size
        return s < self.size if self.form == "first" else distance % self.size == 0


class AllTokens(NamedTuple):
    """The state of sets with `stride` or `full`; that of other sets is a `WindowState`.

    Attributes:
        k: (B, G, S, D) keys of all tokens so far.
        v: (B, G, S, D) their values.
    """

    k: Tokens
    v: Tokens


class Masks(Mechanism):
    source = "https://arxiv.org/abs/1904.10509"
    paper = "Child et al. 2019"
    growth: Literal["window", "linear"] = "window"
    cost = "(w + f) D"
    compiles = ("log_masses",)

    class Options(MechanismOptions):
        candidates: tuple[str, ...] = ("last:1", "last:2", "last:3", "last:4", "last:5")
        """Of the forms last:i, window:w, first:f, stride:n, full."""
        per_head: bool = False
        """Whether each head has coefficients of its own; else the layer has one set."""
        start: Literal["zeros", "random"] = "zeros"
        """alpha at the start: 0, which is coefficients of 1/2, or standard normal."""
        l1: Annotated[float, Field(ge=0)] = 0.0
        """Weight in the loss of the sum of the coefficients."""

        @field_validator("candidates")
        @classmethod
        def _leave_each_row_a_token(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if not any(candidate.keeps_itself for candidate in map(Candidate.parse, names)):
                raise ValueError(
                    f"{', '.join(names) or 'an empty list'} leaves a token without itself; "
                    "at least one of last:1, window:w, stride:n, full must be there"
                )
            if len(set(names)) < len(names):
                raise ValueError(f"{', '.join(names)} has a candidate twice")
            return names

    selects_near: Tensor
    selects_first: Tensor

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.candidates = [Candidate.parse(name) for name in options.candidates]
        shape = (geometry.heads if options.per_head else 1, len(self.candidates))
        self.alpha = nn.Parameter(torch.randn(shape) if options.start == "random" else torch.zeros(shape))
        self.near, self.far, self.first = (
            [i for i, c in enumerate(self.candidates) if c.form in forms]
            for forms in (("last", "window"), ("stride",), ("first",))
        )
        self.window = max((self.candidates[i].size for i in self.near), default=0)
        self.sinks = max((self.candidates[i].size for i in self.first), default=0)
        if self.far:
            self.growth = "linear"
        self.register_buffer("selects_near", self._selects(self.near, self.window), persistent=False)
        self.register_buffer("selects_first", self._selects(self.first, self.sinks), persistent=False)

    def _selects(self, members: list[int], count: int) -> Tensor:
        """Which distances (or, for `first`, positions) each of these candidates selects, (members, count) bool."""
        index, none = torch.arange(count), torch.zeros(0, count, dtype=torch.bool)
        return torch.cat([none, *(self.candidates[i].selects(index, index)[None] for i in members)])

    def extend(self, x: Inputs, state: AllTokens | WindowState | None = None) -> tuple[Tensor, State]:
        if self.far:
            assert not isinstance(state, WindowState)
            after = self._grown(x, state)
            return self._attend(x.q, WindowState(after.k, after.v, self.sinks, after.k.count)), after
        assert not isinstance(state, AllTokens)
        kept = append_tokens(state, x.k, x.v, self.sinks)
        return self._attend(x.q, kept), kept.cut(max(0, self.window - 1))

    def _grown(self, x: Inputs, state: AllTokens | None) -> AllTokens:
        """All tokens, the new ones too."""
        if state is None:
            return AllTokens(Tokens(own_copy(x.k), self.sinks), Tokens(own_copy(x.v), self.sinks))
        return AllTokens(state.k.append(x.k), state.v.append(x.v))

    def _attend(self, q: Tensor, kept: WindowState) -> Tensor:
        """The output of queries q (B, H, T, D), whose own tokens are the last T that are `kept`."""
        if reads_memory(q, kept, self.alpha):
            return self._step(q, kept)
        parts = [self._band(q, kept, start, stop) for start, stop in self._runs() if start < kept.k.shape[2]]
        parts += [self._strided(q, kept, i) for i in self.far]
        if self.sinks:
            bias = self._log_mass(self.first, self.sinks)[:, : kept.first_k.shape[2]]
            prefix = Prefix(kept.first_k, kept.first_v, kept.seen - q.shape[2], bias=bias)
            parts.append(prefix.attend(q, 0, self.geometry.scaling))
        return merge(*parts)[0].to(q.dtype)

    def _step(self, q: Tensor, kept: WindowState) -> Tensor:
        """`_attend` of one query (B, H, 1, D): its last keys and the first ones are each read in place, as they lie."""
        k, v = kept.stretches

        def read(at: slice, logs: Tensor) -> Part:
            logs = logs.expand(q.shape[1], -1).unflatten(0, (k.shape[1], -1))[None]
            return attend_rows(q, k[:, :, at], v[:, :, at], logs, self.geometry.scaling)

        near, first = self.log_masses()
        parts = [self._strided(q, kept, i) for i in self.far]
        if self.near:
            last = min(self.window, k.shape[2])
            parts.append(read(slice(k.shape[2] - last, None), near[:, self.window - last :]))
        if self.first:
            parts.append(read(slice(0, min(self.sinks, k.shape[2])), first[:, : k.shape[2]]))
        return merge(*parts)[0]

    def parallel(self, x: Inputs) -> Tensor:
        (mask,) = wide(self.mask(x.q.shape[2]))
        bias = torch.where(mask > 0, mask, 1).log() + only(mask > 0, x.q)
        return dense_attention(x.q, x.k, x.v, bias, self.geometry.scaling)

    def _runs(self) -> list[tuple[int, int]]:
        """Stretches of distances start:stop that cover all `last` and `window` candidates.

        A gap narrower than BLOCK is covered too, as a band computes whole blocks of keys anyway.
        """
        runs: list[tuple[int, int]] = []
        for start, stop in sorted(c.span for c in (self.candidates[i] for i in self.near)):
            if runs and start - runs[-1][1] < BLOCK:
                runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
            else:
                runs.append((start, stop))
        return runs

    def _band(self, q: Tensor, kept: WindowState, start: int, stop: int) -> Part:
        """Attention to the keys at distances start:stop, by the band algorithm with a bias per distance."""
        count = kept.k.shape[2] - start
        bias = self._log_mass(self.near, stop)[:, start:]
        k, v = kept.k[:, :, :count], kept.v[:, :, :count]
        return band_attention(q, k, v, stop - start, self.geometry.scaling, bias=bias)

    def _strided(self, q: Tensor, kept: WindowState, index: int) -> Part:
        """Attention by the `stride` candidate `index`, its coefficient added to the log-sum-exp."""
        stride = self.candidates[index].size
        out, lse = strided_attention(q, kept.k, kept.v, stride, self.geometry.scaling)
        return out, lse + F.logsigmoid(self.alpha[:, index, None]).to(lse)

    def log_masses(self) -> tuple[Tensor, Tensor]:
        """`_log_mass` of the window, the token's own at the end, and of the first tokens; to be compiled."""
        return self._log_mass(self.near, self.window).flip(1), self._log_mass(self.first, self.sinks)

    def _log_mass(self, members: list[int], count: int) -> Tensor:
        """The log of the coefficients' sum for each of `count` distances (or, for `first`, positions).

        Args:
            members: `near` or `first`.
            count: how many distances or positions, from 0.

        Returns: (H or 1, count); MASKED where no member selects.
        """
        selects = self.selects_near if members is self.near else self.selects_first
        logs = F.logsigmoid(wide(self.alpha)[0][:, members])
        return logs[..., None].masked_fill(~selects[:, :count], MASKED).logsumexp(1)

    def mask(self, length: int) -> Tensor:
        """The learned mask m of a sequence of `length` tokens, (H or 1, T, T): query t, key s; zero where s > t."""
        s = torch.arange(length, device=self.alpha.device)
        distance = s[:, None] - s
        selects = torch.stack([c.selects(distance, s) & (distance >= 0) for c in self.candidates])
        return torch.einsum("hc,cts->hts", self.alpha.sigmoid(), selects.to(self.alpha))

    def density(self, length: int) -> float:
        """The share of all causal (query, key) pairs that the support holds on a sequence of `length` tokens."""
        n = torch.arange(length)
        near = [self.candidates[i] for i in (*self.near, *self.far)]
        kept = torch.stack([c.selects(n, n) for c in near]).any(0)
        sinks = n[: self.sinks, None] + n < length
        pairs = ((length - n) * kept).sum() + (sinks & ~kept).sum()
        return float(pairs / (length * (length + 1) / 2))

    def pruned(self, threshold: float) -> "Masks":
        """A copy without the candidates whose coefficients are below `threshold` in all heads.

        One candidate under which a token reads itself has to stay, as no row may be empty: where all of these fall
        below the threshold, the heaviest is kept.
        """
        heaviest = self.alpha.detach().sigmoid().amax(0)
        own = [i for i, c in enumerate(self.candidates) if c.keeps_itself]
        kept = [i for i in range(len(self.candidates)) if heaviest[i] >= threshold]
        if not set(kept) & set(own):
            kept = sorted([*kept, max(own, key=lambda i: heaviest[i].item())])
        names = tuple(self.options.candidates[i] for i in kept)
        masks = Masks(self.geometry, self.options.model_copy(update={"candidates": names})).to(self.alpha)
        with torch.no_grad():
            masks.alpha.copy_(self.alpha[:, kept])
        return masks.train(self.training)

    def coefficients(self) -> dict[str, Tensor]:
        """sigmoid(alpha) of each candidate, by its name, (H or 1, 1)."""
        return dict(zip(self.options.candidates, self.alpha.sigmoid().split(1, dim=1), strict=True))

    def penalty(self) -> Tensor | None:
        return self.options.l1 * self.alpha.sigmoid().sum(1).mean() if self.options.l1 else None

    def reference(self, x: Inputs) -> Tensor:
        heads, outs = x.q.shape[1], []
        k, v, mask = repeat_heads(x.k, heads), repeat_heads(x.v, heads), self.mask(x.q.shape[2])
        for t in range(x.q.shape[2]):
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            weights = scores.softmax(-1) * mask[:, t, : t + 1]
            outs.append(torch.einsum("bhs,bhsd->bhd", weights / weights.sum(-1, keepdim=True), v[:, :, : t + 1]))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        tokens = length if self.far else min(length, max(0, self.window - 1) + self.sinks)
        return 2 * batch * self.geometry.kv_heads * tokens * self.geometry.head_dim * dtype.itemsize

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        """Candidates of a window: the nearest tokens one by one, the first four, and windows of w, w / 4, w / 16."""
        return (Size(("candidates",), at=lambda n: [_windowed(n)], least=NEAREST + 1),)

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(candidates=(f"window:{length}",))

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        sparse = ("first:3", "last:1", "last:2", "last:50", "window:2")
        return {
            "default": cls.Options(per_head=True),
            "first and sparse": cls.Options(candidates=sparse, start="random"),
            "stride": cls.Options(candidates=("stride:7", "last:3", "first:2"), per_head=True),
            "full": cls.Options(candidates=("full", "window:5")),
        }


def _windowed(window: int) -> tuple[str, ...]:
    """The candidates that fill a window of this many tokens, and four first ones."""
    sizes = [n for n in (window // 16, window // 4, window) if n > NEAREST]
    return (*(f"last:{i + 1}" for i in range(NEAREST)), "first:4", *(f"window:{n}" for n in sizes))
