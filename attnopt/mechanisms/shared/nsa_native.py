"""Native sparse attention on our own kernels (`ops/nsa`); what it computes is said in mechanisms/nsa.py.

Shapes as in mechanisms/base.py, and as in ops/nsa: X = B G rows, one for each sequence and key/value head, with
R = H / G query heads each; n tokens per block.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs
from attnopt.mechanisms.shared.nsa_step import attend_step
from attnopt.ops.growing import Tokens
from attnopt.ops.nsa.near import near_attention
from attnopt.ops.nsa.picked import picked_attention
from attnopt.ops.nsa.pool import Pool
from attnopt.ops.nsa.slots import TIE, Layout, slot_attention
from attnopt.ops.softmax.step import reads_tokens
from attnopt.ops.tensors import MASKED, own_copy, repeat_heads, wide

Branch = Literal["window", "selected", "compressed"]
BRANCHES: tuple[Branch, ...] = ("window", "selected", "compressed")
SETS: dict[str, tuple[Branch, ...]] = {
    "all": BRANCHES,
    "tokens": ("window", "selected"),
    "far": ("selected", "compressed"),
    **{branch: (branch,) for branch in BRANCHES},
}
"""The branches that run, for each value of the option `branches`."""
GATES = (0.7, 0.2, 0.1)
"""The share of each branch, in the order of BRANCHES, that the gates give it at the start."""
NUMBERS = 2**19
"""Entries of q handled at a time."""


class NSAState(NamedTuple):
    """All tokens so far, and the slots of all complete blocks.

    Attributes:
        k: (B, G, S, D) keys of the tokens.
        v: (B, G, S, D) their values.
        k_slots: (B, G, N, D) the pooled key of each complete block, in at least float32.
        v_slots: (B, G, N, D) the pooled values.
    """

    k: Tokens
    v: Tokens
    k_slots: Tokens
    v_slots: Tokens


class Keys(NamedTuple):
    """What the queries may read.

    Attributes:
        near_k: (X, L, D) keys of the tokens that are near to any query, from `Layout.start` to the last query.
        near_v: (X, L, D) their values.
        k, v: (X, N n, D) all complete blocks.
        k_slots, v_slots: (X, N, D) their slots.
    """

    near_k: Tensor
    near_v: Tensor
    k: Tensor
    v: Tensor
    k_slots: Tensor
    v_slots: Tensor


class BranchOutput(NamedTuple):
    """What a branch gives.

    Attributes:
        out: (X, R, T, D) the mean of its values; meaningless where it has no key.
        lse: (X, R, T) the log of its total weight.
        alive: (T,) bool, whether it has any key for a query.
    """

    out: Tensor
    lse: Tensor
    alive: Tensor


class NativeNSA(nn.Module):
    """`extend`, `reference`, `fit` and `state_bytes` of `NSA` with `backend: native`.

    Args:
        options: an `NSA.Options`.
    """

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
        """As `Mechanism.extend`. It takes a few rows X at a time, so that what they need stays in the cache.

        Raises:
            ValueError: with `merge: gates`, where there are no hidden states.
        """
        if state is not None and self._steps(x, state):
            after = self._grown(x, state)
            layout = Layout(state.k.count, self.options.block, self.options.window)
            mass = math.log(self.options.block) + self.mass.to(x.q.dtype)
            return attend_step(x.q, after, layout, self.picks, mass, self.geometry.scaling), after
        q, keys, layout, after = self._prepared(x, state)
        balance = self._gate_logits(x).reshape(*q.shape[:2], -1, q.shape[2]) if self.gated else self._slot_mass(q)
        step = max(1, NUMBERS // q[0].numel())
        outs = []
        for q_now, balance_now, *keys_now in zip(*(t.split(step) for t in (q, balance, *keys)), strict=True):
            parts = self._branches(q_now, balance_now, Keys(*keys_now), layout, self.branches)
            outs.append(self._merged(parts, balance_now) if parts else q_now * 0)
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        return out.view(x.q.shape).to(x.q.dtype), after

    def _steps(self, x: Inputs, state: NSAState) -> bool:
        """Whether `attend_step` can: a single token with far blocks, all branches and nobody who wants gradients."""
        whole = self.branches == BRANCHES and not self.gated and self.picks > 0
        far = state.k.count + 1 - self.options.window >= self.options.block
        return whole and far and reads_tokens(x.q, state.k, self.mass)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """As `Mechanism.state_bytes`: keys and values are kept as they came, slots in at least float32."""
        pair = 2 * batch * self.geometry.kv_heads * self.geometry.head_dim
        return pair * (length * dtype.itemsize + length // self.options.block * max(dtype.itemsize, 4))

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        """As `Mechanism.fit`: sets the gates, or the mass of the slots, from the teacher's mean attention.

        `share` is the part of the teacher's softmax that falls on a branch's tokens, or that its slots would take if
        each counted as n tokens; what the window and the selected tokens leave is what the slots ought to have.
        """
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
        """As `Mechanism.reference`, token by token as nsa.py defines it."""
        q, k, v = wide(x.q, x.k, x.v)
        gates = self._gate_logits(x) if self.gated else None
        outs = []
        for t in range(q.shape[2]):
            gate = None if gates is None else gates[..., t]
            outs.append(self._token(q[:, :, t], k[:, :, : t + 1], v[:, :, : t + 1], gate))
        return torch.stack(outs, dim=2).to(x.q.dtype)

    def _token(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
        """The output (B, H, D) of the last of t tokens.

        Args:
            q: (B, H, D), its query.
            k, v: (B, G, t, D), all tokens up to it.
            gates: (B, H, branches) logits of its gates, None with `merge: lse`.
        """
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
        """Which tokens and slots each branch reads, (B, H, t + far) bool: the t tokens first, then the far slots.

        Args:
            picked: (B, H, far) bool, the slots that were picked.
            tokens: t.
            leave_out: whether the compressed branch leaves out the slots that were picked.
        """
        far = picked.shape[2]
        recent = torch.arange(tokens, device=picked.device) >= far * self.options.block
        in_picked = F.pad(picked.repeat_interleave(self.options.block, dim=2), (0, tokens - far * self.options.block))
        return {
            "window": F.pad(recent.expand_as(in_picked), (0, far)),
            "selected": F.pad(in_picked, (0, far)),
            "compressed": F.pad(~picked if leave_out else picked | True, (tokens, 0)),
        }

    def _best(self, scores: Tensor) -> Tensor:
        """The slots that are picked, (B, H, N) bool, from their scores (B, H, N); heads of a group share the choice.

        Of slots whose importance is within TIE of the best, the earliest is taken.
        """
        share = self.geometry.heads // self.geometry.kv_heads
        left = scores.unflatten(1, (-1, share)).log_softmax(-1).logsumexp(2)
        picked = torch.zeros_like(left, dtype=torch.bool)
        for _ in range(min(self.picks, left.shape[-1])):
            ties = left >= left.amax(-1, keepdim=True) - TIE
            first = ties & (ties.cumsum(-1) == 1)
            left, picked = left.masked_fill(first, -torch.inf), picked | first
        return picked.repeat_interleave(share, dim=1)

    def _prepared(self, x: Inputs, state: NSAState | None) -> tuple[Tensor, Keys, Layout, NSAState]:
        """q as (X, R, T, D) in at least float32, what it may read, where it stands, and the state after it."""
        size, g = self.options.block, self.geometry
        layout = Layout(0 if state is None else state.k.count, size, self.options.window)
        after = self._grown(x, state)
        k, v, k_slots, v_slots = (t.tensor.flatten(0, 1) for t in after)
        whole = after.k_slots.count * size
        near_k, near_v = wide(k[:, layout.start :], v[:, layout.start :])
        keys = Keys(near_k, near_v, k[:, :whole], v[:, :whole], k_slots, v_slots)
        q = wide(x.q)[0].reshape(-1, g.heads // g.kv_heads, *x.q.shape[2:])
        return q, keys, layout, after

    def _grown(self, x: Inputs, state: NSAState | None) -> NSAState:
        """The state after the new tokens; blocks that they complete are pooled to slots."""
        if state is None:
            k, v = Tokens(own_copy(x.k)), Tokens(own_copy(x.v))
            k_slots, v_slots = (Tokens(own_copy(wide(t[:, :, :0])[0])) for t in (x.k, x.v))
        else:
            k, v, k_slots, v_slots = state.k.append(x.k), state.v.append(x.v), state.k_slots, state.v_slots
        done, full = (n * self.options.block for n in (k_slots.count, k.count // self.options.block))
        if full > done:
            blocks = (t.tensor[:, :, done:full].unflatten(2, (-1, self.options.block)) for t in (k, v))
            new_k, new_v = wide(*blocks)
            k_slots, v_slots = k_slots.append(self.pool_k(new_k)), v_slots.append(self.pool_v(new_v))
        return NSAState(k, v, k_slots, v_slots)

    def _branches(
        self, q: Tensor, mass: Tensor, keys: Keys, layout: Layout, wanted: tuple[Branch, ...]
    ) -> dict[Branch, BranchOutput]:
        """The parts of the wanted branches; a branch that has no key for any query is left out.

        Args:
            q: (X, R, T, D), not scaled yet.
            mass: (X, R, 1) of `_slot_mass`, added to the slots' lse with `merge: lse`; else ignored.
            keys: what the queries may read.
            layout: where they stand.
            wanted: of BRANCHES.
        """
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
            parts["selected"] = BranchOutput(*picked_attention(q, keys.k, keys.v, picked, layout.size), far > 0)
        if "compressed" in wanted:
            parts["compressed"] = BranchOutput(out, lse if self.gated else lse + mass, far > self.picks * leave_out)
        return parts

    def _merged(self, parts: dict[Branch, BranchOutput], gates: Tensor) -> Tensor:
        """The weighted mean (X, R, T, D) of the branches, zero where none has a key.

        Args:
            parts: the branches' parts, one at least.
            gates: (X, R, branches, T) logits, the weights with `merge: gates`; else the branches' lse are.
        """
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
        """log n + mass_h, (X, R, 1): what is added to a slot's score for the n tokens that it stands for."""
        mass = math.log(self.options.block) + self.mass.to(q.dtype)
        return mass.view(self.geometry.kv_heads, -1, 1).repeat(len(q) // self.geometry.kv_heads, 1, 1)

    def _gate_logits(self, x: Inputs) -> Tensor:
        """The logits of the gates, (B, H, branches, T), from the hidden states (B, T, C)."""
        if x.hidden is None:
            raise ValueError("nsa with merge: gates needs the layer's hidden states, there are none")
        (hidden,) = wide(x.hidden)
        logits = F.linear(hidden, self.gates.weight.to(hidden.dtype), self.gates.bias.to(hidden.dtype))
        return logits.unflatten(-1, (len(BRANCHES), -1)).permute(0, 3, 2, 1)

    def _set_gates(self, shares: Tensor) -> None:
        """Set the gates' bias so that, at hidden states of zero, they are these shares (branches, H)."""
        with torch.no_grad():
            self.gates.bias.copy_(shares.clamp(min=1e-3).log().flatten())

    def _per_head(self, x: Tensor) -> Tensor:
        """The mean over sequences and tokens of x (X, R, T), (H,)."""
        return x.unflatten(0, (-1, self.geometry.kv_heads)).mean((0, 3)).flatten()


def _softmax_lse(q: Tensor, k: Tensor) -> Tensor:
    """The log-sum-exp (X, R, T) of the teacher's scores, for scaled q (X, R, T, D) and k (X, T, D), row by row of X."""
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return torch.stack([(a @ b.mT).masked_fill(future, -torch.inf).logsumexp(-1) for a, b in zip(q, k, strict=True)])
