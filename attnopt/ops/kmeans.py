"""k-means by Lloyd's algorithm: a function of the points alone, without any random draw."""

import torch
from torch import Tensor


def k_means(points: Tensor, count: int, rounds: int = 20) -> Tensor:
    """Centroids of clusters of points.

    The first centroids are points at even distances in their order. A cluster that loses all its points keeps its
    centroid, and where there are fewer points than clusters some centroids start equal.

    Args:
        points: (N, D), N >= 1.
        count: the number of clusters.
        rounds: how often points are assigned to the nearest centroid and centroids moved to the mean of theirs.

    Returns: (count, D).
    """
    start = torch.linspace(0, len(points) - 1, count, device=points.device).long()
    centroids = points[start]
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(nearest(points, centroids), count).to(points)
        sizes = member.sum(0)[:, None]
        centroids = torch.where(sizes > 0, member.mT @ points / sizes.clamp(min=1), centroids)
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The index (..., N) of the centroid (..., C, D) that is nearest to each point (..., N, D); the first of a tie."""
    return (points @ centroids.mT - centroids.square().sum(-1).unsqueeze(-2) / 2).argmax(-1)
