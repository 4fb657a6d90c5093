"""On the real photos of data/, where they have been pulled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_sam.data import ReadEverything, ReadMasks
from stillhouse_sam.formats import decoded
from stillhouse_sam.prompts import boxes_of, unpack_masks
from stillhouse_sam.readers import find_photos

DATA = project_root(Path(__file__).parent) / "data"
MINI, PANOPTIC = DATA / "coco-mini", DATA / "coco-panoptic-val100"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not (MINI.is_dir() and PANOPTIC.is_dir()),
        reason=f"{MINI} or {PANOPTIC} not found. Run: uv run dvc pull data.dvc",
    ),
]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    ports = ReadMasks(size=128, low=32)({"source": MINI}, work=Work.seeded(0))
    return {port: next(iter(parts)) for port, parts in ports.items()}


def objects(columns: Any) -> list[dict[str, Any]]:
    return [thing for text in columns["annotations"] for thing in json.loads(text)["objects"]]


def test_all_photos_are_read(made: dict[str, Any]) -> None:
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 72, "validation": 8, "test": 79, "calibration": 64
    }  # fmt: skip
    training = objects(made["train"]) + objects(made["validation"])
    assert len(training) == 739
    assert sum(thing["crowd"] for thing in training) == 8
    assert len(objects(made["test"])) == 624
    assert sum(thing["crowd"] for thing in objects(made["test"])) == 5
    for columns in made.values():
        assert columns["sizes"].amax(1).eq(128).all()
        known = [json.loads(text) for text in columns["annotations"]]
        assert {photo["licence"] for photo in known} <= set(range(1, 7))
        assert all(photo["credit"].startswith("http") and photo["licence_name"] for photo in known)


def test_masks_are_within_their_boxes(made: dict[str, Any]) -> None:
    for columns in made.values():
        valid = columns["mask_valid"]
        low = boxes_of(unpack_masks(columns["masks"])[valid]) * 4
        boxes = columns["boxes"][valid]
        # a cell is at most half outside of the box on each side
        assert ((low[:, :2] >= boxes[:, :2] - 4) & (low[:, 2:] <= boxes[:, 2:] + 4)).all()
        sides = columns["sizes"].flip(1).repeat(1, 2)[:, None].expand_as(columns["boxes"])[valid]
        assert (boxes <= sides).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert torch.equal(columns["mask_valid"], columns["masks"].flatten(2).any(-1))


def test_areas_are_those_that_coco_tells() -> None:
    """Those of run lengths exactly; polygons count pixels here and their own area there."""
    told = {
        row["id"]: row
        for row in json.loads((MINI / "annotations/instances_val2017.json").read_text())[
            "annotations"
        ]
    }
    gaps: list[float] = []
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in told.values():
        by_image.setdefault(row["image_id"], []).append(row)
    for photo in find_photos(MINI)["validation"]:
        _, found = photo.read()
        for thing, row in zip(found, by_image.get(photo.place, []), strict=True):
            assert thing["crowd"] == row["iscrowd"]
            gaps.append(abs(thing["area"] - row["area"]) / max(row["area"], 100))
    assert len(gaps) == 624
    assert float(np.median(gaps)) < 0.03
    assert max(gaps) < 0.6


def test_panoptic_segments_are_the_whole_photo() -> None:
    (photos,) = find_photos(PANOPTIC).values()
    assert len(photos) == 100
    told = json.loads((PANOPTIC / "annotations/panoptic_val2017.json").read_text())
    areas = {row["image_id"]: row["segments_info"] for row in told["annotations"]}
    count = 0
    for photo in photos[::4]:
        image, found = photo.read()
        assert [thing["area"] for thing in found] == [row["area"] for row in areas[photo.place]]
        cover = np.stack([decoded(thing["rle"]) for thing in found]).sum(0)
        assert cover.shape == (image.height, image.width)
        assert cover.max() == 1
        count += len(found)
    assert sum(len(rows) for rows in areas.values()) == 1078
    assert count == sum(len(areas[photo.place]) for photo in photos[::4])


def test_no_panoptic_photo_is_trained_on() -> None:
    """Two are among those for testing; none among those for training."""
    (photos,) = find_photos(PANOPTIC).values()
    mini = find_photos(MINI)
    asked = {photo.place for photo in photos}
    assert asked & {photo.place for photo in mini["train"]} == set()
    assert asked & {photo.place for photo in mini["validation"]} == {139, 802}


def test_everything_is_the_first_ten() -> None:
    ports = ReadEverything()({"source": PANOPTIC}, work=Work())
    parts = list(ports["photos"])
    known = [json.loads(part["annotations"][0]) for part in parts]  # type: ignore[arg-type,index]
    assert len(known) == 10
    places = [int(photo["name"][:-4]) for photo in known]
    assert places == sorted(places)
    for part, photo in zip(parts, known, strict=True):
        assert len(part["photos"]) == 1
        assert part["photos"].values.shape == (photo["height"] * photo["width"], 3)  # type: ignore[union-attr]
