"""Points must stay on the pixels that they were put on."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse_landmarks.augment import FaceAugment, mirrored, turned
from stillhouse_landmarks.layouts import LAYOUTS

SIDE = 48
STILL: dict[str, Any] = {"flip": 0, "rotation": 0, "scale": 0, "translation": 0, "occlusion": 0}
EVERY = [
    FaceAugment(),
    FaceAugment(seed=3, flip=1),
    FaceAugment(**{**STILL, "rotation": 30}),
    FaceAugment(**{**STILL, "occlusion": 1}),
]


def batch(count: int = 8, view: int = 0, points: int = 68) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    ids = torch.arange(count)
    landmarks = torch.rand(count, 2 * points, generator=rng)
    return {"id": ids, "view": torch.full_like(ids, view), "images": images, "landmarks": landmarks}


def blob(at: tuple[float, float], width: float = 2.0) -> Tensor:
    """A soft dot, [3, SIDE, SIDE], whose middle is `at` in pixels from the edges."""
    centres = torch.arange(SIDE) + 0.5
    x, y = (-0.5 * ((centres - place) / width).square() for place in at)
    return (255 * (y[:, None] + x[None]).exp()).round().to(torch.uint8).expand(3, -1, -1)


def middle(image: Tensor) -> list[float]:
    """The centre of mass in pixels from the edges."""
    mass = image[0].double()
    centres = torch.arange(SIDE, dtype=torch.float64) + 0.5
    return [(mass.sum(axis) @ centres / mass.sum()).item() for axis in (0, 1)]


@pytest.mark.parametrize("at", [(20.0, 27.5), (14.3, 22.8), (30.0, 15.0)])
@pytest.mark.parametrize(
    ("angle", "size", "shift"),
    [(0, 1, [0, 0]), (30, 1, [0, 0]), (-90, 1, [0, 0]), (0, 1.3, [0, 0]), (0, 0.8, [0, 0]),
     (0, 1, [4, -3]), (-25, 1.1, [-2, 3])],
)  # fmt: skip
def test_a_point_stays_on_its_dot_when_turned(
    at: tuple[float, float], angle: float, size: float, shift: list[float]
) -> None:
    # torchvision shifts images by whole numbers of pixels or not: here it must be what points do
    image, points = turned(blob(at), torch.tensor([[at]]), angle=angle, size=size, shift=shift)
    assert points[0, 0].tolist() == pytest.approx(middle(image), abs=0.06)


@pytest.mark.parametrize("at", [(20.0, 27.5), (14.3, 22.8)])
def test_a_point_stays_on_its_dot_in_a_mirror(at: tuple[float, float]) -> None:
    image, points = mirrored(blob(at), torch.tensor([[at]]), torch.tensor([0]))
    assert points[0, 0].tolist() == pytest.approx([SIDE - at[0], at[1]])
    assert points[0, 0].tolist() == pytest.approx(middle(image), abs=0.02)


def test_points_stay_on_their_dots_through_everything() -> None:
    augment = FaceAugment(swap=(1, 0, 2), occlusion=0)
    places = ((20.0, 27.5), (30.3, 22.8), (24.0, 18.0))
    ids = torch.arange(40)
    landmarks = (torch.tensor(places).flatten() / SIDE).repeat(40, 1)
    flips = 0
    for point in range(3):
        given = {
            "id": ids,
            "view": torch.zeros_like(ids),
            "images": blob(places[point]).repeat(40, 1, 1, 1),
            "landmarks": landmarks,
        }
        made = augment(given)
        found = torch.tensor([middle(image) for image in made["images"]])
        points = made["landmarks"].unflatten(1, (-1, 2)) * SIDE
        near = (points - found[:, None]).norm(dim=-1)
        # in a mirror, the dot of a point belongs to its partner
        mine, partner = near[:, point] < 0.1, near[:, augment.swap[point]] < 0.1
        assert (mine | partner).all()
        flips += int((~mine).sum())
    assert 10 < flips < 70


@pytest.mark.parametrize("points", sorted(LAYOUTS))
def test_flipping_twice_is_the_face(points: int) -> None:
    image = batch()["images"][0]
    rows = torch.rand(2, points, 2) * 16
    swap = torch.tensor(LAYOUTS[points].swap())
    once = mirrored(image, rows, swap)
    twice = mirrored(*once, swap)
    assert torch.equal(twice[0], image)
    assert torch.allclose(twice[1], rows, atol=1e-5)
    assert not torch.allclose(once[1], rows, atol=1e-2)


def test_a_mirror_alone() -> None:
    made = FaceAugment(**{**STILL, "flip": 1})(batch())
    assert torch.equal(made["images"], batch()["images"].flip(-1))
    swap = torch.tensor(LAYOUTS[68].swap())
    x, y = batch()["landmarks"][:, 0::2], batch()["landmarks"][:, 1::2]
    assert torch.allclose(made["landmarks"][:, 0::2], (1 - x)[:, swap], atol=1e-6)
    assert torch.allclose(made["landmarks"][:, 1::2], y[:, swap], atol=1e-6)


def test_an_occluder_hides_pixels_and_moves_no_point() -> None:
    images = torch.full((60, 3, 20, 20), 7, dtype=torch.uint8)
    given = {**batch(60), "images": images}
    made = FaceAugment(**{**STILL, "occlusion": 1}, occluder=0.4)(given)
    assert torch.allclose(made["landmarks"], given["landmarks"], atol=1e-6)
    hidden = (made["images"] != 7).any(1)
    assert hidden.flatten(1).any(1).all()
    assert hidden.any(1).sum(1).max() <= 8  # columns: at most 0.4 of 20
    assert hidden.any(2).sum(1).max() <= 8
    half = FaceAugment(**{**STILL, "occlusion": 0.5})(given)
    touched = (half["images"] != 7).flatten(1).any(1).float().mean().item()
    assert touched == pytest.approx(0.5, abs=0.2)


def test_nothing_asked_for_changes_nothing() -> None:
    made = FaceAugment(**STILL)(batch())
    assert torch.equal(made["images"], batch()["images"])
    assert torch.allclose(made["landmarks"], batch()["landmarks"], atol=1e-6)


@pytest.mark.parametrize("augment", EVERY, ids=str)
def test_a_sample_looks_the_same_in_any_batch_and_order(augment: FaceAugment) -> None:
    whole = augment(batch())
    rng = torch.Generator().manual_seed(1)
    for size in (1, 3, 8):
        rows = torch.randperm(8, generator=rng)[:size]
        torch.rand(7)  # the global generator's state must not matter
        part = augment({name: value[rows] for name, value in batch().items()})
        assert torch.equal(part["images"], whole["images"][rows])
        assert torch.equal(part["landmarks"], whole["landmarks"][rows])


def test_views_seeds_and_samples_differ() -> None:
    first, second = (FaceAugment()(batch(view=view))["landmarks"] for view in (0, 1))
    other = FaceAugment(seed=1)(batch())["landmarks"]
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, other, atol=1e-3)
    same = {**batch(), "landmarks": batch()["landmarks"][:1].repeat(8, 1)}
    assert len(torch.unique(FaceAugment()(same)["landmarks"], dim=0)) == 8


def test_the_input_and_the_global_generator_are_not_touched() -> None:
    given = batch()
    before, state = {k: v.clone() for k, v in given.items()}, torch.get_rng_state()
    FaceAugment()(given)
    assert all(torch.equal(given[name], before[name]) for name in given)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_columns_move_alike() -> None:
    given = {**batch(), "soft": batch()["landmarks"]}
    made = FaceAugment(columns=("landmarks", "soft"))(given)
    assert torch.equal(made["landmarks"], made["soft"])
    assert torch.equal(FaceAugment()(given)["soft"], given["soft"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, r"flip must be >= 0 and <= 1 \(got 1.5\)"),
        ({"rotation": -1.0}, r"rotation must be >= 0 \(got -1.0\)"),
        ({"scale": 1.0}, r"scale must be >= 0 and < 1 \(got 1.0\)"),
        ({"swap": (1, 2, 0)}, "swap: a second mirror must undo the first"),
        ({"swap": (0, 5)}, "swap: a second mirror must undo the first"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        replace(FaceAugment(), **change)


def test_mirroring_needs_to_know_the_layout() -> None:
    with pytest.raises(BadSetting, match=r"5 points are no known layout .*; give swap, or flip=0"):
        FaceAugment()(batch(points=5))
    with pytest.raises(BadSetting, match="swap names 2 points, the faces have 5"):
        FaceAugment(swap=(1, 0))(batch(points=5))
    FaceAugment(flip=0)(batch(points=5))
