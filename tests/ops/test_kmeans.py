import torch

from attnopt.ops.kmeans import k_means, nearest


def test_finds_separate_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    member = torch.randint(0, 3, (300,))
    points = centres[member] + 0.1 * torch.randn(300, 2)
    centroids = k_means(points, 3)
    torch.testing.assert_close(centroids[nearest(points, centroids)], centres[member], rtol=0, atol=0.5)


def test_more_clusters_than_points_and_a_tie():
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    centroids = k_means(points, 5)
    assert centroids.isfinite().all()
    torch.testing.assert_close(centroids[nearest(points, centroids)], points)
    assert nearest(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).item() == 0


def test_same_points_same_centroids():
    points = torch.randn(50, 4)
    assert torch.equal(k_means(points, 6), k_means(points.clone(), 6))
