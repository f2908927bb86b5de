"""Softmax attention to every s-th token, counted back from the query's own: dense attention within each residue class.

(out, lse) as in `spans`. O(T S / s) time and O(T + S) memory; s = 1 is full attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.ops.softmax import spans
from attnopt.ops.softmax.spans import Part, attend, attend_heads, in_spans
from attnopt.ops.tensors import MASKED, wide


def strided_attention(q: Tensor, k: Tensor, v: Tensor, stride: int, scaling: float) -> Part:
    """Each query attends its own token and those stride, 2 stride, ... before it.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, S, D): the queries' own tokens are the last T.
        stride: s, 1 or more.
        scaling: the factor on q . k.

    Returns: out (B, H, T, D), lse (B, H, T).
    """
    if q.shape[2] == 1:
        k, v = (t[:, :, (t.shape[2] - 1) % stride :: stride] for t in (k, v))
        return attend_heads(q, k, v, q.new_zeros(1, k.shape[2]), scaling)
    q, k, v = wide(q, k, v)
    tokens, padded, group = q.shape[2], -k.shape[2] % stride, (k.shape[1], q.shape[1] // k.shape[1])
    q, k, v = (_fold(x, stride) for x in (q, k, v))
    q, rows, ahead = q.unflatten(1, group).transpose(2, 3), q.shape[3], k.shape[3] - q.shape[3]

    def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return q[..., start:stop, :], k[..., : ahead + stop, :], v[..., : ahead + stop, :]

    def attend_rows(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> Part:
        mask = _mask(stop - start, ahead + stop, stride, padded, q).repeat(1, group[1], 1)
        out, lse = attend(q.flatten(3, 4), k, v, mask, scaling)
        return out.unflatten(3, (group[1], -1)), lse.unflatten(3, (group[1], -1))

    out, lse = in_spans(attend_rows, cut, (q, k, v), rows, max(1, spans.QUERY_SPAN // stride), dim=4)
    return _unfold(out, tokens), _unfold(lse, tokens)


def _fold(x: Tensor, stride: int) -> Tensor:
    """x (B, G, T, D) by residue class of the position, (B, G, stride, rows, D), with padding in front of the first."""
    return F.pad(x, (0, 0, -x.shape[2] % stride, 0)).unflatten(2, (-1, stride)).transpose(2, 3)


def _unfold(x: Tensor, tokens: int) -> Tensor:
    """The inverse of `_fold` for R query heads per group: (B, G, stride, R, rows, ...) to (B, G R, T, ...)."""
    x = x.movedim(2, 4).flatten(3, 4).flatten(1, 2)
    return x[:, :, x.shape[2] - tokens :]


def _mask(rows: int, count: int, stride: int, padded: int, like: Tensor) -> Tensor:
    """The mask of `rows` queries over `count` keys of each residue class, (stride, rows, count).

    The last query of a class sees all its keys, but for those that are padding, which the first `padded` classes have
    one of.
    """
    mask = torch.full((rows, count), MASKED, dtype=like.dtype, device=like.device).triu(count - rows + 1)
    mask = mask.repeat(stride, 1, 1)
    mask[:padded, :, 0] = MASKED
    return mask
