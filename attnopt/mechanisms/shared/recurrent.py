"""Softmax over the last w tokens and the first f, a decaying recurrence over all between; with w = 0 over all tokens.

    S_t = a_t S_{t-1} + what the token writes that leaves the window at t        a_t in (0, 1], read from the input at t
    out_t = (near_t e^(near_lse_t) + far_t e^(far_log_t)) / (e^(near_lse_t) + e^(far_log_t))

near_t and near_lse_t are the softmax average over window and sinks and the log-sum-exp of its scores; far_t is what
query t reads from S_t, and far_log_t = m + log n_t the log of the mass that it stands for, where the normaliser
n_t = sum_s w_ts over far tokens s decays with the state:

    w_ts = phi(q_t) . (a_{s'+1} ... a_t phi(k_s)) e^(scaling nu . k_s)         token s left the window at s' = s + w

phi(x) = softmax([P x, -P x]) are positive features of sum one, P per head; nu is the mean query (`centring.py`) and m a
learnable log mass per head. A query that has no far token yet reads its window alone.

The fit is in closed form, as Taylor-Calibrate's (arXiv:2606.16429): from the teacher's weights on far tokens it takes
each head's mean look-back d, and the state loses half of itself in d steps. P is the rank-r map whose products are
closest to the teacher's scores, times the factor out of `SHARPNESS` that brings w_ts closest to softmax; m makes the
far mass right in the mean.
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.mechanisms.shared.centring import Centre, far_log
from attnopt.mechanisms.shared.gates import Gate, half_life_logit, log_decay
from attnopt.mechanisms.shared.look_back import Far, mean_look_back, per_group, steps
from attnopt.mechanisms.shared.projections import closest_projections
from attnopt.mechanisms.shared.spiky import first_rows, spiky_features
from attnopt.ops.growing import Tokens
from attnopt.ops.linear.decayed import LOWEST
from attnopt.ops.output_pieces import Pieces
from attnopt.ops.softmax.spans import merge
from attnopt.ops.softmax.window import window_attention
from attnopt.ops.tensors import repeat_heads, wide
from attnopt.ops.window_state import WindowState, append_tokens

CHECKPOINT_SPAN = 2048
"""Longer sequences are taken in spans of this many tokens, which a backward pass computes again one by one."""
SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Factors on P that the fit tries; the larger, the spikier the features."""


class RecurrentState(NamedTuple):
    """What is remembered.

    Attributes:
        kept: the last n <= w tokens, and the sinks; None without a window.
        written: (B, G, n, 1) for each of them what it will be written with; None where tokens are written as they are.
        sums: of the tokens before, (B, G, F, .) each; None where there are none, or the far part does not run.
    """

    kept: WindowState | None
    written: Tokens | None
    sums: tuple[Tensor, ...] | None


