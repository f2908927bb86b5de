"""MoBA: each query reads its own block, and in full the few blocks before it whose mean key it likes best.

Positions are cut into blocks of n tokens. Of the complete blocks before its own, query t picks the p with the largest

    q_t . mean of k_s over the block

by itself, other heads of its group notwithstanding, and attends in one softmax to all their tokens and to those of its
own block, up to itself. The earliest blocks are picked where several are equal; the first `sinks` blocks always are.

Source: Lu et al. 2025, where the own block is one of the p; there trained, here on the teacher's own keys and values.
Approximated: tokens of blocks that are not picked have no weight. Start: the scores are the teacher's own, there is
nothing to fit and nothing to train; but a pretrained model leans on its first tokens, which a mean key does not show,
so that without sinks it is lost. With rotary positions keys are averaged as they come, rotated.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.nsa.picked import picked_attention
from attnopt.ops.softmax.blocks import own_block_attention
from attnopt.ops.softmax.spans import Part, merge, zero_empty
from attnopt.ops.tensors import own_copy, repeat_heads, wide


class MobaState(NamedTuple):
    """All tokens so far, and the means of complete blocks.

    Attributes:
        k: (B, G, S, D) keys of the tokens.
        v: (B, G, S, D) their values.
        means: (B, G, N, D) the mean key of each complete block, in at least float32.
    """

    k: Tokens
    v: Tokens
    means: Tokens


class Moba(Mechanism):
    source = "https://arxiv.org/abs/2502.13189"
    paper = "Lu et al. 2025"
    growth = "linear"
    cost = "((selected + 1) block + S / block) D"

    class Options(MechanismOptions):
        block: Annotated[int, Field(ge=1)] = 16
        """n: tokens whose keys are averaged, and that are read together."""
        selected: Annotated[int, Field(ge=0)] = 3
        """p: blocks that a query reads besides its own."""
        sinks: Annotated[int, Field(ge=0)] = 1
        """Of these p, how many are the first blocks of the sequence, whatever a query likes; 0 in the paper."""
        branches: Literal["both", "window", "far"] = "both"
        """Only the own block (window) or only those that are picked (far; zero where there are none), to see what each
        does."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        if options.sinks > options.selected:
            raise ValueError(f"sinks: {options.sinks} are more blocks than are selected, {options.selected}")
        self.normalised = options.branches != "far"

    def extend(self, x: Inputs, state: MobaState | None = None) -> tuple[Tensor, State]:
        size, seen = self.options.block, 0 if state is None else state.k.count
        after, start = self._grown(x, state), seen // size * size
        parts = []
        if self.options.branches != "far":
            near_k, near_v = (t.tensor[:, :, start:] for t in (after.k, after.v))
            parts.append(own_block_attention(x.q, near_k, near_v, size, self.geometry.scaling))
        far = self.options.branches != "window" and self.options.selected > 0
        if far and seen + x.q.shape[2] > size:
            parts.append(self._far(x.q, after, seen))
        out = zero_empty(*merge(*parts)) if parts else x.q * 0
        return out.to(x.q.dtype), after

    def _grown(self, x: Inputs, state: MobaState | None) -> MobaState:
        """The state after the new tokens."""
        if state is None:
            k, v, means = Tokens(own_copy(x.k)), Tokens(own_copy(x.v)), Tokens(own_copy(wide(x.k[:, :, :0])[0]))
        else:
            k, v, means = state.k.append(x.k), state.v.append(x.v), state.means
        done, full = (n * self.options.block for n in (means.count, k.count // self.options.block))
        if full > done:
            (new,) = wide(k.tensor[:, :, done:full].detach())  # a choice has no gradient
            means = means.append(new.unflatten(2, (-1, self.options.block)).mean(3))
        return MobaState(k, v, means)

    def _far(self, q: Tensor, state: MobaState, seen: int) -> Part:
        """Attention of each query to the blocks that it picks; the heads of a group stand as if they were queries.

        Args:
            q: (B, H, T, D).
            state: the tokens, the queries' own included.
            seen: the position of the first query.
        """
        size, (batch, heads, tokens, dim), groups = self.options.block, q.shape, state.k.tensor.shape[1]
        whole = state.means.count * size
        rows = wide(q)[0].reshape(batch * groups, 1, -1, dim) * self.geometry.scaling
        k, v = (t.tensor[:, :, :whole].flatten(0, 1) for t in (state.k, state.v))
        picks = self._picks(q, state.means.tensor, seen)
        out, lse = picked_attention(rows, k, v, picks.reshape(len(rows), rows.shape[2], -1), size)
        return out.view(batch, heads, tokens, dim), lse.view(batch, heads, tokens)

    @torch.no_grad()
    def _picks(self, q: Tensor, means: Tensor, seen: int) -> Tensor:
        """The blocks (B, H, T, P) that each query reads besides its own, -1 where there are fewer than P.

        Args:
            q: (B, H, T, D).
            means: (B, G, N, D).
            seen: the position of the first query.
        """
        (q,), size, count = wide(q), self.options.block, means.shape[2]
        group, step = (means.shape[1], -1), max(16, 2 * q.shape[2] * q.shape[3] // count)  # scores no larger than 2 q
        picks = []
        for start, part in zip(range(0, q.shape[2], step), q.split(step, 2), strict=True):
            position = torch.arange(seen + start, seen + start + part.shape[2], device=q.device)
            unread = torch.arange(count, device=q.device) >= (position // size)[:, None]
            scores = part.unflatten(1, group) @ means[:, :, None].mT
            scores[..., : self.options.sinks] = torch.inf
            scores = scores.masked_fill_(unread, -torch.inf)
            best = scores.sort(dim=-1, descending=True, stable=True)
            few = best.values[..., : self.options.selected] == -torch.inf
            picks.append(best.indices[..., : self.options.selected].masked_fill(few, -1).flatten(1, 2))
        return torch.cat(picks, 2)

    def reference(self, x: Inputs) -> Tensor:
        size, (heads, tokens), outs = self.options.block, x.q.shape[1:3], []
        k, v = repeat_heads(x.k, heads), repeat_heads(x.v, heads)
        for t in range(tokens):
            own = t // size
            seen = torch.arange(t + 1).expand(*x.q.shape[:2], -1) >= own * size
            seen = seen & (self.options.branches != "far")
            if own and self.options.selected and self.options.branches != "window":
                means = torch.stack([k[:, :, b * size : (b + 1) * size].mean(2) for b in range(own)], 2)
                liked = torch.einsum("bhd,bhnd->bhn", x.q[:, :, t], means)
                liked = torch.where(torch.arange(own) < self.options.sinks, torch.inf, liked)
                for b in liked.argsort(dim=-1, descending=True, stable=True)[..., : self.options.selected].unbind(-1):
                    seen = seen | (torch.arange(t + 1) // size == b[..., None])
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1) if seen.any() else scores * 0
            outs.append(torch.einsum("bhs,bhsd->bhd", weights, v[:, :, : t + 1]))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        numbers = 2 * length * dtype.itemsize + length // self.options.block * max(dtype.itemsize, 4)
        return batch * self.geometry.kv_heads * self.geometry.head_dim * numbers

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(block=8, selected=length // 8, sinks=0)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "small": cls.Options(block=3, selected=2, sinks=0),
            "sinks": cls.Options(block=4, selected=3, sinks=2),
            "own block": cls.Options(block=7, branches="window"),
            "far": cls.Options(block=5, selected=2, sinks=0, branches="far"),
        }
