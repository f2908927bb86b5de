"""What a layer tells its mechanism: once about itself (`Geometry`), and the new tokens of a call (`Inputs`).

The letters in the shapes are those of `attnopt.mechanisms.base`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a layer tells its mechanism about itself.

    Attributes:
        heads: H, the number of query heads.
        kv_heads: G, the number of key/value heads; a divisor of H.
        head_dim: D.
        hidden: C, the width of the model.
        scaling: the factor on q . k before the softmax; D^-0.5 in most models, but not in all.
        layer: the layer's index in the model, counted from 0.
        rotary: whether q and k arrive with rotary positions applied.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    scaling: float
    layer: int = 0
    rotary: bool = False


@dataclass(frozen=True)
class Inputs:
    """The new tokens of one layer.

    Attributes:
        q: (B, H, T, D) queries.
        k: (B, G, T, D) keys; the heads are not repeated for the query heads that share them.
        v: (B, G, T, D) values.
        hidden: (B, T, C) the layer's input, for mechanisms with gates; None where nobody has it.
        keep: (B, T) bool, False where a token is padding; None where none is.

    Example: two sequences of five tokens, four query heads of width 8 on two key/value heads.

        >>> import torch
        >>> x = Inputs(torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8))
        >>> x.slice(3).k.shape  # the last two tokens
        torch.Size([2, 2, 2, 8])
        >>> x.map(lambda t, time: t.flip(time)).q.shape  # each tensor with the dimension that counts its tokens
        torch.Size([2, 4, 5, 8])
    """

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None = None
    keep: Tensor | None = None

    def map(self, f: Callable[[Tensor, int], Tensor]) -> "Inputs":
        """New inputs of f(tensor, dim) for q, k, v and hidden, where `dim` is the dimension that counts the tokens.

        `keep` is dropped, as f may well change the tokens that it speaks of.
        """
        hidden = None if self.hidden is None else f(self.hidden, 1)
        return Inputs(f(self.q, 2), f(self.k, 2), f(self.v, 2), hidden)

    def slice(self, start: int | None = None, stop: int | None = None) -> "Inputs":
        """The tokens start:stop of every tensor, `keep` included; start and stop as in a Python slice."""
        part = self.map(lambda t, dim: t[(slice(None),) * dim + (slice(start, stop),)])
        return Inputs(part.q, part.k, part.v, part.hidden, None if self.keep is None else self.keep[:, start:stop])