class Recurrent(Mechanism):
    """Base of `retention`, `gla` and `gated_delta`: a softmax window, and a recurrence behind it.

    A subclass says what its gates read (`channels`, `reads`), and defines `recur` and for the reference `recur_once`.
    """

    growth = "window"
    compiles = ("step",)
    remembers = False
    """Whether `strength` gives something to be remembered with the window's tokens."""

    class Options(MechanismOptions):
        window: int = Field(default=16, ge=0)
        """w: the last tokens, itself included, that a token attends to exactly; with 0 the recurrence covers all."""
        sinks: int | None = Field(default=None, ge=0)
        """f: the first tokens of the sequence, which it attends to exactly too; null: 4 with a window, else none."""
        feature_dim: int | None = Field(default=None, ge=1)
        """r: rows of P, half the number of features; null for head_dim."""
        branches: Literal["both", "window", "far"] = "both"
        """The parts that run; the sinks are the window's. With far alone a token still attends to itself, as every
        row needs a key."""

    options: Options
    rows: Tensor
    """P before the fit, (r, D)."""
    offset: Tensor

    def __init__(self, geometry: Geometry, options: Any, channels: bool = False, reads: bool = True):
        """As `Mechanism`.

        Args:
            channels: whether each feature has a decay of its own.
            reads: whether decays depend on the layer's input.
        """
        super().__init__(geometry, options)
        if not options.window and options.branches == "window":
            raise ValueError("branches: 'window' needs a window of 1 or more, and window is 0")
        if not options.window and options.sinks:
            raise ValueError(f"sinks: {options.sinks} need a window of 1 or more, and window is 0")
        self.sinks = (4 if options.window else 0) if options.sinks is None else options.sinks
        self.centre = Centre(geometry)
        rows = first_rows(options.feature_dim or geometry.head_dim, geometry.head_dim)
        self.register_buffer("rows", rows, persistent=False)
        self.query_weight = nn.Parameter(self.rows.repeat(geometry.heads, 1, 1))
        self.key_weight = nn.Parameter(self.rows.repeat(geometry.kv_heads, 1, 1))
        self.scale = (geometry.scaling * min(len(self.rows), geometry.head_dim)) ** 0.5
        self.register_buffer("offset", torch.zeros(geometry.kv_heads))
        self.log_mass = nn.Parameter(torch.zeros(geometry.heads)) if options.window else None
        self.decay = Gate(geometry, self.size() if channels else 1, reads)
        self.decay.set(half_life_logit(torch.full((geometry.kv_heads,), 64.0)))

    def size(self) -> int:
        """F, the number of features."""
        return 2 * len(self.rows)

    def sum_sizes(self) -> tuple[int, ...]:
        """Numbers in each of the sums, per sequence and key/value head."""
        raise NotImplementedError

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The recurrence over tokens that join it one at a query.

        Args:
            q: (B, H, T, F) and k: (B, G, T, F), features in at least float32, k times its weight over exp(offset).
            v: (B, G, T, D). decay: (B, G, T, 1 or F), in logs. written: (B, G, T, 1) or None.
            sums: what an earlier call returned, or None.

        Returns: far_t (B, H, T, D), n_t over exp(offset) (B, H, T), the sums after.
        """
        raise NotImplementedError

    def recur_once(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`recur` of one token straight from the equations, for the reference: all without the dimension of tokens."""
        raise NotImplementedError

    def strength(self, hidden: Tensor | None, k: Tensor) -> Tensor | None:
        """What a token will be written with, (B, G, T, 1), known when it is new; None where there is no such thing."""
        return None

    def extend(self, x: Inputs, state: RecurrentState | None = None) -> tuple[Tensor, State]:
        if x.q.shape[2] <= CHECKPOINT_SPAN:
            return self._extend(x, state)
        pieces = Pieces(x.q.shape[2])
        for start in range(0, x.q.shape[2], CHECKPOINT_SPAN):
            part = x.slice(start, start + CHECKPOINT_SPAN)
            if torch.is_grad_enabled():
                out, state = checkpoint(self._extend, part, state, use_reentrant=False, preserve_rng_state=False)
            else:
                out, state = self._extend(part, state)
            pieces.add(out)
        return pieces.joined()[0], state

    def _extend(self, x: Inputs, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """`extend` of up to CHECKPOINT_SPAN tokens."""
        kept, written, sums = state or RecurrentState(None, None, None)
        window, tokens = self.options.window, x.q.shape[2]
        if not window:
            out, _, sums = self._far(x, x.k, x.v, self.strength(x.hidden, x.k), sums)
            return out.to(x.q.dtype), RecurrentState(None, None, sums)
        kept = append_tokens(kept, x.k, x.v, self.sinks)
        near, near_log = self._near(x.q, kept)
        if self.options.branches == "window":
            return near.to(x.q.dtype), RecurrentState(kept.cut(window), None, None)
        if (new_written := self.strength(x.hidden, x.k)) is not None:
            written = Tokens(new_written) if written is None else written.append(new_written)
        beyond = kept.seen - window - self.sinks
        if new := max(beyond, 0) - max(beyond - tokens, 0):
            lead, stop = tokens - new, kept.k.shape[2] - window
            joining, strength = slice(stop - new, stop), None if written is None else written.tensor
            strength = None if strength is None else strength[:, :, joining]
            k, v = kept.k[:, :, joining], kept.v[:, :, joining]
            if tokens == 1 and sums is not None:
                leaving = k.contiguous(), v.contiguous()
                near, *after = self.step(x.q, x.hidden, *leaving, strength, near, near_log, *sums)
                sums = tuple(after)
            else:
                out, norm, sums = self._far(x.slice(lead), k, v, strength, sums)
                joined, _ = merge((near[:, :, lead:], near_log[:, :, lead:]), (out, norm.log() + self._far_log()))
                near = torch.cat([near[:, :, :lead], joined], dim=2) if lead else joined
        written = None if written is None else written.last(window)
        return near.to(x.q.dtype), RecurrentState(kept.cut(window), written, sums)

    def step(
        self,
        q: Tensor,
        hidden: Tensor | None,
        k: Tensor,
        v: Tensor,
        written: Tensor | None,
        near: Tensor,
        near_log: Tensor,
        *sums: Tensor,
    ) -> tuple[Tensor, ...]:
        """One token's output and the sums after it: of tensors, to be compiled.

        Args:
            q: (B, H, 1, D). hidden: (B, 1, C).
            k, v, written: the token that leaves the window, (B, G, 1, D) each and (B, G, 1, 1).
            near, near_log: what `_near` gives.
            sums: without that token.
        """
        out, norm, after = self._far(Inputs(q, k, v, hidden), k, v, written, sums)
        return merge((near, near_log), (out, norm.log() + self._far_log()))[0], *after

    def _near(self, q: Tensor, kept: WindowState) -> tuple[Tensor, Tensor]:
        """The part of window and sinks, out (B, H, T, D) and lse (B, H, T), the latter as of centred queries and keys.

        With `branches: far` it is the token itself.
        """
        if self.options.branches == "far":
            q, k, v = wide(q, *(repeat_heads(t[:, :, -q.shape[2] :], q.shape[1]) for t in (kept.k, kept.v)))
            return v, (q * k).sum(-1) * self.geometry.scaling - self.centre.dropped(q)
        out, log = window_attention(wide(q)[0], kept, self.options.window, self.geometry.scaling)
        return out, log if self.options.branches == "window" else log - self.centre.dropped(q)

    def _far(
        self, x: Inputs, k: Tensor, v: Tensor, written: Tensor | None, sums: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`recur` with the queries and the layer's input of x, and the keys and values that join it."""
        q = self.queries(x.q)
        return self.recur(q, self.keys(k), wide(v)[0].to(q), self.decays(x.hidden, q), written, sums)

    def queries(self, q: Tensor) -> Tensor:
        """phi(q_t), (B, H, T, F), of queries as they came."""
        return spiky_features(self.centre.queries(q), self.query_weight, self.scale)

    def keys(self, k: Tensor) -> Tensor:
        """phi(k_s), (B, G, T, F), of keys as they came, times the key's own weight from centring over exp(offset)."""
        k = self.centre.keys(k)
        return spiky_features(k, self.key_weight, self.scale) * self.centre.weight(k, self.offset)

    def decays(self, hidden: Tensor | None, like: Tensor) -> Tensor:
        """log a_t, (B, G, T, 1 or F), for hidden (B, T, C), or where that is None for `like` (B, *, T, *)."""
        return log_decay(self.decay(hidden, like), LOWEST).to(like)

    def _far_log(self) -> Tensor:
        assert self.log_mass is not None
        return far_log(self.offset, self.log_mass)

    def reference(self, x: Inputs) -> Tensor:
        outs, sums = [], None
        q, k, decay, strength = (
            self.queries(x.q),
            self.keys(x.k),
            self.decays(x.hidden, x.k),
            self.strength(x.hidden, x.k),
        )
        for t in range(x.q.shape[2]):
            far, s = None, t - self.options.window
            if s >= self.sinks and self.options.branches != "window":
                written = None if strength is None else strength[:, :, s]
                out, norm, sums = self.recur_once(q[:, :, t], k[:, :, s], x.v[:, :, s], decay[:, :, t], written, sums)
                far = out, norm.log()
            outs.append(self._attend(x, t, far))
        return torch.stack(outs, dim=2)

    def _attend(self, x: Inputs, t: int, far: tuple[Tensor, Tensor] | None) -> Tensor:
        """The output (B, H, D) of query t, whose far part is (out (B, H, D), log n_t (B, H))."""
        heads, branches, window = x.q.shape[1], self.options.branches, self.options.window
        exact = [s for s in range(t + 1) if s > t - window or s < self.sinks]
        if branches == "far":
            exact = [t]
        if not window:
            assert far is not None
            return far[0]
        scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], repeat_heads(x.k[:, :, exact], heads))
        scores = scores * self.geometry.scaling - self.centre.dropped(x.q[:, :, t : t + 1])
        values = repeat_heads(x.v[:, :, exact], heads)
        if far is not None:
            scores = torch.cat([scores, far[1][..., None] + self._far_log()], 2)
            values = torch.cat([values, far[0][:, :, None]], 2)
        return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        window, sinks, wide_bytes = self.options.window, self.sinks, max(dtype.itemsize, torch.float32.itemsize)
        runs = self.options.branches != "window"
        kept = 2 * min(length, window + sinks) * self.geometry.head_dim * dtype.itemsize
        written = min(length, window) * wide_bytes * (runs and self.remembers)
        sums = sum(self.sum_sizes()) * wide_bytes * (runs and length > window + sinks)
        return batch * self.geometry.kv_heads * (kept + written + sums)

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        window = Size(("window",))
        return (window,) if options.branches == "window" else (Size(("feature_dim",), share=0.125), window)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        self.centre.fit(x.q, x.k)
        self.offset.copy_(self.centre.log_weight(self.centre.keys(x.k)).mean((0, 2)))
        if x.q.shape[2] <= self.options.window + self.sinks + 1:
            return
        far = Far.of(x.q, x.k, x.v, self.options.window, self.sinks)
        scores = self._exact(far)
        self.decay.set(half_life_logit(per_group(mean_look_back(scores), x.k.shape[1])))
        self._fit_features(x, far, scores)
        self.fit_read(far, scores)
        if self.log_mass is not None:
            self.log_mass.copy_((scores.logsumexp(-1) - self._logs(far).logsumexp(-1)).mean((0, 2)))

    def fit_read(self, far: Far, scores: Tensor) -> None:
        """Set, in place, what else `recur` depends on, from the teacher's scores (B, H, n, n) on far tokens."""

    def _exact(self, far: Far) -> Tensor:
        """The logs of the teacher's weights on far tokens (B, H, n, n), without what softmax drops."""
        scores = wide(far.q)[0] @ repeat_heads(self.centre.keys(far.k), self.geometry.heads).mT
        return far.causal(scores * self.geometry.scaling)

    def _logs(self, far: Far) -> Tensor:
        """The logs of the far weights w_ts at the gates' constants, to be compared with `_exact`."""
        heads = self.geometry.heads
        kernel = self.queries(far.q) @ repeat_heads(self.keys(far.k), heads).mT
        decay = log_decay(self.decay.bias, LOWEST).mean(1)
        decay, offset = repeat_heads(torch.stack([decay, self.offset]), heads)[..., None, None]
        return far.causal(kernel.log() + decay * steps(kernel.shape[-1], kernel) + offset)

    def _fit_features(self, x: Inputs, far: Far, scores: Tensor) -> None:
        """Set P to the closest maps, at the factor for which the far weights are closest to softmax's, per kv head."""
        rank, groups = min(self.rows.shape), x.k.shape[1]
        closest = closest_projections(self.centre.queries(x.q), self.centre.keys(x.k), rank, scaling=1.0)
        q_rows, k_rows = (self.rows[:, :rank].to(p) @ p for p in closest)

        def sharpen(factor: Tensor) -> None:
            self.query_weight.copy_(repeat_heads((factor[:, None, None] * q_rows)[None], self.geometry.heads)[0])
            self.key_weight.copy_(factor[:, None, None] * k_rows)

        losses, weights = [], scores.softmax(-1)
        for factor in SHARPNESS:
            sharpen(q_rows.new_full((groups,), factor))
            logs = self._logs(far).log_softmax(-1)
            losses.append(per_group(-(weights * logs.masked_fill(logs.isneginf(), 0)).sum(-1).mean((0, 2)), groups))
        sharpen(q_rows.new_tensor(SHARPNESS)[torch.stack(losses).argmin(0)])

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(window=length, sinks=0)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "sinks": cls.Options(window=8, sinks=3, feature_dim=12),
            "alone": cls.Options(window=0, feature_dim=3),
            "far": cls.Options(window=8, sinks=3, branches="far"),
        }
