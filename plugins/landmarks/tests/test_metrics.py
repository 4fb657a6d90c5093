import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.data import TensorData
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.metrics.units import quantity
from stillhouse.work import Work
from stillhouse_landmarks.metrics import (
    Landmarks,
    Normalizer,
    as_points,
    auc,
    ced,
    distance,
    failure_rate,
    nme,
)

TRIANGLE = torch.tensor([[[0.0, 0.0], [30.0, 0.0], [0.0, 40.0]]])  # box 30 x 40


def face(points: int) -> Tensor:
    rng = torch.Generator().manual_seed(points)
    return torch.rand(3, points, 2, generator=rng, dtype=torch.float64)


def test_nme_by_hand() -> None:
    prediction = TRIANGLE + torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, -1.0]]])  # 5, 0 and 1
    assert nme(prediction, TRIANGLE, normalizer=(0, 1)).tolist() == pytest.approx([2 / 30])
    assert nme(prediction, TRIANGLE, normalizer=(1, 2)).tolist() == pytest.approx([2 / 50])
    assert nme(prediction, TRIANGLE, normalizer="box_diagonal").tolist() == pytest.approx([2 / 50])
    by_size = nme(prediction, TRIANGLE, normalizer="box_size")
    assert by_size.tolist() == pytest.approx([2 / math.sqrt(1200)])


@pytest.mark.parametrize(
    ("points", "normalizer", "pair"),
    [(68, "corners", (36, 45)), (29, "corners", (8, 9)), (98, "corners", (60, 72)),
     (98, "pupils", (96, 97)), (29, "pupils", (16, 17))],
)  # fmt: skip
def test_normalisers_by_layout(points: int, normalizer: Normalizer, pair: tuple[int, int]) -> None:
    truth = face(points)
    expected = (truth[:, pair[0]] - truth[:, pair[1]]).norm(dim=1)
    assert torch.allclose(distance(truth, normalizer), expected)


def test_pupils_of_68_points_are_the_means_of_the_eyes() -> None:
    truth = face(68)
    left, right = truth[:, 36:42].mean(1), truth[:, 42:48].mean(1)
    assert torch.allclose(distance(truth, "pupils"), (left - right).norm(dim=1))


def test_nme_ignores_place_turn_and_size() -> None:
    truth, prediction = face(68), face(68) + 0.01 * face(68).flip(0)
    c, s = math.cos(0.4), math.sin(0.4)
    turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    moved = [7 + 224 * points @ turn for points in (prediction, truth)]
    for normalizer in ("corners", "pupils"):
        assert torch.allclose(
            nme(*moved, normalizer=normalizer), nme(prediction, truth, normalizer=normalizer)
        )
    assert nme(truth, truth).tolist() == [0, 0, 0]


def test_failure_rate_auc_and_curve_by_hand() -> None:
    errors = torch.tensor([0.02, 0.05, 0.1, 0.2])
    assert failure_rate(errors).item() == 0.25  # 0.1 itself is no failure
    assert auc(errors).item() == pytest.approx((0.8 + 0.5 + 0 + 0) / 4)
    thresholds, below = ced(errors, steps=10)
    assert thresholds.tolist() == pytest.approx([0.01 * i for i in range(11)])
    assert below.tolist() == [0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75]
    assert failure_rate(errors, limit=0.04).item() == 0.75


def test_auc_is_the_area_under_the_curve() -> None:
    errors = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.15
    thresholds, below = ced(errors, steps=20000)
    area = np.trapezoid(below.numpy(), thresholds.numpy()) / 0.1
    assert auc(errors).item() == pytest.approx(area, abs=1e-4)
    assert auc(torch.zeros(3)).item() == 1
    assert auc(torch.full((3,), 0.1)).item() == pytest.approx(0, abs=1e-6)
    # a better model has the larger area
    assert auc(errors / 2).item() > auc(errors).item()


class Shifted(nn.Module):
    """The truth, moved by a learned step to the right."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = as_points(batch["landmarks"]) + torch.stack([self.step, torch.zeros(())])
        return {"landmarks": moved.flatten(1)}


def test_metric_over_batches() -> None:
    truth = TRIANGLE.flatten(1).repeat(5, 1)
    data = TensorData({"landmarks": truth})
    scores = Landmarks(normalizer=(0, 1), batch=2)({"student": Shifted(1.5)}, data, work=Work())
    assert scores == pytest.approx({"nme_error": 0.05, "failure_rate_error": 0.0, "auc": 0.5})
    worse = Landmarks(role="teacher", normalizer=(0, 1))(
        {"teacher": Shifted(6.0)}, data, work=Work()
    )
    assert worse == pytest.approx({"nme_error": 0.2, "failure_rate_error": 1.0, "auc": 0.0})


def test_how_scores_are_shown() -> None:
    mean, failures, area = Landmarks().scores()
    assert [score.better for score in (mean, failures, area)] == ["lower", "lower", "higher"]
    assert (mean.label, quantity(0.0406, mean)) == ("NME", "4.06 %")
    assert (failures.label, quantity(0.0087, failures)) == ("Failure rate", "0.87 %")
    assert (area.label, quantity(0.79, area)) == ("AUC", "0.7900")


def test_what_cannot_be_measured() -> None:
    with pytest.raises(BadData, match=r"NME: the distance '\(0, 0\)' of face 0 is 0; give another"):
        nme(TRIANGLE, TRIANGLE, normalizer=(0, 0))
    broken = torch.cat([TRIANGLE, TRIANGLE * math.nan])
    with pytest.raises(BadData, match="NME: prediction of face 1 is not finite"):
        nme(broken, TRIANGLE.repeat(2, 1, 1), normalizer=(0, 1))
    with pytest.raises(BadSetting, match=r"3 points are no known layout \(29, 68, 98\); as normal"):
        nme(TRIANGLE, TRIANGLE)
    with pytest.raises(BadSetting, match=r"normalizer: points \(0, 3\) are not all in 0..2"):
        nme(TRIANGLE, TRIANGLE, normalizer=(0, 3))
    with pytest.raises(BadData, match="the evaluation data hold no face"):
        Landmarks()(
            {"student": Shifted(0.0)}, TensorData({"landmarks": torch.zeros(0, 6)}), work=Work()
        )
    with pytest.raises(UnknownName, match="NME: unknown role 'student'. Valid: teacher."):
        Landmarks()(
            {"teacher": Shifted(0.0)}, TensorData({"landmarks": torch.zeros(1, 6)}), work=Work()
        )
    with pytest.raises(BadSetting, match="limit must be > 0"):
        auc(torch.zeros(2), limit=0.0)
