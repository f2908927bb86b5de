"""k-means, as plain as it is: a pure function of the points."""

import torch
from torch import Tensor


def k_means(points: Tensor, count: int, rounds: int = 20) -> Tensor:
    """Centroids (count, D) of points (N, D), N >= 1, by Lloyd's rounds from points at even distances in their order.

    A cluster that loses all its points keeps its centroid.
    """
    start = torch.linspace(0, len(points) - 1, count, device=points.device).long()
    centroids = points[start]
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(nearest(points, centroids), count).to(points)
        sizes = member.sum(0)[:, None]
        centroids = torch.where(sizes > 0, member.mT @ points / sizes.clamp(min=1), centroids)
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """(..., N): the index of the nearest of centroids (..., C, D) to each of points (..., N, D); the first of a tie."""
    return (points @ centroids.mT - centroids.square().sum(-1).unsqueeze(-2) / 2).argmax(-1)
