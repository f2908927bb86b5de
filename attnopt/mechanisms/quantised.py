"""Softmax whose keys and values are kept as integers of 8 or 4 bits: what most people do about a large cache.

Positions are cut into blocks of n tokens. When a block is complete its tokens are rounded, for all later queries, each
group of numbers to a grid of 2^bits levels from its least to its largest number:

    keys     per channel: the n numbers of a channel of the block are a group
    values   per token: `group` neighbouring numbers of a token are one

Query t attends, in one softmax, to the rounded tokens of complete blocks and, as they came, to those of its own block
up to itself. A block is rounded by its own numbers alone, after its last query. Levels are kept packed in bytes, and a
group's lowest level and step in float16.

With `rotate` keys are multiplied by a Hadamard matrix before they are rounded, and queries with them, which changes no
product and spreads what is large in one channel over all.

Source: Liu et al. 2024 (KIVI). Approximated: the numbers of complete blocks, by at most half a step. Start: nothing is
fitted or trained, the grid comes with the tokens. Rounding has no gradient: what there is flows through the queries and
the tokens of their own blocks.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.integers import Grid, from_levels, grid_of, hadamard, pack, to_levels, unpack
from attnopt.ops.softmax.blocks import earlier_blocks_attention, own_block_attention
from attnopt.ops.softmax.spans import merge
from attnopt.ops.tensors import own_copy, repeat_heads, wide


class Packed(NamedTuple):
    """The state: N complete blocks of n tokens as integers, and the m < n tokens of the open block.

    Attributes:
        k: (B, G, N n, D bits / 8) levels of the keys, uint8.
        k_grid: (B, G, N, 2 D) lowest level and step of each channel of each block, float16.
        v: (B, G, N n, D bits / 8) levels of the values.
        v_grid: (B, G, N n, 2 D / group) lowest level and step of each group of each token.
        tail_k: (B, G, m, D) keys of the open block as they came, rotated where keys are.
        tail_v: (B, G, m, D) their values.
    """

    k: Tokens
    k_grid: Tokens
    v: Tokens
    v_grid: Tokens
    tail_k: Tensor
    tail_v: Tensor


class Quantised(Mechanism):
    source = "https://arxiv.org/abs/2402.02750"
    paper = "Liu et al. 2024"
    growth = "linear"
    cost = "S D"

    class Options(MechanismOptions):
        bits: Literal[8, 4] = 8
        """Of a number in a complete block."""
        block: Annotated[int, Field(ge=1)] = 64
        """n: tokens that are rounded together, channel by channel in the keys; until then they stay as they are."""
        group: Annotated[int, Field(ge=1)] = 32
        """Neighbouring numbers of a value that share a grid; all of them, in a head that has fewer."""
        rotate: bool = False
        """Whether keys are rotated by a Hadamard matrix before they are rounded."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.group, dim = min(options.group, geometry.head_dim), geometry.head_dim
        if dim % self.group:
            raise ValueError(f"group: {options.group} does not divide the heads' width, {dim}")
        if options.bits == 4 and dim % 2:
            raise ValueError(f"bits: 4 are packed two to a byte, and the heads' width, {dim}, is odd")
        if options.rotate and dim & (dim - 1):
            raise ValueError(f"rotate: true is for heads whose width is a power of two, and it is {dim}")

    def extend(self, x: Inputs, state: Packed | None = None) -> tuple[Tensor, State]:
        q, k = self._rotated(x.q), self._rotated(x.k)
        old, size, scaling = state or self._empty(k, x.v), self.options.block, self.geometry.scaling
        k, v = torch.cat([old.tail_k, k], 2), torch.cat([old.tail_v, x.v], 2)
        part = own_block_attention(q, k, v, size, scaling)
        done = k.shape[2] - k.shape[2] % size
        after = self._packed(old, k[:, :, :done], v[:, :, :done]) if done else old
        if after.k.count:
            seen = old.k.count + old.tail_k.shape[2]
            part = merge(part, earlier_blocks_attention(q, *self.unpacked(after, q), seen, size, size, scaling))
        tails = own_copy(k[:, :, done:]), own_copy(v[:, :, done:])
        return part[0].to(x.q.dtype), after._replace(tail_k=tails[0], tail_v=tails[1])

    def _rotated(self, x: Tensor) -> Tensor:
        """x (..., D), rotated where the options say so, in at least float32 then."""
        if not self.options.rotate:
            return x
        (x,) = wide(x)
        return x @ hadamard(x.shape[-1], x)

    def _empty(self, k: Tensor, v: Tensor) -> Packed:
        """The state before the first token."""
        dim, (batch, heads) = k.shape[3], k.shape[:2]
        widths = {"k": dim * self.options.bits // 8, "k_grid": 2 * dim}
        widths |= {"v": widths["k"], "v_grid": 2 * dim // self.group}
        kinds = {"k": torch.uint8, "k_grid": torch.half, "v": torch.uint8, "v_grid": torch.half}
        parts = {n: Tokens(k.new_zeros(batch, heads, 0, widths[n], dtype=kinds[n])) for n in widths}
        return Packed(**parts, tail_k=own_copy(k[:, :, :0]), tail_v=own_copy(v[:, :, :0]))

    def _packed(self, old: Packed, k: Tensor, v: Tensor) -> Packed:
        """The state with more complete blocks, k and v (B, G, N n, D)."""
        bits = self.options.bits
        k, v = k.unflatten(2, (-1, self.options.block)), v.unflatten(3, (-1, self.group))
        k_grid, v_grid = grid_of(k, 3, bits), grid_of(v, 4, bits)
        return old._replace(
            k=old.k.append(pack(to_levels(k, k_grid, bits).flatten(2, 3), bits)),
            k_grid=old.k_grid.append(torch.cat(k_grid, 4).squeeze(3)),
            v=old.v.append(pack(to_levels(v, v_grid, bits).flatten(3, 4), bits)),
            v_grid=old.v_grid.append(torch.cat(v_grid, 4).flatten(3, 4)),
        )

    def unpacked(self, state: Packed, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, N n, D) of the complete blocks of a state, as precise as `like` and float32 at least.

        Keys are as they were rounded: rotated, where they are.
        """
        bits, dtype = self.options.bits, wide(like)[0].dtype
        k_grid = Grid(*state.k_grid.tensor[:, :, :, None].chunk(2, dim=4))
        v_grid = Grid(*state.v_grid.tensor.unflatten(3, (-1, 2)).split(1, dim=4))
        k = from_levels(unpack(state.k.tensor, bits).unflatten(2, (-1, self.options.block)), k_grid, dtype)
        v = from_levels(unpack(state.v.tensor, bits).unflatten(3, (-1, self.group)), v_grid, dtype)
        return k.flatten(2, 3), v.flatten(3, 4)

    def reference(self, x: Inputs) -> Tensor:
        size, (heads, tokens) = self.options.block, x.q.shape[1:3]
        turn = hadamard(x.q.shape[3], x.q) if self.options.rotate else torch.eye(x.q.shape[3]).to(x.q)
        q, k = x.q @ turn, x.k @ turn
        outs, rounded_k, rounded_v = [], [], []
        for t in range(tokens):
            start = t - t % size
            if t and t == start:
                rounded_k.append(self._rounded(k[:, :, t - size : t], 2))
                each = [self._rounded(part, 3) for part in x.v[:, :, t - size : t].split(self.group, 3)]
                rounded_v.append(torch.cat(each, 3))
            keys = repeat_heads(torch.cat([*rounded_k, k[:, :, start : t + 1]], 2), heads)
            values = repeat_heads(torch.cat([*rounded_v, x.v[:, :, start : t + 1]], 2), heads)
            scores = torch.einsum("bhd,bhsd->bhs", q[:, :, t], keys) * self.geometry.scaling
            outs.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values))
        return torch.stack(outs, dim=2)

    def _rounded(self, x: Tensor, dim: int) -> Tensor:
        """Each number of x at the nearest level of the grid of its group, which lies along `dim`."""
        low, step = (t.to(x.dtype) for t in grid_of(x, dim, self.options.bits))
        levels = low[..., None] + step[..., None] * torch.arange(2.0**self.options.bits).to(x)
        nearest = (x.detach()[..., None] - levels).abs().argmin(-1, keepdim=True)
        return levels.expand(*x.shape, -1).gather(-1, nearest)[..., 0]

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        dim, size, bits = self.geometry.head_dim, self.options.block, self.options.bits
        tail = length % size
        done, half = length - tail, torch.half.itemsize
        tail_k = max(dtype.itemsize, 4) if self.options.rotate else dtype.itemsize
        levels = done * 2 * dim * bits // 8
        grids = (done // size * 2 * dim + done * 2 * dim // self.group) * half
        return batch * self.geometry.kv_heads * (levels + grids + tail * dim * (tail_k + dtype.itemsize))

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(block=length)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "4 bits": cls.Options(bits=4, block=8, group=4),
            "rotated": cls.Options(bits=4, block=16, rotate=True),
        }
