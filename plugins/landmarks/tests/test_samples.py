"""Drawn faces: the points are where the image shows them, and the same faces every time."""

import numpy as np
import pytest

from stillhouse_landmarks.layouts import IBUG
from stillhouse_landmarks.samples import SIZE, TEST, TRAIN, Look, face, faces, head

NEUTRAL = Look(
    jaw=0, chin=0, nose=0, mouth=0, smile=0, gape=0, brows=0, frown=0, lids=0
)  # fmt: skip


def changed(**numbers: float) -> Look:
    return Look(**(NEUTRAL.__dict__ | numbers))


def test_shapes_types_and_ranges() -> None:
    drawn = faces()
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, points = drawn[f"{split}_images"], drawn[f"{split}_landmarks"]
        assert (images.shape, images.dtype) == ((count, 3, SIZE, SIZE), np.uint8)
        assert (points.shape, points.dtype) == ((count, 136), np.float32)
        assert points.min() > 0
        assert points.max() < 1


def test_the_same_faces_again_and_no_face_twice() -> None:
    one, two = (face(np.random.default_rng(3), 48) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    drawn = faces()
    every = np.concatenate([drawn["train_landmarks"], drawn["test_landmarks"]])
    assert len(np.unique(every, axis=0)) == TRAIN + TEST


def test_a_head_seen_from_the_front_is_its_own_mirror_image() -> None:
    points = head(changed(gape=1.0, smile=1.0))
    mirrored = points[list(IBUG.swap())] * (-1, 1, 1)
    assert mirrored == pytest.approx(points)


def test_points_lie_where_the_layout_says() -> None:
    x, y = head(NEUTRAL)[:, :2].T
    assert x[36] < x[39] < 0 < x[42] < x[45]  # eye corners from left to right
    assert y[8] == max(y)  # the chin
    assert y[19] < y[37] < y[33] < y[51] < y[57] < y[8]  # brow, eye, nose, lips, chin
    assert y[37] < y[41]  # upper lid, lower lid


def test_each_number_bends_its_own_part() -> None:
    moved = {
        name: set(
            np.flatnonzero(np.abs(head(changed(**{name: 1.0})) - head(NEUTRAL)).max(1) > 1e-9)
        )
        for name in ("brows", "lids", "smile", "jaw")
    }
    assert moved["brows"] == set(range(17, 27))
    assert moved["lids"] <= set(range(36, 48))
    assert moved["smile"] <= set(range(48, 68))
    assert moved["jaw"] <= set(range(17))
    assert all(moved.values())


def test_the_image_shows_the_mouth_where_its_points_are() -> None:
    """Inside the open mouth it is darker than the skin between mouth and chin, on most faces."""
    rng, darker, count = np.random.default_rng(0), 0, 0
    for _ in range(60):
        image, flat = face(rng, 64)
        points = flat.reshape(-1, 2)
        if points[66, 1] - points[62, 1] < 0.06:
            continue
        inside = (points[62] + points[66]) / 2
        below = (points[57] + points[8]) / 2
        grey = image.mean(0)
        (x, y), (u, v) = (64 * inside).astype(int), (64 * below).astype(int)
        count += 1
        darker += grey[y, x] < grey[v, u]
    assert count >= 10
    assert darker >= 0.8 * count
