"""Native sparse attention on our own kernels; what it computes is said in nsa.py."""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs, repeat_heads, wide
from attnopt.ops.blocks import NEVER, TIE, Layout, slot_attention
from attnopt.ops.near import near_attention
from attnopt.ops.picked import picked_attention
from attnopt.ops.pool import Pool

Branch = Literal["window", "selected", "compressed"]
BRANCHES: tuple[Branch, ...] = ("window", "selected", "compressed")
SETS: dict[str, tuple[Branch, ...]] = {
    "all": BRANCHES,
    "tokens": ("window", "selected"),
    "far": ("selected", "compressed"),
    **{branch: (branch,) for branch in BRANCHES},
}
"""What the option `branches` may say."""
GATES = (0.7, 0.2, 0.1)
"""What the gates give the branches at the start."""
PAGE = 256
"""Tokens that the state collects before it copies them to the rest."""


class NSAState(NamedTuple):
    """Keys and values of whole blocks, of the tokens since (fewer than a page), and the slots of all blocks."""

    k: Tensor
    v: Tensor
    k_new: Tensor
    v_new: Tensor
    k_slots: Tensor
    v_slots: Tensor


class Part(NamedTuple):
    """What a branch gives: out (X, R, T, D), lse (X, R, T), and alive (T,), whether it has any key."""

    out: Tensor
    lse: Tensor
    alive: Tensor


