"""On the real faces of data/, where they have been pulled."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.data import ReadFaces
from stillhouse_landmarks.formats import find_faces
from stillhouse_landmarks.layouts import IBUG
from stillhouse_landmarks.metrics import as_points, nme
from stillhouse_landmarks.shape import ShapeModel

FACES = project_root(Path(__file__).parent) / "data" / "faces-68pt"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not FACES.is_dir(), reason=f"{FACES} not found. Run: uv run dvc pull data.dvc"
    ),
]


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Tensor]]:
    ports = ReadFaces(points=68, size=64)({"source": FACES}, work=Work.seeded(0))
    read: dict[str, dict[str, Tensor]] = {}
    for port, parts in ports.items():
        assert not isinstance(parts, dict)
        (read[port],) = list(parts)  # type: ignore[call-overload]
    return read


def test_all_faces_are_read(made: dict[str, dict[str, Tensor]]) -> None:
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 783, "validation": 87, "test": 330
    }  # fmt: skip
    for columns in made.values():
        low, high = as_points(columns["landmarks"]).aminmax(dim=1)
        assert torch.allclose((high - low).amax(1), torch.tensor(1 / 1.5), atol=1e-4)
        assert columns["images"].float().mean().item() == pytest.approx(110, abs=20)


def test_no_test_face_is_among_the_others(made: dict[str, dict[str, Tensor]]) -> None:
    rows = [set(map(tuple, made[port]["landmarks"].tolist())) for port in made]
    assert len(rows[0] | rows[1] | rows[2]) == 1200


def test_the_crop_is_the_whole_image_that_was_cut_before() -> None:
    face = find_faces(FACES)["test"][0]
    _, landmarks = ReadFaces(points=68, size=64).crop(face)
    # the data were cut with the same margin: 256 px are the crop
    assert torch.from_numpy(landmarks * 256).sub(
        torch.from_numpy(face.points.ravel())
    ).abs().max() < 1.5  # fmt: skip


def test_the_swap_table_mirrors_the_mean_face(made: dict[str, dict[str, Tensor]]) -> None:
    mean = as_points(made["train"]["landmarks"]).mean(0)
    mirrored = torch.stack([1 - mean[:, 0], mean[:, 1]], dim=1)[list(IBUG.swap())]
    assert (mean - mirrored).norm(dim=1).max() < 0.015
    unswapped = torch.stack([1 - mean[:, 0], mean[:, 1]], dim=1)
    assert (mean - unswapped).norm(dim=1).mean() > 0.15


def test_soft_landmarks_are_near_and_smoother_the_fewer_modes(
    made: dict[str, dict[str, Tensor]],
) -> None:
    train, test = made["train"]["landmarks"], made["test"]["landmarks"]
    errors: list[float] = []
    for variance in (0.80, 0.90, 0.95, 0.97):
        soft = ShapeModel.fit(train, variance).soften(test)
        errors.append(nme(as_points(soft), as_points(test)).mean().item())
    assert errors == sorted(errors, reverse=True)
    assert 0.01 < errors[2] < 0.05


def test_the_mean_face_is_what_a_student_must_beat(made: dict[str, dict[str, Tensor]]) -> None:
    test = as_points(made["test"]["landmarks"])
    mean = as_points(made["train"]["landmarks"]).mean(0).expand_as(test)
    assert 0.08 < nme(mean, test).mean().item() < 0.25


def test_augmented_faces_keep_their_points_in_the_image(
    made: dict[str, dict[str, Tensor]],
) -> None:
    columns = made["validation"]
    ids = torch.arange(len(columns["images"]))
    batch = {**columns, "id": ids, "view": torch.zeros_like(ids)}
    points = FaceAugment()(batch)["landmarks"]
    inside = ((points >= 0) & (points <= 1)).float().mean().item()
    assert inside > 0.99
