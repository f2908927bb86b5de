"""Softmax over what a window remembers: the last tokens and the first ones ("sinks"), for any number of queries."""

from torch import Tensor

from attnopt.ops.softmax.band import Prefix, band_attention
from attnopt.ops.softmax.spans import Part
from attnopt.ops.softmax.step import attend_memory, reads_memory
from attnopt.ops.window_state import WindowState


def window_attention(q: Tensor, kept: WindowState, window: int, scaling: float) -> Part:
    """Each query attends its own token, the window - 1 before it, and the first tokens, each once.

    Args:
        q: (B, H, T, D), whose own tokens are the last T that are kept.
        kept: with these tokens appended, not cut yet.
        window: 1 or more.
        scaling: the factor on q . k.

    Returns: out (B, H, T, D), lse (B, H, T).
    """
    if reads_memory(q, kept):
        return attend_memory(q, kept, window, scaling)
    beyond = kept.first and kept.seen > window
    prefix = Prefix(kept.first_k, kept.first_v, kept.seen - q.shape[2], gap=window) if beyond else None
    return band_attention(q, kept.k, kept.v, window, scaling, prefix=prefix)
