import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import load_model
from stillhouse.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.shape import FitShape, ShapeModel, ShapeRole, shape_role


def shapes(count: int = 200, coordinates: int = 12, seed: int = 0) -> Tensor:
    """Faces with one mode of variance far above the others."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.tensor([5.0, 1.0, 0.3] + [0.02] * (coordinates - 3))
    turn = torch.linalg.qr(torch.randn(coordinates, coordinates, generator=rng))[0]
    return 0.5 + 0.01 * torch.randn(count, coordinates, generator=rng) * spread @ turn


def test_by_hand() -> None:
    # four points on the x axis: variance of (-2, -1, 1, 2) is 10 / 3, its root 1.8257
    given = torch.tensor([[-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    model = ShapeModel.fit(given)
    assert model.mean.tolist() == pytest.approx([0, 1])
    assert model.modes.abs().flatten().tolist() == pytest.approx([1, 0], abs=1e-6)
    assert model.variances.tolist() == pytest.approx([10 / 3])
    edge = 3 * math.sqrt(10 / 3)
    soft = model.soften(torch.tensor([[1.5, 9.0], [6.0, 1.0], [-6.0, -7.0]]))
    # y varies in no mode: it becomes the mean; x is cut at three standard deviations
    assert soft.tolist() == [
        pytest.approx([1.5, 1.0]), pytest.approx([edge, 1.0]), pytest.approx([-edge, 1.0])
    ]  # fmt: skip


def test_variance_says_how_many_modes() -> None:
    given = shapes()
    spread = torch.linalg.svdvals((given - given.mean(0)).double()).square()
    explained = spread.cumsum(0) / spread.sum()
    for variance in (0.8, 0.95, 0.99, 0.9999):
        modes = len(ShapeModel.fit(given, variance).modes)
        assert explained[modes - 1] > variance
        assert modes == 1 or explained[modes - 2] <= variance


def test_softening_twice_is_softening_once_and_stays_nearer_the_mean() -> None:
    model = ShapeModel.fit(shapes())
    soft = model.soften(shapes(seed=1))
    assert torch.allclose(model.soften(soft), soft, atol=1e-6)
    away, left = ((x - model.mean).norm(dim=1) for x in (shapes(seed=1), soft))
    assert (left <= away + 1e-6).all()


def test_all_modes_and_no_outlier_is_the_shape() -> None:
    given = shapes(count=60, coordinates=6)
    model = ShapeModel.fit(given, 0.999999)
    assert torch.allclose(model.soften(given[:5]), given[:5], atol=1e-4)


def test_detail_that_the_modes_lack_is_lost() -> None:
    model = ShapeModel.fit(shapes(), 0.9)
    noise = torch.randn(50, 12, generator=torch.Generator().manual_seed(3)) * 0.01
    noise -= noise @ model.modes.T @ model.modes
    faces = model.mean.expand(50, -1)
    assert torch.allclose(model.soften(faces + noise), faces, atol=1e-6)


def test_kept_as_a_role(tmp_path: Path) -> None:
    given = shapes()
    data = TensorData({"landmarks": given})
    FitShape(variance=0.9)({"data": data}, tmp_path / "m", work=Work())
    loaded = load_model(tmp_path / "m")
    assert isinstance(loaded.module, ShapeRole)
    assert list(loaded.module.parameters()) == []
    expected = ShapeModel.fit(given, 0.9).soften(given[:7])
    assert torch.equal(loaded.module({"landmarks": given[:7]})["landmarks"], expected)


def test_fitted_to_augmented_shapes(tmp_path: Path) -> None:
    faces = shapes(count=30)
    data = TensorData({"landmarks": faces, "images": torch.zeros(30, 3, 8, 8, dtype=torch.uint8)})
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    augment = FaceAugment(flip=0, rotation=40)
    FitShape()({"data": data}, plain, work=Work())
    FitShape(augment=augment, views=3)({"data": data}, turned, work=Work())
    spreads = [load_model(path).module.state_dict()["variances"].sum() for path in (plain, turned)]
    assert spreads[1] > 1.2 * spreads[0]


def test_a_role_moves_with_its_module() -> None:
    module = shape_role(ShapeModel.fit(shapes())).module
    assert {name for name, _ in module.named_buffers()} == {"mean", "modes", "variances"}
    assert module.double()({"landmarks": shapes()})["landmarks"].dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 4), r"a shape model needs at least 2 shapes \(got 1\)"),
        (torch.ones(3, 4), "the 3 shapes are all alike"),
        (torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), "shape 1 is not finite"),
    ],
)
def test_shapes_that_cannot_be_fitted(given: Tensor, message: str) -> None:
    with pytest.raises(BadData, match=message):
        ShapeModel.fit(given)


@pytest.mark.parametrize("variance", [0.0, 1.0, 95.0, math.nan])
def test_variance_out_of_range(variance: float) -> None:
    with pytest.raises(BadSetting, match="variance must be > 0 and < 1"):
        ShapeModel.fit(shapes(), variance)


def test_shapes_of_another_layout() -> None:
    with pytest.raises(BadData, match="shapes of 8 coordinates for a shape model of 12"):
        ShapeModel.fit(shapes()).soften(torch.zeros(2, 8))


def test_shapes_of_another_type_than_the_models_are_named() -> None:
    model = ShapeModel.fit(shapes())
    with pytest.raises(BadData) as caught:
        model.soften(shapes().double())
    assert str(caught.value) == (
        "shape model: shapes is float64 and model float32; give both as one, as in "
        "model.to(shapes.dtype)"
    )
