"""The package native-sparse-attention-pytorch fitted into a mechanism's slot.

Its projections, norm and rotary embedding are taken out: it is fed the teacher's own q, k and v, and hidden states for
its gates. What it computes for token t, with blocks of b tokens and everything scaled by `Geometry.scaling`:

    compressed  softmax over a memory slot and the pooled blocks that ended before t
    selected    softmax over the own block up to t and the `selected` blocks with the highest compressed scores
    window      softmax over the last `window` tokens
    out         sum of the three, each times its own sigmoid gate: the gates need not sum to 1

The compressed slots pool keys as they arrive, so rotated ones in a rotary model. Training takes T x T x D memory: the
package gathers selected blocks from an expanded copy, whose gradient is that large. It decodes one token at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attnopt.mechanisms.base import Geometry, Inputs, State
from attnopt.ops.nsa.pool import Pool
from attnopt.ops.tensors import repeat_heads, wide

BRANCHES = ("compressed", "selected", "window")
START = (0.1, 0.2, 0.7)
"""The gates at the start, by branch."""
FAINTEST = 1e-10
"""The package leaves out a selected block whose score, after a softmax over blocks, is no more than this."""


class PackageNSA(nn.Module):
    """`extend`, `reference`, `fit` and `state_bytes` of `NSA` with `backend: package`.

    Args:
        block: b, tokens pooled into one slot and selected together.
        selected: blocks that a token reads in full, 1 or more.
        window: last tokens that it reads in full, 2 or more.

    Raises:
        ValueError: where the package is missing or cannot do with these numbers.
    """

    def __init__(self, geometry: Geometry, block: int, selected: int, window: int):
        super().__init__()
        for name, value, least in (("selected", selected, 1), ("window", window, 2)):
            if value < least:
                raise ValueError(f"nsa.{name}: {value} with backend: package, which needs at least {least}")
        self.geometry, self.block, self.selected, self.window = geometry, block, selected, window
        self.attention = _build(geometry, block, selected, window)

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        """As `Mechanism.extend`, one token at a time once there is a whole block.

        Until then the state is the tokens themselves, and all of them run again with each call: with no compressed slot
        yet, the package's own decoding leaves its memory slot out, while its whole-sequence run does not.

        Raises:
            ValueError: where there are no hidden states, which the gates need.
        """
        rows = self._rows(x)
        new = rows.shape[1]
        if state is None or "tokens" in state:
            rows = rows if state is None else torch.cat([state["tokens"], rows], dim=1)
            out, cache = self._run(rows)
            after = {"cache": _owned(cache)} if rows.shape[1] >= self.block else {"tokens": rows}
            return out[:, :, -new:].to(x.q.dtype), after
        outs, cache = [], state["cache"]
        for t in range(new):
            out, cache = self._run(rows[:, t : t + 1], cache)
            outs.append(out)
        return torch.cat(outs, dim=2).to(x.q.dtype), {"cache": _owned(cache)}

    def reference(self, x: Inputs) -> Tensor:
        """As `Mechanism.reference`: what the module's docstring says, token by token."""
        q, k, v, gates = *wide(x.q, x.k, x.v), self.attention.to_strategy_combine(self._rows(x))
        slots_k, slots_v = self._slots(k, v)
        outs = [self._token(t, q[:, :, t], k, v, slots_k, slots_v, gates[:, :, t]) for t in range(q.shape[2])]
        return torch.stack(outs, dim=2).to(x.q.dtype)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """As `Mechanism.state_bytes`: the package's cache, or before the first whole block its input rows."""
        g, blocks, rest = self.geometry, length // self.block, length % self.block
        pair = 2 * g.kv_heads * g.head_dim
        waiting = length * (g.hidden + g.heads * g.head_dim + pair)
        return batch * max(dtype.itemsize, 4) * ((length + blocks + rest) * pair if blocks else waiting)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        """As `Mechanism.fit`: sets each head's gates to the constants that bring its output closest to softmax's.

        Each branch is run alone, by gates of almost 1 and almost 0, and least squares finds their weights.
        """
        gate, g = self.attention.to_strategy_combine[0][1], self.geometry
        unused = x.q.new_zeros(x.q.shape[0], x.q.shape[2], g.hidden)
        alone = []
        for only in 80 * torch.eye(len(BRANCHES)) - 40:
            gate.bias.copy_(only.repeat(g.heads))
            alone.append(self.extend(Inputs(x.q, x.k, x.v, unused))[0])
        k, v = repeat_heads(x.k, g.heads), repeat_heads(x.v, g.heads)
        softmax = F.scaled_dot_product_attention(x.q, k, v, is_causal=True, scale=g.scaling)
        branches, target = torch.stack(alone, dim=-1).double(), softmax.double()[..., None]
        by_head = (t.transpose(0, 1).flatten(1, 3) for t in (branches, target))
        gates = torch.linalg.lstsq(*by_head).solution[..., 0]
        gate.bias.copy_(gates.clamp(0.02, 0.98).logit().flatten())

    def _rows(self, x: Inputs) -> Tensor:
        """(B, T, C + (H + 2 G) D): what the package takes as its input, the hidden states with q, k, v beside them."""
        if x.hidden is None:
            raise ValueError("nsa with backend: package needs the layer's hidden states for its gates, there are none")
        q, k, v, hidden = wide(x.q, x.k, x.v, x.hidden)
        q = q * (self.geometry.scaling * self.geometry.head_dim**0.5)  # the package's own scale is head_dim^-0.5
        return torch.cat([hidden, *(t.transpose(1, 2).flatten(2) for t in (q, k, v))], dim=-1)

    def _run(self, rows: Tensor, cache: State = None) -> tuple[Tensor, State]:
        """The package's whole-sequence run, or one decoding step, with its parameters in the precision of the rows."""
        parameters = {name: p.to(rows.dtype) for name, p in self.attention.named_parameters()}
        return functional_call(self.attention, parameters, rows, {"cache": cache, "return_cache": True})

    def _slots(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The memory slot and one slot per whole block, of keys and of values, (B, G, 1 + N, D) each."""
        a, whole = self.attention, k.shape[2] // self.block * self.block
        slots = []
        for t, memory, position, pool in zip(
            (k, v),
            a.compress_mem_kv,
            (a.k_intrablock_positions, a.v_intrablock_positions),
            (a.k_compress, a.v_compress),
            strict=True,
        ):
            blocks = t[:, :, :whole].unflatten(2, (-1, self.block)) + position[:, None]
            slots.append(torch.cat([memory.expand(len(t), -1, -1, -1), pool(blocks)], dim=2))
        return slots[0], slots[1]

    def _token(
        self, t: int, q: Tensor, k: Tensor, v: Tensor, slots_k: Tensor, slots_v: Tensor, gates: Tensor
    ) -> Tensor:
        """The output (B, H, D) of token t.

        Args:
            q: (B, H, D), its query.
            k, v: (B, G, T, D), all tokens.
            slots_k, slots_v: (B, G, 1 + N, D), all slots.
            gates: (B, H, 3), by branch.
        """
        ended = t // self.block
        logits = self._scores(q, slots_k[:, :, : 1 + ended])
        compressed = _mix(logits, slots_v[:, :, : 1 + ended])
        use = self._picks(logits[..., 1:], t).repeat_interleave(self.block, dim=-1)[..., : t + 1]
        own = torch.arange(t + 1, device=k.device) >= ended * self.block
        use = (use | own).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        selected = _mix(self._scores(q, k[:, :, : t + 1]).masked_fill(~use, -torch.inf), v[:, :, : t + 1])
        recent = slice(max(0, t + 1 - self.window), t + 1)
        window = _mix(self._scores(q, k[:, :, recent]), v[:, :, recent])
        return torch.einsum("bhn,nbhd->bhd", gates, torch.stack([compressed, selected, window]))

    def _picks(self, logits: Tensor, t: int) -> Tensor:
        """Which blocks token t reads, (B, G, t // b + 1) bool, from its compressed scores (B, H, t // b)."""
        shared = logits.unflatten(1, (self.geometry.kv_heads, -1)).mean(2)
        scores = F.pad(shared, (1, 0), value=-1e3).softmax(-1)[..., 1:]
        best = scores.topk(min(self.selected, scores.shape[-1]), dim=-1)
        picked = torch.zeros(*scores.shape[:-1], t // self.block + 1, dtype=torch.bool, device=scores.device)
        return picked.scatter(-1, best.indices, best.values > FAINTEST)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """scaling q . k, (B, H, S), of one query per head (B, H, D) and keys (B, G, S, D)."""
        return torch.einsum("bhd,bhsd->bhs", q, repeat_heads(k, q.shape[1])) * self.geometry.scaling


def _mix(scores: Tensor, v: Tensor) -> Tensor:
    """The mean (B, H, D) of values (B, G, S, D) by the softmax of scores (B, H, S)."""
    return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), repeat_heads(v, scores.shape[1]))


def _owned(cache: Any) -> Any:
    """The cache with every tensor on storage of its own, not on the prompt's."""
    if isinstance(cache, tuple):
        return tuple(_owned(c) for c in cache)
    return cache if cache.untyped_storage().nbytes() == cache.nbytes else cache.clone()


class _Columns(nn.Module):
    """The columns start:stop of the package's input rows."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: Tensor) -> Tensor:
        return rows[..., self.start : self.stop]


class _NoRotary(nn.Module):
    """In place of the package's rotary embedding: q and k carry their positions already."""

    def rotate_queries_or_keys(self, t: Tensor, offset: int = 0) -> Tensor:
        return t

    def rotate_queries_with_cached_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


def _build(geometry: Geometry, block: int, selected: int, window: int) -> Any:
    """The package's module without its projections; its input is `PackageNSA._rows`."""
    try:
        from native_sparse_attention_pytorch import SparseAttention
    except ImportError as error:
        raise ValueError(f"nsa.backend: package needs native-sparse-attention-pytorch ({error})") from None
    g = geometry
    gate = nn.Linear(g.hidden, len(BRANCHES) * g.heads)
    nn.init.zeros_(gate.weight)
    gate.bias.data.copy_(torch.tensor(START).logit().repeat(g.heads))
    attention = SparseAttention(
        dim=1,  # of the projections that are taken out below
        dim_head=g.head_dim,
        heads=g.heads,
        kv_heads=g.kv_heads,
        sliding_window_size=window - 1,  # it counts the keys before the token
        compress_block_size=block,
        compress_block_sliding_stride=block,
        selection_block_size=block,
        num_selected_blocks=selected,
        causal=True,
        norm=False,
        compress_mlp=Pool(g.kv_heads, block),
        strategy_combine_mlp=nn.Sequential(_Columns(0, g.hidden), gate),
    )
    attention.to_qkv = _Columns(g.hidden, g.hidden + (g.heads + 2 * g.kv_heads) * g.head_dim)
    attention.rotary_emb = _NoRotary()
    attention.merge_heads = attention.combine_heads = nn.Identity()
    return attention
