import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, Model, load_model
from stillhouse.errors import BadData, MissingData
from stillhouse.work import Work
from stillhouse_sam import predict as module
from stillhouse_sam.confidence import KeepEverything
from stillhouse_sam.counts import counted
from stillhouse_sam.everything import EverythingSettings
from stillhouse_sam.formats import decoded
from stillhouse_sam.models import SamNetwork, Shape, named
from stillhouse_sam.predict import FOLDER, predict

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
PHOTO = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


@pytest.fixture
def built() -> Built:
    torch.manual_seed(0)
    spec = named("sam-32x1", shape=SHAPE)
    return Built(spec=spec, module=spec.new().eval())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("a.png")


# a SAM of random weights is sure of nothing
SURE_OF_ALL = EverythingSettings(
    points_per_side=4, pred_iou_thresh=-9.0, stability_score_thresh=0.0
)


def all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTINGS", SURE_OF_ALL)


def test_masks_are_listed_in_pixels_of_the_image(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_kept(monkeypatch)
    row = predict(built, [Path("a.png")])[0]
    assert {name: row[name] for name in ("file", "drawn", "listed")} == {
        "file": "a.png", "drawn": "predictions/a.png", "listed": "predictions/a.json",
    }  # fmt: skip
    listed = json.loads((FOLDER / "a.json").read_text())
    assert listed["image"] == {"file_name": "a.png", "height": 40, "width": 56}
    masks = listed["annotations"]
    assert row["masks"] == len(masks) > 0
    for number, mask in enumerate(masks, 1):
        inside = decoded(mask["segmentation"])
        assert inside.shape == (40, 56)
        assert (mask["id"], mask["area"]) == (number, inside.sum())
        rows, columns = np.nonzero(inside)
        left, top, width, height = mask["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        # SAM's boxes end at the last pixel, not after it
        assert (left + width, top + height) == (columns.max(), rows.max())
        assert {"predicted_iou", "stability_score", "point_coords", "crop_box"} <= set(mask)
    assert [mask["area"] for mask in masks] == sorted((m["area"] for m in masks), reverse=True)


def test_small_images_are_drawn_larger_and_masks_where_they_are(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_kept(monkeypatch)
    Image.new("RGB", (56, 40), (90, 90, 90)).save("grey.png")
    predict(built, [Path("grey.png")])
    drawn = np.asarray(Image.open(FOLDER / "grey.png"))
    assert drawn.shape == (366, 512, 3)
    masks = json.loads((FOLDER / "grey.json").read_text())["annotations"]
    covered = np.any([decoded(mask["segmentation"]) for mask in masks], axis=0)
    shown = (drawn != 90).any(-1)[4::9, 4::9]  # about a pixel of the image each
    large = np.asarray(Image.fromarray(covered).resize((512, 366)))[4::9, 4::9]
    assert (shown == large).mean() > 0.95


def test_a_sam_is_asked_by_the_settings_kept_with_it(built: Built, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="not a whole SAM"):
        KeepEverything(settings=SURE_OF_ALL)(
            {"student": Built(spec=built.spec, module=torch.nn.Identity())},
            tmp_path / "x",
            work=Work(),
        )
    never = SURE_OF_ALL.with_confidence(math.inf)
    KeepEverything(settings=never)({"student": built}, tmp_path / "kept", work=Work())
    kept = load_model(tmp_path / "kept")
    assert isinstance(kept.module, SamNetwork)
    assert kept.module.everything is not None
    assert EverythingSettings.of(kept.module.everything) == never
    with counted(kept.module.sam) as counts:
        row = predict(kept, [Path("a.png")])[0]
    assert counts.prompts == 16  # of 4 x 4 none is skipped
    assert row["masks"] > 0


def test_an_image_of_which_nothing_is_kept(built: Built) -> None:
    assert isinstance(built.module, SamNetwork)
    for value in built.module.sam.mask_decoder.iou_prediction_head.parameters():
        torch.nn.init.zeros_(value)  # says of each mask that its IoU is 0
    row = predict(built, [Path("a.png")])[0]
    assert row["masks"] == 0
    assert json.loads((FOLDER / "a.json").read_text())["annotations"] == []
    assert np.asarray(Image.open(FOLDER / "a.png")).shape == (366, 512, 3)


def test_empty_masks_are_none_and_the_json_is_valid(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_kept(monkeypatch)
    assert isinstance(built.module, SamNetwork)
    for mlp in built.module.sam.mask_decoder.output_hypernetworks_mlps:
        for value in mlp.parameters():
            torch.nn.init.constant_(value, 0.0)
    built.module.sam.mask_threshold = 3.0  # no logit reaches it, so no mask is stable or unstable
    assert predict(built, [Path("a.png")])[0]["masks"] == 0

    def refused(name: str) -> None:
        raise AssertionError(name)

    text = (FOLDER / "a.json").read_text()
    assert json.loads(text, parse_constant=refused)["annotations"] == []


def test_of_a_large_image_fewer_points_are_decoded_at_a_time(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_kept(monkeypatch)
    whole = predict(built, [Path("a.png")])[0]
    before = (FOLDER / "a.json").read_text()
    assert isinstance(built.module, SamNetwork)
    monkeypatch.setattr(module, "PIXELS", 3 * 40 * 56 * 5)
    with counted(built.module.sam) as counts:
        assert predict(built, [Path("a.png")])[0]["masks"] == whole["masks"]
    assert counts.calls == 1 + 3  # 1 point, then 15, 5 at a time
    first, second = (
        json.loads(text)["annotations"] for text in (before, (FOLDER / "a.json").read_text())
    )
    assert [mask["segmentation"] for mask in first] == [mask["segmentation"] for mask in second]


def test_a_folder_stands_for_its_images_and_no_drawing_is_overwritten(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTINGS", EverythingSettings(points_per_side=1))
    for name in ("in/a.png", "in/sub/a.jpg", "in/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            Path(name).write_text("x")
        else:
            Image.new("RGB", (16, 16)).save(name)
    rows = predict(built, [Path("in"), Path("in/a.png")])
    assert [row["file"] for row in rows] == ["in/a.png", "in/sub/a.jpg", "in/a.png"]
    assert [Path(row["drawn"]).name for row in rows] == ["a.png", "a-2.png", "a-3.png"]
    assert sorted(p.name for p in FOLDER.glob("*.json")) == ["a-2.json", "a-3.json", "a.json"]


def test_what_cannot_be_used_is_named(built: Built) -> None:
    Path("empty").mkdir()
    with pytest.raises(MissingData, match="empty: no images in this folder"):
        predict(built, [Path("empty")])
    with pytest.raises(MissingData, match=r"c.png: there is no such file"):
        predict(built, [Path("c.png")])
    Path("d.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadData, match=r"d.jpg: not an image of a known format"):
        predict(built, [Path("d.jpg")])
    other = Built(spec=Model(build=torch.nn.Linear), module=torch.nn.Linear(1, 1))
    with pytest.raises(BadData, match="Linear: not a whole SAM"):
        predict(other, [])
