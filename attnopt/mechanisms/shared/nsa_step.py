"""One decoding step of native sparse attention: each branch reads the state where it lies. Shapes as in nsa_native."""

import torch
from torch import Tensor

from attnopt.ops.growing import Tokens
from attnopt.ops.nsa.slots import Layout, best_slots
from attnopt.ops.softmax.spans import merge
from attnopt.ops.softmax.step import attend_rows
from attnopt.ops.tensors import MASKED


def attend_step(
    q: Tensor, kept: tuple[Tokens, ...], layout: Layout, picks: int, mass: Tensor, scaling: float
) -> Tensor:
    """The output (B, H, 1, D) of one query with all three branches, merged by their total weights.

    Args:
        q: (B, H, 1, D).
        kept: keys and values of all tokens, the query's own too, and those of the complete blocks' slots.
        layout: where the query stands, with one far block at least.
        picks: P, 1 or more.
        mass: (H,) what is added to a slot's score.
        scaling: the factor on q . k.
    """
    far, size = layout.far(0), layout.size
    k, v, slot_k, slot_v = (tokens.tensor for tokens in kept)
    slot_k, slot_v = slot_k[:, :, :far], slot_v[:, :, :far]
    near = attend_rows(q, k[:, :, far * size :], v[:, :, far * size :], None, scaling)
    (batch, groups), heads = slot_k.shape[:2], q.shape[1]
    rows = q.reshape(batch, groups, heads // groups, -1)
    scores = rows @ slot_k.mT * scaling
    picked = best_slots(scores.flatten(0, 1)[:, :, None], picks)[:, 0].view(batch, groups, -1)
    drop = torch.zeros_like(scores[:, :, :1]).scatter_(3, picked.clamp(min=0)[:, :, None], MASKED)
    bias = drop + mass.view(groups, -1, 1)
    compressed = attend_rows(q, slot_k, slot_v, bias, scaling)
    tokens = (picked.clamp(min=0)[..., None] * size + torch.arange(size, device=q.device)).flatten(2)
    index = tokens[..., None].expand(-1, -1, -1, q.shape[3])
    none = (picked < 0)[..., None].expand(-1, -1, -1, size).flatten(2)[:, :, None].to(q) * MASKED
    selected = attend_rows(q, k.gather(2, index), v.gather(2, index), none, scaling)
    return merge(near, selected, compressed)[0]
