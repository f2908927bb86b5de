"""The circuit that copies, set by hand in the grown teacher so that training only has to tune it.

Induction (Olsson et al. 2022, arXiv:2209.11895) takes two layers that are of no use one without the other, so that
small models wait long for it. Here both begin in place. Positions carry `waves`, w_t: cosines and sines of many
frequencies, so that a rotation R turns w_t into w_{t-1}. The heads of a first layer, one for each offset j,

    attend from t to t - j     q_t . k_s = gain (R^j w_t) . w_s
    and write A_j x_{t-j}      A_{j+1} = Q A_j, Q orthogonal, A_1 a random projection of whitened embeddings,

so that the stream holds u_t = sum_j A_j x_{t-j}, the last few tokens in their order. One head of a later layer attends
from t to the token that followed the same tokens before, and writes it:

    q_t = A_1 x_t + Q u_t = u_{t+1},     k_s = u_s,     v_s = x_s
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WAVE_NORM = 1.5
SHIFT_GAIN, MATCH_GAIN = 3.0, 2.0
MEMORY_NORM, COPY_NORM = 0.3, 0.5


@dataclass(frozen=True)
class Circuit:
    """Directions in the stream (width C) and maps of a head (width D).

    Attributes:
        waves: (length, C) what is added to the positions' embeddings. frame: (D, C) orthonormal, what they span,
            D / 2 cosines and then as many sines. turns: (D / 2,) the angle of each between neighbours.
        read: (C, D) A_1. turn: (D, D) Q. memory: (D, C) orthonormal, where u_t lies in the stream.
    """

    waves: Tensor
    frame: Tensor
    turns: Tensor
    read: Tensor
    turn: Tensor
    memory: Tensor


def make_circuit(embeddings: Tensor, length: int, head_dim: int) -> Circuit:
    """Draw a circuit from torch's generator; where the embeddings (V, C) vary little, its signals lie."""
    centred = embeddings - embeddings.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    spread = spread / len(embeddings) ** 0.5
    frame, memory, kept = axes[-head_dim:].flip(0), axes[-2 * head_dim : -head_dim], axes[:-head_dim]
    n = head_dim // 2
    turns = math.pi * (torch.arange(n) + torch.rand(n)) / n
    turns[: n // 4] = float(length) ** (-torch.arange(n // 4) / (n // 4))
    angle = torch.arange(length)[:, None] * turns
    waves = torch.cat([angle.cos(), angle.sin()], 1) @ frame * (WAVE_NORM / n**0.5)
    mix = torch.linalg.qr(torch.randn(len(kept), head_dim))[0]
    read = kept.T / spread[: len(kept)] @ mix / head_dim**0.5
    return Circuit(waves, frame, turns, read, torch.linalg.qr(torch.randn(head_dim, head_dim))[0], memory)


def plant_shifts(block: Any, circuit: Circuit, heads: int) -> None:
    """Head j of a GPT-2 block attends j + 1 tokens back and writes A_{j+1} of what stands there; its MLP is silent."""
    for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
        layer.weight.zero_()
        layer.bias.zero_()
    width = circuit.read.shape[0]
    dim = width // heads
    cosines, sines = circuit.frame.chunk(2)
    attn, read = block.attn, circuit.read
    for j in range(heads):
        angle = (j + 1) * circuit.turns[:, None]
        q = torch.cat([cosines * angle.cos() + sines * angle.sin(), sines * angle.cos() - cosines * angle.sin()])
        part = slice(j * dim, (j + 1) * dim)
        gain = (SHIFT_GAIN * dim**0.5) ** 0.5
        attn.c_attn.weight[:, :width][:, part] = q.T * gain
        attn.c_attn.weight[:, width : 2 * width][:, part] = circuit.frame.T * gain
        attn.c_attn.weight[:, 2 * width :][:, part] = read
        attn.c_proj.weight[part] = MEMORY_NORM * circuit.memory
        read = read @ circuit.turn.T


def plant_match(block: Any, circuit: Circuit, head: int, heads: int) -> None:
    """One head of a GPT-2 block attends to what followed the same tokens before, and writes it."""
    width = circuit.read.shape[0]
    dim = width // heads
    part = slice(head * dim, (head + 1) * dim)
    scale = block.ln_1.weight[:, None]
    maps = ((circuit.read + circuit.memory.T @ circuit.turn.T) * MATCH_GAIN, circuit.memory.T, circuit.read)
    for i, weight in enumerate(maps):
        block.attn.c_attn.weight[:, i * width : (i + 1) * width][:, part] = weight / scale
        block.attn.c_attn.bias[i * width : (i + 1) * width][part] = -(block.ln_1.bias @ (weight / scale))
    block.attn.c_proj.weight[part] = COPY_NORM * circuit.read.T


def match_loss(block: Any, hidden: Tensor, head: int, sources: Tensor) -> Tensor:
    """Mean negative log weight of a GPT-2 block's head on `sources`, in nats.

    Args:
        hidden: (B, T, C) what enters the block.
        sources: (B, T) the token that each is to attend to, -1 for none.
    """
    attn = block.attn
    part = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
    x = block.ln_1(hidden)
    q, k = (
        F.linear(x, attn.c_attn.weight[:, start:][:, part].T, attn.c_attn.bias[start:][part])
        for start in (0, attn.embed_dim)
    )
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    scores = (q @ k.mT * attn.head_dim**-0.5).float().masked_fill(future, -torch.inf)
    found = scores.gather(2, sources.clamp(min=0)[..., None])[..., 0] - scores.logsumexp(-1)
    asked = sources >= 0
    return -(found * asked).sum() / asked.sum().clamp(min=1)
