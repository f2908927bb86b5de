"""Outputs that come piece by piece along the tokens, dimension 2."""

import torch
from torch import Tensor


class Pieces:
    """Joins consecutive pieces of a few tensors. Without gradients each is written to its place and can go at once."""

    def __init__(self, tokens: int):
        self.tokens, self.seen = tokens, 0
        self.kept: list[tuple[Tensor, ...]] = []
        self.whole: tuple[Tensor, ...] | None = None

    def add(self, *piece: Tensor) -> None:
        """The next piece (B, H, t, *) of every tensor."""
        if piece[0].shape[2] == self.tokens or any(t.requires_grad for t in piece):
            self.kept.append(piece)
            return
        if self.whole is None:
            self.whole = tuple(t.new_empty((*t.shape[:2], self.tokens, *t.shape[3:])) for t in piece)
        for whole, part in zip(self.whole, piece, strict=True):
            whole[:, :, self.seen : self.seen + part.shape[2]] = part
        self.seen += piece[0].shape[2]

    def joined(self) -> tuple[Tensor, ...]:
        """The tensors (B, H, T, *)."""
        if self.whole is not None:
            return self.whole
        return self.kept[0] if len(self.kept) == 1 else tuple(torch.cat(t, 2) for t in zip(*self.kept, strict=True))
