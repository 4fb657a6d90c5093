"""What is drawn is what the models say, and the scores of studies by hand."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_landmarks.figures import Ced, Faces
from stillhouse_landmarks.recipes.scores import Quantiles, Softness, TeacherGap
from stillhouse_landmarks.shape import ShapeModel


class Off(nn.Module):
    """A role that is off by `by` of the crop to the right, at every point."""

    def __init__(self, by: float, truth: Tensor) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by), requires_grad=False)
        self.truth = truth

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        points = self.truth[: len(batch["images"])].unflatten(1, (-1, 2))
        return {"landmarks": (points + torch.stack([self.by, self.by * 0])).flatten(1)}


def faces(count: int = 10) -> TensorData:
    """Faces of 68 points whose eye corners are half a crop apart; all alike but for a shift."""
    rng = torch.Generator().manual_seed(2)
    points = 0.2 + 0.5 * torch.rand(1, 68, 2, generator=rng)
    points[0, 36], points[0, 45] = torch.tensor([0.2, 0.3]), torch.tensor([0.7, 0.3])
    shifted = points + 0.01 * torch.arange(count)[:, None, None]
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng)
    return TensorData({"images": images, "landmarks": shifted.flatten(1)})


DATA = faces()
TRUTH = DATA.rows(torch.arange(10))["landmarks"]


def test_the_page_of_faces_has_the_truth_and_a_line_a_model() -> None:
    roles = {"teacher": Off(0.0, TRUTH), "student": Off(0.1, TRUTH)}
    figure = Faces(lines={"teacher": "teacher", "student L1": "student"}, columns=3)(
        roles, DATA, work=Work()
    )
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == [
        "truth",
        "teacher",
        "student L1",
    ]
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 9
    assert [len(axis.lines) for axis in shown] == [1] * 3 + [2] * 6
    # points are drawn in pixels of the crop: a fraction times its side
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    expected = 8 * TRUTH[order[0]].view(68, 2)[:, 0]
    assert shown[0].lines[0].get_xdata() == pytest.approx(expected.tolist())
    moved = shown[6].lines[1].get_xdata()
    assert moved == pytest.approx((8 * (TRUTH[0].view(68, 2)[:, 0] + 0.1)).tolist())


def test_the_curves_end_at_the_part_of_faces_within_the_limit() -> None:
    # an error of 0.02 of the crop is an NME of 0.04: the curve jumps there, its area is 0.6
    roles = {"good": Off(0.02, TRUTH), "bad": Off(0.08, TRUTH)}
    figure = Ced(lines={"good": "good", "bad": "bad"})(roles, DATA, work=Work())
    good, bad = figure.axes[0].lines
    x, y = torch.as_tensor(good.get_xdata()), torch.as_tensor(good.get_ydata())
    assert set(y[x < 3.9].tolist()) == {0.0}
    assert set(y[x > 4.1].tolist()) == {100.0}
    assert max(bad.get_ydata()) == 0
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["good  0.600", "bad  0.000"]


def test_quantiles_of_the_errors() -> None:
    roles = {"student": Off(0.02, TRUTH)}
    assert Quantiles()(roles, DATA, work=Work()) == pytest.approx(
        {"median_nme_error": 0.04, "p90_nme_error": 0.04}, rel=1e-4
    )


def test_the_gap_is_between_the_two_models() -> None:
    # 0.03 to the right and 0.01 to the left: 0.04 of the crop apart, eye corners 0.5
    roles = {"student": Off(0.03, TRUTH), "teacher": Off(-0.01, TRUTH)}
    assert TeacherGap()(roles, DATA, work=Work()) == pytest.approx(
        {"teacher_nme_error": 0.08}, rel=1e-4
    )
    with pytest.raises(BadData, match="hold no face"):
        TeacherGap()(
            roles,
            TensorData({"images": DATA.columns["images"][:0], "landmarks": TRUTH[:0]}),
            work=Work(),
        )


def test_softness_falls_as_more_is_explained() -> None:
    rng = torch.Generator().manual_seed(3)
    shapes = 0.2 + 0.5 * torch.rand(40, 136, generator=rng)
    data = TensorData({"landmarks": shapes})
    scores = Softness(variances=(0.5, 0.9), normalizer="box_size")({}, data, work=Work())
    modes = len(ShapeModel.fit(shapes, 0.5).modes)
    assert scores["50 %", "modes"] == modes
    assert scores["90 %", "modes"] > modes
    assert 0 < scores["90 %", "soft_nme_error"] < scores["50 %", "soft_nme_error"]
