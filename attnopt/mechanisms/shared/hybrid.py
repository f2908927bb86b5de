"""Softmax over the last w tokens and the first f, linear attention over all between, under one normaliser.

    out_t = ( sum_{s near t} e^(a_ts - c) v_s + sum_{s far from t} e^(m - c) phi(q_t) . phi(k_s) v_s )
            / (the same two sums without v_s)

    near    t - w < s <= t,  or  s < f (the sinks, of which there are none by default)
    far     f <= s <= t - w

a_ts is the softmax score and m a learnable log mass per head, which weighs the far part against the near one. As both
parts have the same e^-c, each can be normalised by itself and the two merged by the logs of their sums.
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.mechanisms.shared.centring import Centre, far_log
from attnopt.ops.linear.chunked import LinearState, absorb, linear_attention, recall
from attnopt.ops.output_pieces import Pieces
from attnopt.ops.softmax.dense import ages
from attnopt.ops.softmax.spans import merge
from attnopt.ops.softmax.window import window_attention
from attnopt.ops.tensors import repeat_heads, wide
from attnopt.ops.window_state import WindowState, append_tokens

CHECKPOINT_SPAN = 512
"""Longer sequences are taken in spans of this many tokens, which a backward pass computes again one by one: features
take far more memory than the tokens that they are made from."""
FIT_SEQUENCES, FIT_TOKENS = 8, 512
"""The part of the teacher's data that is enough to fit a few numbers per head."""


class HybridState(NamedTuple):
    """What a hybrid remembers.

    Attributes:
        kept: the last n <= w tokens, and the sinks.
        far: the sums over the tokens between; None where there are none, or the far part does not run.
    """

    kept: WindowState
    far: LinearState | None


