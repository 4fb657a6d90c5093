import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator, Tensor

from stillhouse.errors import BadData
from stillhouse_diffusion import distances
from stillhouse_diffusion.distances import (
    frechet_distance,
    histogram_distance,
    kernel_distance,
    precision_recall,
)


def rows(count: int, seed: int = 0, width: int = 4) -> Tensor:
    return torch.randn(count, width, generator=Generator().manual_seed(seed))


def test_frechet_by_hand() -> None:
    # means 0 and 2; variances 2 and 8 of two rows each: 4 + 2 + 8 - 2 * 4
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [4.0]])
    assert frechet_distance(a, b) == pytest.approx(6.0)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_frechet_is_that_of_a_matrix_square_root() -> None:
    a = rows(300)
    b = rows(200, 1) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 3.0])) + 1
    one, two = (np.cov(x.double().numpy().T) for x in (a, b))
    root = np.real(scipy.linalg.sqrtm(one @ two))
    gap = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    expected = gap + np.trace(one + two - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # it imports torchmetrics' images
def test_kernel_distance_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    a, b = rows(80), rows(60, 1) + 0.5
    expected = poly_mmd(a[:60].double(), b.double(), degree=3, gamma=None, coef=1.0)
    assert kernel_distance(a[:60], b) == pytest.approx(float(expected), rel=1e-6)


def test_kernel_distance_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rows(7), rows(11, 1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(distances, "ROWS", 2)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_by_hand() -> None:
    # kernels of 0, 1 and of 1, 2: (0 + 1)^3 = 1; (2 + 1)^3 = 27; across 1, 1, 8, 27
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [1.5], [50.0], [51.0]])
    # radii of one neighbour: 1, 1, 1, 8 and 1, 1, 1, 1
    assert precision_recall(real, fake, neighbours=1) == (0.5, 0.75)


def test_a_collapsed_generator_has_precision_and_no_recall() -> None:
    real = rows(400, width=2)
    fake = 0.01 * rows(400, 1, width=2)
    precision, recall = precision_recall(real, fake)
    assert precision == 1
    assert recall < 0.05


def test_histogram_distance_by_hand() -> None:
    a = torch.tensor([[-0.5, -0.5], [0.5, 0.5], [0.5, 0.5], [9.0, 9.0]])
    b = torch.tensor([[-0.5, -0.5], [0.5, -0.5]])
    # four cells: 1/4, 0, 0, 3/4 and 1/2, 1/2, 0, 0
    assert histogram_distance(a, b, bins=2, reach=1.0) == pytest.approx(0.25 + 0.5 + 0.75)
    assert histogram_distance(a, a, bins=50, reach=1.0) == 0


@pytest.mark.parametrize("bad", [torch.full((5, 4), float("nan")), rows(5, width=3), rows(1)])
def test_features_that_cannot_be_compared_are_refused(bad: Tensor) -> None:
    for distance in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(BadData, match="features"):
            distance(rows(5), bad)
