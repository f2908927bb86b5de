"""Native sparse attention on our own kernels; what it computes is said in nsa.py."""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs
from attnopt.ops.nsa.near import near_attention
from attnopt.ops.nsa.picked import picked_attention
from attnopt.ops.nsa.pool import Pool
from attnopt.ops.nsa.slots import TIE, Layout, slot_attention
from attnopt.ops.tensors import MASKED, repeat_heads, wide

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
NUMBERS = 2**19
"""Entries of q handled at a time."""


class NSAState(NamedTuple):
    """Keys and values of whole blocks, of the tokens since (fewer than a page), and the slots of all blocks."""

    k: Tensor
    v: Tensor
    k_new: Tensor
    v_new: Tensor
    k_slots: Tensor
    v_slots: Tensor


class Keys(NamedTuple):
    """What the queries may read, (X, ., D) each: tokens near to any of them, and the state without its batch."""

    near_k: Tensor
    near_v: Tensor
    k: Tensor
    v: Tensor
    k_new: Tensor
    v_new: Tensor
    k_slots: Tensor
    v_slots: Tensor


class BranchOutput(NamedTuple):
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
        """As `Mechanism.extend`; a few heads at a time, so that what they need stays in the cache."""
        q, keys, layout, after = self._prepared(x, state)
        balance = self._gate_logits(x).reshape(*q.shape[:2], -1, q.shape[2]) if self.gated else self._slot_mass(q)
        step = max(1, NUMBERS // q[0].numel())
        outs = []
        for q_now, balance_now, *keys_now in zip(*(t.split(step) for t in (q, balance, *keys)), strict=True):
            parts = self._branches(q_now, balance_now, Keys(*keys_now), layout, self.branches)
            outs.append(self._merged(parts, balance_now) if parts else q_now * 0)
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        return out.view(x.q.shape).to(x.q.dtype), after

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys and values as they came, slots in at least float32."""
        pair = 2 * batch * self.geometry.kv_heads * self.geometry.head_dim
        return pair * (length * dtype.itemsize + length // self.options.block * max(dtype.itemsize, 4))

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        """From the teacher's mean attention to each branch's tokens: the gates, or the mass that the slots lack."""
        self.mass.zero_()
        q, keys, layout, _ = self._prepared(x, None)
        parts = self._branches(q, self._slot_mass(q), keys, layout, BRANCHES)
        if "compressed" not in parts or not (rows := parts["compressed"].alive).any():
            return
        total = _softmax_lse(q * self.geometry.scaling, keys.near_k)
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
        """Output (B, H, D) of the last token: q (B, H, D), k and v (B, G, t, D), gates (B, H, branches)."""
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
            mass = math.log(o.block) + self.mass[:, None]
            scores = torch.cat([scores[..., :tokens], scores[..., tokens:] + mass], dim=2)
            weights = scores.masked_fill(~read, -torch.inf).softmax(-1)
        else:
            shares = gates[..., [BRANCHES.index(b) for b in usable]].softmax(-1)
            each = [scores.masked_fill(~reads[b], -torch.inf).softmax(-1) for b in usable]
            weights = (shares[..., None] * torch.stack(each, dim=2)).sum(2)
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

    def _prepared(self, x: Inputs, state: NSAState | None) -> tuple[Tensor, Keys, Layout, NSAState]:
        """q (X, R, T, D), what it may read, where it stands, and the state after it."""
        size, g = self.options.block, self.geometry
        if state is None:
            none = x.k.new_empty(*x.k.shape[:2], 0, x.k.shape[3])
            state = NSAState(none, none, none, none, *wide(none, none))
        layout = Layout(state.k.shape[2] + state.k_new.shape[2], size, self.options.window)
        near = (_near_tokens(state.k, state.k_new, x.k, layout), _near_tokens(state.v, state.v_new, x.v, layout))
        after = self._grown(x, state)
        whole = after.k_new.shape[2] // size * size
        flat = [t.flatten(0, 1) for t in after]
        keys = Keys(near[0], near[1], flat[0], flat[1], flat[2][:, :whole], flat[3][:, :whole], flat[4], flat[5])
        q = wide(x.q)[0].reshape(-1, g.heads // g.kv_heads, *x.q.shape[2:])
        return q, keys, layout, after

    def _grown(self, x: Inputs, state: NSAState) -> NSAState:
        """The state with the new tokens: their blocks pooled, and where they fill a page, copied to the rest."""
        size, whole, done = self.options.block, state.k.shape[2], state.k_slots.shape[2] * self.options.block
        grown = []
        for old, waiting, slots, t, pool in (
            (state.k, state.k_new, state.k_slots, x.k, self.pool_k),
            (state.v, state.v_new, state.v_slots, x.v, self.pool_v),
        ):
            joined = torch.cat([waiting, t], dim=2) if waiting.shape[2] else t
            full = joined.shape[2] // size * size
            if whole + full > done:
                blocks = joined[:, :, done - whole : full].unflatten(2, (-1, size))
                slots = torch.cat([slots, pool(*wide(blocks))], dim=2)
            if joined.shape[2] >= max(PAGE, size):
                old, joined = torch.cat([old, joined[:, :, :full]], dim=2), joined[:, :, full:].clone()
            grown.append((old, joined.clone() if joined is t else joined, slots))
        return NSAState(*(t for pair in zip(*grown, strict=True) for t in pair))

    def _branches(
        self, q: Tensor, mass: Tensor, keys: Keys, layout: Layout, wanted: tuple[Branch, ...]
    ) -> dict[Branch, BranchOutput]:
        """What the wanted branches, those that have any keys, give the queries (X, R, T, D); see `_slot_mass`."""
        last, q = q.shape[2] - 1, q * self.geometry.scaling
        far = layout.far_of(slice(0, last + 1), q.device)
        parts: dict[Branch, BranchOutput] = {}
        if "window" in wanted:
            parts["window"] = BranchOutput(*near_attention(q, keys.near_k, keys.near_v, layout), far >= 0)
        if wanted == ("window",) or not layout.far(last):
            return parts
        leave_out = self.picks > 0 and not self.gated
        out, lse, picked = slot_attention(q, keys.k_slots, keys.v_slots, layout, self.picks, leave_out)
        if self.picks:
            tables = ((keys.k, keys.k_new), (keys.v, keys.v_new))
            parts["selected"] = BranchOutput(*picked_attention(q, *tables, picked, layout.size), far > 0)
        if "compressed" in wanted:
            parts["compressed"] = BranchOutput(out, lse if self.gated else lse + mass, far > self.picks * leave_out)
        return parts

    def _merged(self, parts: dict[Branch, BranchOutput], gates: Tensor) -> Tensor:
        """(X, R, T, D) the mean of the branches, zero where none has a key."""
        if self.gated:
            logits = gates[:, :, [BRANCHES.index(name) for name in parts]].movedim(2, 0)
        else:
            logits = torch.stack([part.lse for part in parts.values()])
        dead = ~torch.stack([part.alive for part in parts.values()])[:, None, None]
        weights = logits.masked_fill(dead, MASKED).softmax(0).masked_fill(dead, 0)[..., None]
        outs = [part.out for part in parts.values()]
        merged = weights[0] * outs[0]
        for weight, out in zip(weights[1:], outs[1:], strict=True):
            merged.addcmul_(weight, out)
        return merged

    def _slot_mass(self, q: Tensor) -> Tensor:
        """(X, R, 1) what is added to a slot's score for the tokens that it stands for."""
        mass = math.log(self.options.block) + self.mass.to(q.dtype)
        return mass.view(self.geometry.kv_heads, -1, 1).repeat(len(q) // self.geometry.kv_heads, 1, 1)

    def _gate_logits(self, x: Inputs) -> Tensor:
        """(B, H, branches, T)."""
        if x.hidden is None:
            raise ValueError("nsa with merge: gates needs the layer's hidden states, there are none")
        (hidden,) = wide(x.hidden)
        logits = F.linear(hidden, self.gates.weight.to(hidden.dtype), self.gates.bias.to(hidden.dtype))
        return logits.unflatten(-1, (len(BRANCHES), -1)).permute(0, 3, 2, 1)

    def _set_gates(self, shares: Tensor) -> None:
        """Make the gates, where hidden states have no say, these shares (branches, H)."""
        with torch.no_grad():
            self.gates.bias.copy_(shares.clamp(min=1e-3).log().flatten())

    def _per_head(self, x: Tensor) -> Tensor:
        """Mean over batch and tokens: (X, R, T) -> (H,)."""
        return x.unflatten(0, (-1, self.geometry.kv_heads)).mean((0, 3)).flatten()


def _near_tokens(old: Tensor, waiting: Tensor, new: Tensor, layout: Layout) -> Tensor:
    """(X, L, D) the tokens near to any of the new ones, from the state's two parts and the new ones themselves."""
    parts = [old[:, :, layout.start :], waiting[:, :, max(layout.start - old.shape[2], 0) :], new]
    parts = [t for t in parts if t.shape[2]]
    return wide((torch.cat(parts, dim=2) if len(parts) > 1 else new).flatten(0, 1))[0]


def _softmax_lse(q: Tensor, k: Tensor) -> Tensor:
    """(X, R, T) the teacher's log-sum-exp, for scaled q (X, R, T, D) and k (X, T, D), one X at a time."""
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return torch.stack([(a @ b.mT).masked_fill(future, -torch.inf).logsumexp(-1) for a, b in zip(q, k, strict=True)])