class NativeNSA(nn.Module):
    """`extend`, `reference`, `fit` and `state_bytes` of `NSA`. X = B G and R = H / G, as in ops/blocks.py."""

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__()
        self.geometry, self.options = geometry, options
        self.branches = SETS[options.branches]
        self.picks = options.selected if "selected" in self.branches else 0
        learns = "compressed" in self.branches
        self.pool_k = Pool(geometry.kv_heads, options.block, learns)
        self.pool_v = Pool(geometry.kv_heads, options.block, learns)
        self.gated = options.merge == "gates" and len(self.branches) > 1
        if self.gated:
            self.gates = nn.Linear(geometry.hidden, len(BRANCHES) * geometry.heads)
            nn.init.zeros_(self.gates.weight)
            self._set_gates(torch.tensor(GATES)[:, None].expand(-1, geometry.heads))
        mass = torch.zeros(geometry.heads)
        self.mass = nn.Parameter(mass) if learns and len(self.branches) > 1 and not self.gated else nn.Buffer(mass)

    def extend(self, x: Inputs, state: NSAState | None = None) -> tuple[Tensor, NSAState]:
        """As `Mechanism.extend`."""
        seen = 0 if state is None else state.k.shape[2] + state.k_new.shape[2]
        after = self._grown(x, state, seen)
        parts = self._branches(x.q, after, Layout(seen, self.options.block, self.options.window), self.branches)
        return self._merged(parts, x).view(x.q.shape).to(x.q.dtype), after

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys and values as they came, slots in at least float32."""
        pair = 2 * batch * self.geometry.kv_heads * self.geometry.head_dim
        return pair * (length * dtype.itemsize + length // self.options.block * max(dtype.itemsize, 4))

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        """From the teacher's mean attention to each branch's tokens: the gates, or the mass that the slots lack."""
        self.mass.zero_()
        layout = Layout(0, self.options.block, self.options.window)
        parts = self._branches(x.q, self._grown(x, None, 0), layout, BRANCHES)
        if "compressed" not in parts or not (rows := parts["compressed"].alive).any():
            return
        total = _softmax_lse(x, self.geometry)
        share = {name: self._per_head((part.lse - total).exp()[..., rows]) for name, part in parts.items()}
        rest = (1 - share["window"] - share.get("selected", 0)).clamp(min=1e-3)
        if self.gated:
            self._set_gates(torch.stack([share["window"], share.get("selected", rest), rest]))
        else:
            self.mass.copy_((rest / share["compressed"]).log())

    def reference(self, x: Inputs) -> Tensor:
        """Token by token, as nsa.py defines it."""
        q, k, v = wide(x.q, x.k, x.v)
        gates = self._gate_logits(x) if self.gated else None
        outs = []
        for t in range(q.shape[2]):
            gate = None if gates is None else gates[..., t]
            outs.append(self._token(q[:, :, t], k[:, :, : t + 1], v[:, :, : t + 1], gate))
        return torch.stack(outs, dim=2).to(x.q.dtype)

    def _token(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
        """Output (B, H, D) of the last token: q (B, H, D), k and v (B, G, t, D), gates (branches, B, H)."""
        o, tokens, heads = self.options, k.shape[2], q.shape[1]
        far = max(0, (tokens - o.window) // o.block)
        blocks = (t[:, :, : far * o.block].unflatten(2, (far, o.block)) for t in (k, v))
        slots = (pool(t) for pool, t in zip((self.pool_k, self.pool_v), blocks, strict=True))
        keys, values = (repeat_heads(torch.cat(pair, dim=2), heads) for pair in zip((k, v), slots, strict=True))
        scores = torch.einsum("bhd,bhsd->bhs", q, keys) * self.geometry.scaling
        picked = self._best(scores[..., tokens:])
        reads = self._reads(picked, tokens, gates is None)
        usable = [b for b in self.branches if reads[b].any()]
        if not usable:
            return q * 0
        if gates is None:
            read = torch.stack([reads[b] for b in usable]).any(0)
            scores = torch.cat([scores[..., :tokens], scores[..., tokens:] + self._slot_mass()], dim=2)
            weights = scores.masked_fill(~read, -torch.inf).softmax(-1)
        else:
            shares = gates[[BRANCHES.index(b) for b in usable]].softmax(0)
            each = torch.stack([scores.masked_fill(~reads[b], -torch.inf).softmax(-1) for b in usable])
            weights = (shares[..., None] * each).sum(0)
        return torch.einsum("bhs,bhsd->bhd", weights, values)

    def _reads(self, picked: Tensor, tokens: int, leave_out: bool) -> dict[Branch, Tensor]:
        """Which tokens and slots each branch reads, (B, H, t + far) bool, from the slots picked (B, H, far)."""
        far = picked.shape[2]
        recent = torch.arange(tokens, device=picked.device) >= far * self.options.block
        in_picked = F.pad(picked.repeat_interleave(self.options.block, dim=2), (0, tokens - far * self.options.block))
        return {
            "window": F.pad(recent.expand_as(in_picked), (0, far)),
            "selected": F.pad(in_picked, (0, far)),
            "compressed": F.pad(~picked if leave_out else picked | True, (tokens, 0)),
        }

    def _best(self, scores: Tensor) -> Tensor:
        """The slots picked, (B, H, N) bool, from their scores (B, H, N); heads of a group share the choice."""
        share = self.geometry.heads // self.geometry.kv_heads
        left = scores.unflatten(1, (-1, share)).log_softmax(-1).logsumexp(2)
        picked = torch.zeros_like(left, dtype=torch.bool)
        for _ in range(min(self.picks, left.shape[-1])):
            ties = left >= left.amax(-1, keepdim=True) - TIE
            first = ties & (ties.cumsum(-1) == 1)
            left, picked = left.masked_fill(first, -torch.inf), picked | first
        return picked.repeat_interleave(share, dim=1)

    def _grown(self, x: Inputs, state: NSAState | None, seen: int) -> NSAState:
        """The state with the new tokens: their blocks pooled, and where they fill a page, copied to the rest."""
        size, total = self.options.block, seen + x.k.shape[2]
        if state is None:
            none = x.k.new_empty(*x.k.shape[:2], 0, x.k.shape[3])
            state = NSAState(none, none, none, none, *wide(none, none))
        whole, done = state.k.shape[2], state.k_slots.shape[2] * size
        grown = []
        for old, waiting, slots, t, pool in (
            (state.k, state.k_new, state.k_slots, x.k, self.pool_k),
            (state.v, state.v_new, state.v_slots, x.v, self.pool_v),
        ):
            waiting = torch.cat([waiting, t], dim=2)
            if total - done >= size:
                blocks = waiting[:, :, done - whole : total // size * size - whole].unflatten(2, (-1, size))
                slots = torch.cat([slots, pool(*wide(blocks))], dim=2)
            if waiting.shape[2] >= max(PAGE, size):
                full = waiting.shape[2] // size * size
                old, waiting = torch.cat([old, waiting[:, :, :full]], dim=2), waiting[:, :, full:].clone()
            grown.append((old, waiting, slots))
        return NSAState(*(t for pair in zip(*grown, strict=True) for t in pair))

    def _branches(self, q: Tensor, state: NSAState, layout: Layout, wanted: tuple[Branch, ...]) -> dict[Branch, Part]:
        """What the wanted branches, those that have any keys, give the queries (B, H, T, D) that end the state."""
        size, g, last = self.options.block, self.geometry, q.shape[2] - 1
        q = (wide(q)[0] * g.scaling).reshape(-1, g.heads // g.kv_heads, *q.shape[2:])
        far = layout.far_of(slice(0, last + 1), q.device)
        parts: dict[Branch, Part] = {}
        if "window" in wanted:
            k, v = _region(state.k, state.k_new, layout.start), _region(state.v, state.v_new, layout.start)
            parts["window"] = Part(*near_attention(q, k, v, layout), far >= 0)
        if wanted == ("window",) or not layout.far(last):
            return parts
        leave_out = self.picks > 0 and not self.gated
        slots_k, slots_v = state.k_slots.flatten(0, 1), state.v_slots.flatten(0, 1)
        out, lse, picked = slot_attention(q, slots_k, slots_v, layout, self.picks, leave_out)
        if self.picks:
            tables = (_tables(state.k, state.k_new, size), _tables(state.v, state.v_new, size))
            parts["selected"] = Part(*picked_attention(q, *tables, picked, size), far > 0)
        if "compressed" in wanted:
            mass = self._slot_mass().to(q.dtype).view(g.kv_heads, -1, 1).repeat(len(q) // g.kv_heads, 1, 1)
            parts["compressed"] = Part(out, lse + mass, far > self.picks * leave_out)
        return parts

    def _slot_mass(self) -> Tensor:
        """(H, 1) what is added to a slot's score for the tokens that it stands for."""
        return math.log(self.options.block) + self.mass[:, None]

    def _merged(self, parts: dict[Branch, Part], x: Inputs) -> Tensor:
        """(X, R, T, D) the mean of the branches; zero where none has a key."""
        if not parts:
            return wide(x.q)[0] * 0
        logits = torch.stack([part.lse for part in parts.values()])
        if self.gated:
            logits = self._gate_logits(x)[[BRANCHES.index(name) for name in parts]].reshape(logits.shape)
        dead = ~torch.stack([part.alive for part in parts.values()])[:, None, None]
        weights = logits.masked_fill(dead, NEVER).softmax(0).masked_fill(dead, 0)[..., None]
        outs = [part.out for part in parts.values()]
        merged = weights[0] * outs[0]
        for weight, out in zip(weights[1:], outs[1:], strict=True):
            merged.addcmul_(weight, out)
        return merged

    def _gate_logits(self, x: Inputs) -> Tensor:
        """(branches, B, H, T)."""
        if x.hidden is None:
            raise ValueError("nsa with merge: gates needs the layer's hidden states, there are none")
        (hidden,) = wide(x.hidden)
        logits = F.linear(hidden, self.gates.weight.to(hidden.dtype), self.gates.bias.to(hidden.dtype))
        return logits.unflatten(-1, (len(BRANCHES), -1)).permute(2, 0, 3, 1)

    def _set_gates(self, shares: Tensor) -> None:
        """Make the gates, where hidden states have no say, these shares (branches, H)."""
        with torch.no_grad():
            self.gates.bias.copy_(shares.clamp(min=1e-3).log().flatten())

    def _per_head(self, x: Tensor) -> Tensor:
        """Mean over batch and tokens: (X, R, T) -> (H,)."""
        return x.unflatten(0, (-1, self.geometry.kv_heads)).mean((0, 3)).flatten()


def _region(old: Tensor, new: Tensor, start: int) -> Tensor:
    """(X, L, D) the state's tokens from `start` on."""
    late = new[:, :, max(start - old.shape[2], 0) :]
    return wide((torch.cat([old[:, :, start:], late], dim=2) if start < old.shape[2] else late).flatten(0, 1))[0]


def _tables(old: Tensor, new: Tensor, size: int) -> list[Tensor]:
    """The state's whole blocks, (X, N_i n, D) each."""
    return [t.flatten(0, 1) for t in (old, new[:, :, : new.shape[2] // size * size])]


def _softmax_lse(x: Inputs, geometry: Geometry) -> Tensor:
    """(X, R, T) the teacher's log-sum-exp, one key/value head at a time."""
    q, k = wide(x.q, x.k)
    q = q.reshape(-1, geometry.heads // geometry.kv_heads, *q.shape[2:]) * geometry.scaling
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = ((a @ b.mT).masked_fill(future, -torch.inf) for a, b in zip(q, k.flatten(0, 1), strict=True))
    return torch.stack([s.logsumexp(-1) for s in scores])
