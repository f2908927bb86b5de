"""Softmax attention over a band of recent tokens: query t reads the tokens t - window < s <= t.

Queries are cut into blocks of BLOCK; a block is one dense attention to the stretch of keys that its windows cover, with
what lies outside a query's window masked. Where autograd is not recording, CPU scores are never materialised (PyTorch's
flash kernel); otherwise they take T (window + BLOCK) entries.

Every function returns a `Part`, see `spans`. Shapes as in `mechanisms.base`; M query rows, K keys.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.ops import dispatch
from attnopt.ops.softmax.spans import BLOCK, Part, attend, in_spans, merge
from attnopt.ops.tensors import MASKED, wide


@dataclass(frozen=True)
class Prefix:
    """The first tokens of the sequence ("sinks", Xiao et al. 2024), attended next to a band.

    Attributes:
        k: (B, G, f, D) keys of the sequence's first f tokens.
        v: (B, G, f, D) their values.
        start: position in the sequence of the first query.
        gap: a query sees only first tokens at least this far back; the band's window keeps the two apart.
        bias: (H or 1, f) added to the scores.
    """

    k: Tensor
    v: Tensor
    start: int
    gap: int = 0
    bias: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Its tensors, which have gradients: k, v and, where there is one, bias."""
        return (self.k, self.v) if self.bias is None else (self.k, self.v, self.bias)

    def attend(self, q: Tensor, at: int, scaling: float) -> Part:
        """Attention of queries to these tokens alone.

        Scores are laid out (..., f, T), as reductions over a few keys are fast only where the queries lie side by side.

        Args:
            q: (B, H, T, D).
            at: how many queries come before the first of these.
            scaling: the factor on q . k.

        Returns: out (B, H, T, D), lse (B, H, T).
        """
        q, k, v = wide(q, self.k, self.v)
        group, position = (k.shape[1], q.shape[1] // k.shape[1]), torch.arange(q.shape[2], device=q.device)
        hidden = position + self.start + at - torch.arange(k.shape[2], device=q.device)[:, None] < self.gap
        scores = (k * scaling) @ q.unflatten(1, group).flatten(2, 3).mT
        scores = scores.unflatten(3, (group[1], -1)).transpose(2, 3).flatten(1, 2)
        scores = scores if self.bias is None else scores + self.bias[..., None]
        scores = scores.masked_fill(hidden, MASKED)
        lse = scores.logsumexp(2)
        p = (scores - lse.unsqueeze(2)).exp().mT
        return (p.unflatten(1, group).flatten(2, 3) @ v).unflatten(2, (group[1], -1)).reshape(q.shape), lse


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scaling: float,
    *,
    bias: Tensor | None = None,
    prefix: Prefix | None = None,
) -> Part:
    """Each query attends its own token and the window - 1 before it: O(T (window + BLOCK)) time, O(T) memory.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, P + T, D): the queries' own tokens are the last T, behind P past ones. Query t attends the window
            that ends with key P + t. P may be negative: then the first -P queries have no key, as where the distances
            of a band begin above 0 (`masks`).
        window: how many keys a query attends at most, 1 or more.
        scaling: the factor on q . k.
        bias: (H or 1, window), added to the scores by distance: bias[:, o] for the key o tokens back. MASKED or less
            takes a distance out. Differentiable.
        prefix: the sequence's first tokens, joined under the same softmax.
    Returns: out (B, H, T, D), lse (B, H, T). A row without keys has an lse of about MASKED and a meaningless out.
    """
    if dispatch.ON and dispatch.BAND.serves(q):
        return dispatch.BAND(q, k, v, window, scaling, bias=bias, prefix=prefix)
    past = k.shape[2] - q.shape[2]
    q, k, v = wide(q, k, v)
    window = min(window, k.shape[2])
    bias = q.new_zeros(1, window) if bias is None else bias.to(q.dtype)[:, :window]
    mask = _band_mask(bias, min(BLOCK, q.shape[2])).expand(q.shape[1], -1, -1)
    lead = mask.shape[2] - mask.shape[1]

    def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        reach = slice(max(0, past + start - lead), max(0, past + stop))
        return q[:, :, start:stop], k[:, :, reach], v[:, :, reach], *others

    def attend_span(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *first: Tensor) -> Part:
        part = _blocks(q, k, v, min(past + start, lead), mask, scaling)
        if prefix is None:
            return part
        own = replace(prefix, k=first[0], v=first[1], bias=first[2] if len(first) > 2 else None)
        return merge(part, own.attend(q, start, scaling))

    others = () if prefix is None else prefix.tensors()
    return in_spans(attend_span, cut, (q, k, v, mask, *others), q.shape[2])


def _band_mask(bias: Tensor, block: int) -> Tensor:
    """The bias of each query of a block against the stretch of keys that ends with the block, (H or 1, block, K).

    K is a multiple of 16, for which the CPU kernels are fastest.

    Args:
        bias: (H or 1, window), by distance.
        block: queries in a block.
    """
    width = bias.shape[1]
    count = block + width - 1
    count += -count % 16 if block > 1 else 0
    index = torch.arange(count, device=bias.device)
    distance = torch.arange(block, device=bias.device)[:, None] + count - block - index
    inside = (distance >= 0) & (distance < width)
    return bias[:, distance.clamp(0, width - 1)].masked_fill(~inside, MASKED)


def _blocks(q: Tensor, k: Tensor, v: Tensor, at: int, mask: Tensor, scaling: float) -> Part:
    """Attention of a span of queries, all blocks of it at once.

    Args:
        q: (B, H, S, D).
        k, v: (B, G, ., D), the keys that the span's windows cover.
        at: where in k the first query's own token stands.
        mask: (H, block, K) of `_band_mask`.
    """
    (batch, heads, span, dim), groups = q.shape, k.shape[1]
    block, count = mask.shape[1:]
    blocks, lead = -(-span // block), count - block
    k, v = (_stretch(x, at - lead, at + blocks * block).unfold(2, count, block).mT for x in (k, v))
    shape = (batch, groups, heads // groups, blocks, block)
    q = F.pad(q, (0, 0, 0, blocks * block - span)).view(*shape, dim).transpose(2, 3).flatten(3, 4)
    mask = mask.reshape(groups, 1, -1, count)
    if at < lead:
        index = (
            torch.arange(blocks, device=q.device)[:, None] * block + torch.arange(count, device=q.device) + at - lead
        )
        mask = mask + torch.zeros_like(index, dtype=q.dtype).masked_fill(index < 0, MASKED)[:, None]
    out, lse = attend(q, k, v, mask[None], scaling)
    out, lse = (x.unflatten(3, shape[2::2]).transpose(2, 3).reshape(batch, heads, -1, *x.shape[4:]) for x in (out, lse))
    return out[:, :, :span], lse[:, :, :span]


def _stretch(x: Tensor, start: int, stop: int) -> Tensor:
    """x[:, :, start:stop] for any start and stop, with zeros where they lie beyond either end of x."""
    ends = (min(stop, 0) - min(start, 0), max(stop, x.shape[2]) - max(start, x.shape[2]))
    x = x[:, :, max(start, 0) : max(stop, 0)]
    return F.pad(x, (0, 0, *ends)) if any(ends) else x  # padding by nothing copies
