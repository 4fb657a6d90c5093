"""Distances of two sets of features: Frechet, kernel, precision and recall; of points: histograms.

N M: rows of either set. D: features. All are computed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadData

NEIGHBOURS = 3
DEGREE = 3
ROWS = 1000  # of a matrix of distances at a time


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Frechet distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017,
    arXiv 1706.08500): |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), as FID is of Inception's
    features. Biased upwards for few rows: compare sets of equal size alone.
    """
    a, b = _checked(a, b)
    one, two = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    root = _square_root(one)
    # the eigenvalues of A B are those of the symmetric root(A) B root(A)
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return float((gap + one.trace() + two.trace() - 2 * cross).clamp_min(0))


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / D + 1)^3, unbiased (Binkowski et al.
    2018, arXiv 1801.01401), as KID is of Inception's features: over all rows at once, where KID
    takes the mean over subsets. May be slightly negative for sets of one distribution.
    """
    a, b = _checked(a, b)
    if len(a) < 2 or len(b) < 2:
        raise BadData("kernel distance: needs two rows or more of either set")
    within = [(_kernel_sum(x, x) - _self_kernel(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return within[0] + within[1] - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of the kernel over all pairs of a row of either set."""
    parts = [((part @ b.T / a.shape[1] + 1) ** DEGREE).sum() for part in a.split(ROWS)]
    return float(torch.stack(parts).sum())


def _self_kernel(x: Tensor) -> float:
    return float(((x.square().sum(1) / x.shape[1] + 1) ** DEGREE).sum())


def precision_recall(
    real: Float[Tensor, "N D"], fake: Float[Tensor, "M D"], *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Precision, the fraction of `fake` within the manifold of `real`, and recall, that of `real`
    within the manifold of `fake` (Kynkaanniemi et al. 2019, arXiv 1904.06991): balls around each
    row that reach its `neighbours`-th nearest other.
    """
    real, fake = _checked(real, fake)
    if min(len(real), len(fake)) <= neighbours:
        raise BadData(f"precision and recall: need more than {neighbours} rows of either set")
    return _covered(real, fake, neighbours), _covered(fake, real, neighbours)


def _covered(base: Tensor, rows: Tensor, neighbours: int) -> float:
    # the nearest of all is the row itself
    radii = torch.cat(
        [torch.cdist(part, base).kthvalue(neighbours + 1).values for part in base.split(ROWS)]
    )
    inside = [(torch.cdist(part, base) <= radii).any(1) for part in rows.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if len(a) < 2 or len(b) < 2 or a.shape[1] != b.shape[1]:
        found = f"{list(a.shape)} and {list(b.shape)}"
        raise BadData(
            f"features: expected two sets of two or more rows of one length (got {found})"
        )
    for each in (a, b):
        if not bool(torch.isfinite(each).all()):
            raise BadData("features: values that are not finite; the images are no images")
    return a.double(), b.double()


def histogram_distance(
    a: Float[Tensor, "N 2"], b: Float[Tensor, "M 2"], *, bins: int, reach: float
) -> float:
    """Sum over a grid of bins x bins cells on [-reach, reach]^2 of the absolute difference of the
    two sets' fractions: 0 for equal histograms, 2 for disjoint ones. What lies outside counts in
    the nearest cell of the edge.
    """
    return float((_fractions(a, bins, reach) - _fractions(b, bins, reach)).abs().sum())


def _fractions(points: Tensor, bins: int, reach: float) -> Tensor:
    if not bool(torch.isfinite(points).all()):
        raise BadData("histogram: points that are not finite")
    cells = ((points.double() / reach + 1) / 2 * bins).floor().clamp(0, bins - 1).long()
    flat = cells[:, 0] * bins + cells[:, 1]
    return torch.bincount(flat, minlength=bins * bins).double() / len(points)