class Hybrid(Mechanism):
    """Base of mechanisms with a softmax window and linear attention behind it.

    A subclass defines `size`, `query_map` and `key_map`, and where it has them `kernel`, a shorter way to their
    product, and `fit_map`. Queries and keys reach these functions centred, see `centring`.
    """

    growth = "window"
    parallel_up_to = 256
    compiles = ("step",)

    class Options(MechanismOptions):
        window: int = Field(default=16, ge=0)
        """w: the last tokens, itself included, that a token attends to exactly; with 0 the linear part covers all."""
        sinks: int = Field(default=0, ge=0)
        """f: the first tokens of the sequence, which it attends to exactly too; they need a window."""
        branches: Literal["both", "window", "far"] = "both"
        """The parts that run; the sinks are the window's. With far alone a token still attends to itself, as every
        row needs a key."""
        centre: bool = True
        """Whether `fit` takes out the means of queries and keys."""

    options: Options
    offset: Tensor

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__(geometry, options)
        if options.window == 0 and options.branches == "window":
            raise ValueError("branches: 'window' needs a window of 1 or more, and window is 0")
        if options.sinks and not options.window:
            raise ValueError(f"sinks: {options.sinks} need a window of 1 or more, and window is 0")
        self.centre = Centre(geometry)
        self.dense_weights = options.branches != "window"
        self.log_mass = nn.Parameter(torch.zeros(geometry.heads)) if options.window else None
        self.register_buffer("offset", torch.zeros(geometry.kv_heads))

    def size(self) -> int:
        """F, the number of features per head."""
        raise NotImplementedError

    def query_map(self, q: Tensor) -> Tensor:
        """Features (B, H, T, F), at least float32, of centred queries (B, H, T, D)."""
        raise NotImplementedError

    def key_map(self, k: Tensor) -> Tensor:
        """Features (B, G, T, F), at least float32, of centred keys (B, G, T, D)."""
        raise NotImplementedError

    def kernel(self, q: Tensor, k: Tensor) -> Tensor:
        """phi(q) . phi(k) of every pair, for `parallel`, `reference` and `fit`.

        Args:
            q: (B, H, T, D), centred queries.
            k: (B, G, S, D), centred keys.

        Returns: (B, H, T, S), above zero.
        """
        return self.query_map(q) @ repeat_heads(self.key_map(k), q.shape[1]).mT

    def fit_map(self, q: Tensor, k: Tensor) -> None:
        """Set, in place, what the features depend on, from the teacher's centred q (B, H, T, D) and k (B, G, T, D)."""

    def extend(self, x: Inputs, state: HybridState | None = None) -> tuple[Tensor, State]:
        if x.q.shape[2] <= CHECKPOINT_SPAN:
            return self._extend(x.q, x.k, x.v, state)
        pieces = Pieces(x.q.shape[2])
        for q, k, v in zip(
            x.q.split(CHECKPOINT_SPAN, 2), x.k.split(CHECKPOINT_SPAN, 2), x.v.split(CHECKPOINT_SPAN, 2), strict=True
        ):
            if torch.is_grad_enabled():
                out, state = checkpoint(self._extend, q, k, v, state, use_reentrant=False, preserve_rng_state=False)
            else:
                out, state = self._extend(q, k, v, state)
            pieces.add(out)
        return pieces.joined()[0], state

    def parallel(self, x: Inputs) -> Tensor:
        if self.options.branches == "window":
            return self.extend(x)[0]
        (v,) = wide(repeat_heads(x.v, x.q.shape[1]))
        return (self.weights(x) @ v).to(x.q.dtype)

    def weights(self, x: Inputs) -> Tensor:
        """As `Mechanism.weights`: one (B, H, T, T) softmax over the logs of all weights, near and far."""
        tokens, heads, window, branches = x.q.shape[2], x.q.shape[1], self.options.window, self.options.branches
        q, k = self.centre.queries(x.q), self.centre.keys(x.k)
        logs = self.kernel(q, k).log()
        if self.log_mass is not None:
            logs = logs + wide(self.log_mass)[0][:, None, None]
        age = ages(tokens, q)
        seen = age >= 0
        if window:
            near = q @ repeat_heads(k, heads).mT * self.geometry.scaling
            first = torch.arange(tokens, device=q.device) < self.options.sinks
            exact = age < 1 if branches == "far" else (age < window) | first
            logs, seen = torch.where(exact, near, logs), seen & (exact | ((age >= window) & ~first))
        logs = logs + repeat_heads(self.centre.log_weight(k), heads)[:, :, None]
        return logs.masked_fill(~seen, -torch.inf).softmax(-1)

    def _extend(self, q: Tensor, k: Tensor, v: Tensor, state: HybridState | None) -> tuple[Tensor, HybridState]:
        """`extend` of up to CHECKPOINT_SPAN tokens."""
        window, sinks = self.options.window, self.options.sinks
        before, far = state or (None, None)
        kept = append_tokens(before, k, v, sinks)
        new = max(kept.seen - window - sinks, 0) - max(kept.seen - q.shape[2] - window - sinks, 0)
        if self.options.branches == "window" or not new:
            out, _ = self._near(q, kept)
        else:
            out, far = self._both(q, kept, new, far)
        return out.to(q.dtype), HybridState(kept.cut(window), far)

    def _both(self, q: Tensor, kept: WindowState, new: int, far: LinearState | None) -> tuple[Tensor, LinearState]:
        """The output of both parts, and the far part's state.

        Token s leaves the window, and joins the far part if it is no sink, at query s + w. So the far part is causal
        linear attention in which the last `new` queries stand beside as many keys, those that come before the last w;
        queries before them have no far token that is not in the state already.

        Args:
            q: (B, H, T, D).
            kept: the window before the new tokens, and these, not cut yet.
            new: how many of its tokens join the far part by the last query.
            far: the state of those that had joined it before.
        """
        lead, stop = q.shape[2] - new, kept.k.shape[2] - self.options.window
        if q.shape[2] == 1 and far is not None and self.options.window:
            leaving = kept.k[:, :, stop - 1 : stop].contiguous(), kept.v[:, :, stop - 1 : stop].contiguous()
            out, *after = self.step(q, *leaving, *self._exact(q, kept), *far)
            return out, LinearState(*after)
        maps, joining = (self._query_features, self._key_features), slice(stop - new, stop)
        out, norm, far = linear_attention(q[:, :, lead:], kept.k[:, :, joining], kept.v[:, :, joining], far, maps)
        if not self.options.window:
            return out, far
        near, near_log = self._near(q, kept)
        joined, _ = merge((near[:, :, lead:], near_log[:, :, lead:]), (out, norm.log() + self._far_log()))
        return torch.cat([near[:, :, :lead], joined], dim=2) if lead else joined, far

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, near: Tensor, near_log: Tensor, sums: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token's output, its near part joined with the far one, and the far sums: of tensors, to be compiled.

        Args:
            q: (B, H, 1, D).
            k, v: (B, G, 1, D), the token that leaves the window.
            near, near_log: (B, H, 1, D) and (B, H, 1), what `_exact` gives.
            sums, norm: the far state without that token.
        """
        phi_k = self._key_features(k)
        far = absorb(phi_k, v.to(phi_k), LinearState(sums, norm))
        out, total = recall(self._query_features(q), far)
        out, _ = merge((near, near_log - self.centre.dropped(q)), (out, total.log() + self._far_log()))
        return out, *far

    def _near(self, q: Tensor, kept: WindowState) -> tuple[Tensor, Tensor]:
        """The part of window and sinks: out (B, H, T, D), and lse (B, H, T) as of centred queries, like the far part's.

        With `branches: far` it is the token itself.
        """
        out, log = self._exact(q, kept)
        return out, log - self.centre.dropped(q)

    def _exact(self, q: Tensor, kept: WindowState) -> tuple[Tensor, Tensor]:
        """`_near` with the lse of queries as they came."""
        if self.options.branches == "far":
            q, k, v = wide(q, *(repeat_heads(t[:, :, -q.shape[2] :], q.shape[1]) for t in (kept.k, kept.v)))
            return v, (q * k).sum(-1) * self.geometry.scaling
        return window_attention(wide(q)[0], kept, self.options.window, self.geometry.scaling)

    def _query_features(self, q: Tensor) -> Tensor:
        return self.query_map(self.centre.queries(q))

    def _key_features(self, k: Tensor) -> Tensor:
        """Features (B, G, T, F) of keys (B, G, T, D), times the key's own weight from centring, over exp(offset)."""
        k = self.centre.keys(k)
        return self.key_map(k) * self.centre.weight(k, self.offset)

    def _far_log(self) -> Tensor:
        assert self.log_mass is not None
        return far_log(self.offset, self.log_mass)

    def reference(self, x: Inputs) -> Tensor:
        return torch.stack([self._attend(x, t) for t in range(x.q.shape[2])], dim=2)

    def _attend(self, x: Inputs, t: int) -> Tensor:
        """The output (B, H, D) of query t: a softmax over the logs of all weights, of far tokens and then near ones."""
        heads, branches, window, sinks = x.q.shape[1], self.options.branches, self.options.window, self.options.sinks
        distant = [s for s in range(t + 1 - window) if s >= sinks]
        exact = [s for s in range(t + 1) if s > t - window or s < sinks]
        if branches == "far" and window:
            exact = [t]
        q, k = self.centre.queries(x.q[:, :, t : t + 1]), self.centre.keys(x.k)
        weight = repeat_heads(self.centre.log_weight(k), heads)[:, :, None]
        far = self.kernel(q, k[:, :, distant]).log() + weight[..., distant]
        if self.log_mass is not None:
            far = far + self.log_mass[:, None, None]
        if branches == "window":
            far = torch.full_like(far, -torch.inf)
        near = q @ repeat_heads(k[:, :, exact], heads).mT * self.geometry.scaling + weight[..., exact]
        weights = torch.cat([far, near], dim=-1).softmax(-1)
        return (weights @ repeat_heads(x.v[:, :, distant + exact], heads))[:, :, 0]

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        window, sinks = self.options.window, self.options.sinks
        held = 2 * min(length, window + sinks) * self.geometry.head_dim * dtype.itemsize
        runs = self.options.branches != "window" and length > window + sinks
        far = self.size() * (self.geometry.head_dim + 1) * max(dtype.itemsize, torch.float32.itemsize)
        return batch * self.geometry.kv_heads * (held + far * runs)

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        window = Size(("window",))
        return (window,) if options.branches == "window" else (Size(("feature_dim",), share=0.5), window)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        if self.options.centre:
            self.centre.fit(x.q, x.k)
        q, k = self.centre.queries(x.q), self.centre.keys(x.k)
        self.offset.copy_(self.centre.log_weight(k).mean((0, 2)))
        self.fit_map(q, k)
        if self.log_mass is not None and q.shape[2] > self.options.window + self.options.sinks:
            exact, kernel = self.far_logs(q, k)
            self.log_mass.copy_((exact.logsumexp(-1) - kernel.logsumexp(-1)).mean((0, 2)))

    def far_logs(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of softmax's and of the kernel's weights on far tokens, to fit one to the other.

        Args:
            q: (B, H, T, D), centred, T > w + f; a part of the sequences and tokens is used.
            k: (B, G, T, D), centred.

        Returns: two of (B', H, T' - w - f, T' - f), minus infinity for tokens that are not far.
        """
        sinks, first = self.options.sinks, self.options.window + self.options.sinks
        tokens, heads = first + FIT_TOKENS, q.shape[1]
        q, k = q[:FIT_SEQUENCES, :, first:tokens], k[:FIT_SEQUENCES, :, sinks:tokens]
        weight = repeat_heads(self.centre.log_weight(k), heads)[:, :, None]
        near = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        exact = q @ repeat_heads(k, heads).mT * self.geometry.scaling
        exact, kernel = exact + weight, self.kernel(q, k).log() + weight
        return exact.masked_fill(near, -torch.inf), kernel.masked_fill(near, -torch.inf)

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(window=length)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "sinks": cls.Options(window=8, sinks=3),
            "linear": cls.Options(window=0),
            "far": cls.Options(window=8, sinks=3, branches="far"),
        }
