"""Two maps to few dimensions whose products come closest to a teacher's scores."""

import torch
from torch import Tensor


def closest_projections(q: Tensor, k: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """P and Q, (G, rank, D) each, for which (P q) . (Q k) is closest to scaling q . k in the mean square.

    q and k are taken as drawn independently. With covariances Cq and Ck and the decomposition
    scaling Cq^1/2 Ck^1/2 = U S V^T, they are S^1/2 U^T Cq^-1/2 and S^1/2 V^T Ck^-1/2, of the `rank` largest S.

    Args:
        q: (B, H, T, D), all heads of a group together. k: (B, G, T, D). rank: D at most.
    """
    q_root, q_inverse = _roots(_covariance(q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)))
    k_root, k_inverse = _roots(_covariance(k))
    u, s, vh = torch.linalg.svd(q_root @ k_root * scaling)
    root = s[:, :rank, None].sqrt()
    return root * u.mT[:, :rank] @ q_inverse, root * vh[:, :rank] @ k_inverse


def _covariance(x: Tensor) -> Tensor:
    """The mean of x x^T over sequences and tokens, (G, D, D), of x (B, G, T, D); not centred."""
    x = x.transpose(0, 1).flatten(1, 2).double()
    return x.mT @ x / x.shape[1]


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """C^1/2 and C^-1/2 of covariances C (G, D, D), with a floor under the variances: 1e-6, and 1e-6 of the largest."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = (values.amax(-1, keepdim=True) * 1e-6).clamp(min=1e-6)
    root = values.clamp(min=floor).sqrt()[:, None]
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT
