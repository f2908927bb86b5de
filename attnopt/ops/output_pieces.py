"""A buffer for outputs that are computed piece by piece along the tokens, dimension 2."""

import torch
from torch import Tensor


class Pieces:
    """Joins consecutive pieces of a few tensors.

    Without gradients each piece is written to its place at once, so that pieces and whole are never both in memory.
    With them the pieces are kept and concatenated at the end, which autograd needs.

    Args:
        tokens: T, the length of the whole.
    """

    def __init__(self, tokens: int):
        self.tokens, self.seen = tokens, 0
        self.kept: list[tuple[Tensor, ...]] = []
        self.whole: tuple[Tensor, ...] | None = None

    def add(self, *piece: Tensor) -> None:
        """Take the next piece (B, H, t, *) of every tensor; the same tensors in the same order each time."""
        if piece[0].shape[2] == self.tokens or any(t.requires_grad for t in piece):
            self.kept.append(piece)
            return
        if self.whole is None:
            self.whole = tuple(t.new_empty((*t.shape[:2], self.tokens, *t.shape[3:])) for t in piece)
        for whole, part in zip(self.whole, piece, strict=True):
            whole[:, :, self.seen : self.seen + part.shape[2]] = part
        self.seen += piece[0].shape[2]

    def joined(self) -> tuple[Tensor, ...]:
        """The whole tensors (B, H, T, *), when all T tokens were added."""
        if self.whole is not None:
            return self.whole
        return self.kept[0] if len(self.kept) == 1 else tuple(torch.cat(t, 2) for t in zip(*self.kept, strict=True))
