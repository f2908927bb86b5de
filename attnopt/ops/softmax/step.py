"""One decoding step against tokens that lie in memory: one kernel reads them where they are.

A window's last tokens and its sinks lie in one memory (`ops/growing.Tokens`), what was dropped between them hidden by a
mask, so a step copies nothing, gathers nothing and merges nothing. Shapes as in mechanisms/base.py.
"""

import torch
from torch import Tensor

from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.spans import Part
from attnopt.ops.window_state import WindowState


def reads_memory(q: Tensor, kept: WindowState, *parameters: Tensor) -> bool:
    """Whether these functions can: a single token in at least float32 on a CPU, and nobody wants gradients.

    Args:
        parameters: what the mask is made of.
    """
    return isinstance(kept.last_k, Tokens) and reads_tokens(q, kept.last_k, *parameters)


def reads_tokens(q: Tensor, k: Tokens, *parameters: Tensor) -> bool:
    """As `reads_memory`, of the memory that holds the keys k."""
    if q.shape[2] != 1 or not q.is_cpu or q.dtype not in (torch.float32, torch.float64) or k.stretch.dtype != q.dtype:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k.stretch, *parameters)))


def attend_memory(q: Tensor, kept: WindowState, window: int, scaling: float) -> Part:
    """Attention of one query to the last `window` tokens and to the first ones, each once.

    Args:
        q: (B, H, 1, D), whose own token is the last that is kept.
        kept: with that token appended just now, not cut yet.
        window: how many last tokens it reads.
        scaling: the factor on q . k.

    Returns: out (B, H, 1, D), lse (B, H, 1).
    """
    assert isinstance(kept.last_k, Tokens)
    return attend_rows(q, *kept.stretches, kept.last_k.hidden(window), scaling)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Part:
    """Attention of one query per head to all keys: the heads that share a key stand beside each other as its rows.

    Args:
        q: (B, H, 1, D). k, v: (B, G, S, D), their last dimension dense.
        mask: added to the scores, (S,) for all, or (B, G, R, S); None for nothing.
        scaling: the factor on q . k.

    Returns: out (B, H, 1, D), lse (B, H, 1).
    """
    batch, heads, _, dim = q.shape
    groups = k.shape[1]
    rows = q.reshape(batch, groups, heads // groups, dim)
    bias = mask[None, None, None] if mask is not None and mask.dim() == 1 else mask
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(rows, k, v, attn_mask=bias, scale=scaling)
    return out.reshape(batch, heads, 1, dim), lse.reshape(batch, heads, 1)
