"""What routing remembers of each cluster: its last few keys and values."""

from typing import NamedTuple

import torch
from torch import Tensor


class Members(NamedTuple):
    """The last m members of each cluster among the tokens before the window; places without a member come first.

    Attributes:
        k: (B, G, clusters m, D) their keys, cluster by cluster, zeros where there is no member.
        v: (B, G, clusters m, D) their values.
        held: (B, G, clusters) how many of a cluster's m places have a member.
    """

    k: Tensor
    v: Tensor
    held: Tensor

    @classmethod
    def none(cls, k: Tensor, clusters: int, places: int) -> "Members":
        """Those before the first token, for keys like k (B, G, T, D) and m places in each cluster."""
        batch, groups, _, dim = k.shape
        keys, values = (k.new_zeros(batch, groups, clusters * places, dim) for _ in range(2))
        return cls(keys, values, torch.zeros(batch, groups, clusters, dtype=torch.long, device=k.device))

    @property
    def places(self) -> int:
        """m, where there is a cluster."""
        return self.k.shape[2] // max(1, self.held.shape[2])

    def empty(self) -> Tensor:
        """Which places have no member, (B, G, clusters, m) bool."""
        return torch.arange(self.places, device=self.held.device) < self.places - self.held[..., None]

    def clusters(self) -> Tensor:
        """The cluster of each place, (B, G, clusters m); of an empty place one that nobody picks."""
        empty = self.empty()
        names = torch.arange(empty.shape[2], device=empty.device)[:, None].expand(empty.shape[2:])
        return names.where(~empty, empty.shape[2]).flatten(2)

    def joined(self, cluster: Tensor, k: Tensor, v: Tensor) -> "Members":
        """After one more token, k and v (B, G, 1, D): the last of its cluster (B, G, 1), whose first gives way."""
        places = cluster * self.places + torch.arange(self.places, device=k.device)
        places = places[..., None].expand(-1, -1, -1, k.shape[3])

        def shifted(old: Tensor, new: Tensor) -> Tensor:
            return old.scatter(2, places, torch.cat([old.gather(2, places)[:, :, 1:], new], dim=2))

        held = self.held.scatter_add(2, cluster, torch.ones_like(cluster)).clamp_(max=self.places)
        return Members(shifted(self.k, k), shifted(self.v, v), held)
