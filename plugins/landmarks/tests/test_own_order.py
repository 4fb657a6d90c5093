"""Points in an order of the user's own: named by a layout, or given by swap and normalizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse.errors import BadData, BadSetting
from stillhouse.settings import make_recipe, make_settings, parse_assignments
from stillhouse.work import Work
from stillhouse_landmarks.data import ReadFaces
from stillhouse_landmarks.layouts import COFW, IBUG, partners
from stillhouse_landmarks.recipes.face_data import face_copies, face_reader
from stillhouse_landmarks.recipes.two_teacher_settings import TwoTeacherSettings
from stillhouse_landmarks.samples import face, faces

NAME = "landmarks/two_teacher"
# 29 of 300-W's 68 points: jaw, brows, nose, eyes, mouth, not in COFW's order
CHOSEN = (0, 4, 8, 12, 16, 17, 19, 21, 22, 24, 26, 27, 30, 31, 33, 35, 36, 37, 39, 41, 42, 44, 45, 46,
          48, 51, 54, 57, 62)  # fmt: skip
SWAP = tuple(CHOSEN.index(IBUG.swap()[point]) for point in CHOSEN)
OWN_PAIRS = tuple(f"{i}-{p}" for i, p in enumerate(SWAP) if i < p)
CORNERS = (CHOSEN.index(36), CHOSEN.index(45))


def write(folder: Path, count: int = 12) -> Path:
    """Drawn faces with the 29 points as .pts."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 3)):
        (folder / split).mkdir(parents=True)
        for i in range(number):
            image, shape = face(rng)
            points = 32 * shape.reshape(-1, 2)[list(CHOSEN)] + 0.5
            rows = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / split / f"{i}.png")
            (folder / split / f"{i}.pts").write_text(f"version: 1\nn_points: 29\n{{\n{rows}\n}}\n")
    return folder


def settings(**given: Any) -> TwoTeacherSettings:
    made = make_settings(NAME, "tiny", given)
    assert isinstance(made, TwoTeacherSettings)
    return made


def read(source: Path, made: TwoTeacherSettings) -> dict[str, Any]:
    return dict(face_reader(made)({"source": source}, work=Work.seeded(0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"points": 29},
            r"points=29, but layout=300w has 68; name the layout whose order your points have "
            r"\(300w, wflw, cofw\), or set layout=own$",
        ),
        ({"layout": "own"}, r"points: layout=own needs their number, as points=29$"),
        (
            {"layout": "own", "points": 29},
            r"layout=own: give the points that trade places in a mirror, as swap=0-1,2-3, or set "
            r"flip=0$",
        ),
        (
            {"layout": "own", "points": 29, "flip": 0},
            r"layout=own: which points the corners are is not known; set normalizer to two points, "
            r"as normalizer=16,21, or to box_diagonal or box_size$",
        ),
        ({"layout": "cofw", "swap": ["0-1"]}, r"swap: layout=cofw has its own pairs; set layout=own$"),
        (
            {"normalizer": [16, 68]}, r"normalizer: 16,68 are not two points in 0..67$",
        ),
        (
            {"layout": "own", "points": 5, "normalizer": [0, 1], "swap": ["0:1"]},
            r"swap: '0:1' is no pair of points; write pairs as swap=0-1,2-3$",
        ),
        (
            {"layout": "own", "points": 5, "normalizer": [0, 1], "swap": ["0-5"]},
            r"swap: 0-5 is no pair of two points in 0..4$",
        ),
        (
            {"layout": "own", "points": 5, "normalizer": [0, 1], "swap": ["0-1", "1-2"]},
            r"swap: point 1 is in two pairs; give each once$",
        ),
    ],
)  # fmt: skip
def test_an_order_that_is_not_named_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        settings(**given)


def test_a_layout_has_its_points_and_its_mirror() -> None:
    assert settings(layout="cofw").points == 29
    assert settings(layout="wflw").points == 98
    assert settings(layout="cofw").mirrored() == COFW.swap()
    assert settings(layout="cofw", flip=0).mirrored() == ()
    assert partners(("0-1", "4-3"), 5) == (1, 0, 2, 4, 3)


def test_two_points_and_pairs_as_a_command_line_gives_them() -> None:
    given = parse_assignments(
        ["layout=own", "points=29", f"swap={','.join(OWN_PAIRS)}", "normalizer=16,22"]
    )
    made = settings(**given)
    assert made.normalizer == (16, 22)
    assert made.mirrored() == SWAP
    assert settings(**{**given, "swap": "0-1"}).mirrored()[:3] == (1, 0, 2)


def test_29_points_in_another_order_are_not_taken_for_cofws(tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(BadData, match=r"29 points, expected 68; set layout=cofw if they have its "):
        read(source, settings())
    message = r"mirrored, point \d+ \(from 0\) of the mean face lies near point \d+, not near \d+:"
    with pytest.raises(BadData, match=message):
        read(source, settings(layout="cofw"))
    read(source, settings(layout="cofw", flip=0))


def test_their_own_pairs_and_normalizer_reach_every_stage(tmp_path: Path) -> None:
    own = settings(layout="own", points=29, swap=OWN_PAIRS, normalizer=CORNERS)
    assert own.mirrored() == SWAP
    assert face_copies(own).augment.swap == SWAP  # type: ignore[attr-defined]
    assert set(read(write(tmp_path), own)) == {"train", "validation", "test"}
    scores = make_recipe(NAME, own).stage("paper-0-scores")
    assert scores.metrics[0].normalizer == CORNERS  # type: ignore[attr-defined]
    crossed = settings(layout="own", points=29, swap=["0-2", "1-3"], normalizer=CORNERS)
    with pytest.raises(BadData, match="the points are in another order; set layout, or layout=own"):
        read(tmp_path, crossed)


def test_drawn_and_published_faces_agree_with_their_layout() -> None:
    made = settings()
    reader = face_reader(made)
    assert isinstance(reader, ReadFaces)
    assert reader.swap == IBUG.swap()
    reader({"source": faces()}, work=Work())
