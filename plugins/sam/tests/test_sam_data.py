"""Images, masks and boxes in the frame: by hand, from folders, from scenes, from real photos."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from stillhouse.data import Ragged, TensorData, save_data
from stillhouse.data.shards import load_data
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_sam import data, samples
from stillhouse_sam.augment import Flip
from stillhouse_sam.data import ReadEverything, ReadMasks, lowered
from stillhouse_sam.formats import decoded, encoded
from stillhouse_sam.prompts import boxes_of, points_in, unpack_masks

Read = dict[str, dict[str, Any]]


def joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of a stream."""
    rows = list(parts)
    found: dict[str, Any] = {}
    for name in rows[0]:
        first = rows[0][name]
        columns = [part[name] for part in rows]
        if isinstance(first, Tensor):
            found[name] = torch.cat(columns)
        elif isinstance(first, list):
            found[name] = [value for column in columns for value in column]
        else:
            found[name] = [column.values for column in columns]
    return found


def read(source: Any, *, seed: int = 0, **settings: Any) -> Read:
    reader = ReadMasks(**{"size": 32, "low": 8, "masks": 3, **settings})
    ports = reader({"source": source}, work=Work.seeded(seed))
    return {port: joined(columns) for port, columns in ports.items()}


def write_photo(
    folder: Path, split: str, number: int, masks: list[NDArray[np.bool_]], **first: Any
) -> None:
    """A photo and its entry in the split's JSON; white where an object is."""
    path = folder / "annotations" / f"instances_{split}.json"
    empty = {"images": [], "annotations": [], "categories": []}
    content = json.loads(path.read_text()) if path.is_file() else empty
    height, width = masks[0].shape
    name = f"{number}.png"
    content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
    for mask in masks:
        if mask.any():
            row = {"id": len(content["annotations"]), "image_id": number, "iscrowd": 0}
            content["annotations"].append({**row, "segmentation": encoded(mask), **first})
            first = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    (folder / split).mkdir(exist_ok=True)
    grey = np.maximum(np.stack(masks).any(0) * 255, number % 100).astype(np.uint8)
    Image.fromarray(grey).save(folder / split / name)


def block(top: int, left: int, height: int, width: int, of: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(of, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def write_photos(folder: Path, counts: dict[str, int], of: tuple[int, int] = (40, 64)) -> Path:
    number = 1
    for split, count in counts.items():
        for _ in range(count):
            masks = [block(8, 8, 16, 12, of), block(4, 30, 20, 20, of), block(0, 0, 1, 1, of)]
            write_photo(folder, split, number, masks)
            number += 1
    return folder


def test_columns_by_hand(tmp_path: Path) -> None:
    """A photo of 40 x 64 in a frame of 32: half as large, 20 rows of it real."""
    made = read(write_photos(tmp_path, {"train": 3, "val": 2}))["test"]
    assert {name: tuple(made[name].shape) for name in made if name != "annotations"} == {
        "images": (2, 3, 32, 32), "sizes": (2, 2), "masks": (2, 3, 8, 1),
        "mask_valid": (2, 3), "boxes": (2, 3, 4), "point_coords": (2, 1, 2, 2),
        "point_labels": (2, 1, 2),
    }  # fmt: skip
    assert made["sizes"].tolist() == [[20, 32]] * 2
    # the larger first; the pixel in the corner is no half of a cell of 8 x 8
    assert made["mask_valid"].tolist() == [[True, True, False]] * 2
    assert made["boxes"][0].tolist() == [[15, 2, 25, 12], [4, 4, 10, 12], [0, 0, 0, 0]]
    masks = unpack_masks(made["masks"])[0]
    # 20 x 20 at (30, 4) in cells of 8: columns 3.75 to 6.25, rows 0.5 to 3, the half one counts
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:3, 4:6] = True
    assert torch.equal(masks[0], expected)
    # 12 wide from column 8: columns 1 to 2.5
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:3, 1:3] = True
    assert torch.equal(masks[1], expected)
    assert not masks[2].any()
    image = made["images"][0]
    assert not image[:, 20:].any()
    assert image[:, 5:11, 5:9].min() > 250
    known = json.loads(made["annotations"][0])
    assert [thing["area"] for thing in known["objects"]] == [192, 400, 1]  # all, as they were
    assert (known["height"], known["width"], known["name"]) == (40, 64, "4.png")
    assert (decoded(known["objects"][1]["rle"]) == block(4, 30, 20, 20, (40, 64))).all()


def test_lowered_is_the_mean_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((48, 64)) < 0.5
        low, box = lowered(mask, np.array([1 / 4, 1 / 4]), 16)
        mean = mask.reshape(12, 4, 16, 4).mean((1, 3))
        assert (low[:12] == (mean >= 0.5)).all()
        assert not low[12:].any()
        assert box.tolist() == boxes_of(torch.from_numpy(mask)).tolist()


def test_lowered_at_broken_scales_is_that_of_finer_pixels() -> None:
    mask = np.random.default_rng(0).random((30, 42)) < 0.4
    finer = mask.repeat(16, 0).repeat(16, 1)
    direct, _ = lowered(mask, np.array([16 / 42, 16 / 42]), 16)
    slow = np.zeros((16, 16))
    for y, x in np.argwhere(finer):
        slow[int((y + 0.5) / 42), int((x + 0.5) / 42)] += 1 / 42**2
    assert (direct == (slow >= 0.5)).all()


def test_a_larger_frame_enlarges(tmp_path: Path) -> None:
    made = read(write_photos(tmp_path, {"train": 3, "val": 1}, (40, 20)), size=80, low=40)["test"]
    assert made["sizes"].tolist() == [[80, 40]]
    assert made["boxes"][0, 1].tolist() == [0, 0, 2, 2]  # the second object is the pixel
    masks = unpack_masks(made["masks"])[0]
    assert masks[0, 8:24, 8:20].all()
    assert masks[0].sum() == 16 * 12
    assert masks[1].sum() == 1


def test_crowds_are_no_masks(tmp_path: Path) -> None:
    of = (32, 32)
    for split, number in (("train", 1), ("train", 2), ("val", 3)):
        masks = [block(0, 0, 20, 20, of), block(4, 20, 10, 10, of)]
        write_photo(tmp_path, split, number, masks, iscrowd=1)
    made = read(tmp_path)["test"]
    assert made["mask_valid"].tolist() == [[True, False, False]]
    assert made["boxes"][0, 0].tolist() == [20, 4, 30, 14]
    assert [o["crowd"] for o in json.loads(made["annotations"][0])["objects"]] == [1, 0]


def test_the_largest_are_kept(tmp_path: Path) -> None:
    of = (64, 64)
    for split, number in (("train", 1), ("train", 2), ("val", 3)):
        sides = (8, 24, 16, 12)
        masks = [block(0, 0, side, side, of) for side in sides]
        write_photo(tmp_path, split, number, masks)
    made = read(tmp_path)["test"]
    assert made["boxes"][0, :, 2].tolist() == [12, 8, 6]
    assert made["boxes"].dtype == torch.float32


def names(columns: Mapping[str, Any]) -> list[str]:
    return [json.loads(text)["name"] for text in columns["annotations"]]


def test_splits_are_kept_and_validation_is_of_train(tmp_path: Path) -> None:
    made = read(write_photos(tmp_path, {"train": 10, "val": 4}), validation=0.3)
    assert names(made["test"]) == ["11.png", "12.png", "13.png", "14.png"]
    assert len(names(made["validation"])) == 3
    assert sorted(names(made["train"]) + names(made["validation"]), key=lambda n: int(n[:-4])) == [
        f"{i}.png" for i in range(1, 11)
    ]
    again = read(tmp_path, validation=0.3)
    assert names(again["validation"]) == names(made["validation"])
    others = [names(read(tmp_path, validation=0.3, seed=s)["validation"]) for s in range(1, 5)]
    assert any(other != names(made["validation"]) for other in others)


def test_val_beside_test_is_validation(tmp_path: Path) -> None:
    made = read(write_photos(tmp_path, {"train": 2, "val": 1, "test": 1}))
    assert [names(made[port]) for port in ("train", "validation", "test")] == [
        ["1.png", "2.png"], ["3.png"], ["4.png"]
    ]  # fmt: skip


def test_one_part_is_parted(tmp_path: Path) -> None:
    made = read(write_photos(tmp_path, {"val": 20}), held_out=0.25, validation=0.2)
    counts = {port: len(names(made[port])) for port in made}
    assert counts == {"train": 12, "validation": 3, "test": 5, "calibration": 12}
    assert len({name for port in made for name in names(made[port])}) == 20
    assert names(made["calibration"]) == names(made["train"])


def test_everything_mode_is_asked_of_photos_kept_for_testing(tmp_path: Path) -> None:
    write_photos(tmp_path, {"val": 20})
    made = read(tmp_path, held_out=0.25)
    ports = ReadEverything(count=9, held_out=0.25)({"source": tmp_path}, work=Work.seeded(0))
    assert names(joined(ports["photos"])) == names(made["test"])
    whole = ReadEverything(count=30)({"source": tmp_path}, work=Work.seeded(0))
    assert len(names(joined(whole["photos"]))) == 20


def test_prompts_are_boxes_and_for_calibration_clicks(tmp_path: Path) -> None:
    made = read(write_photos(tmp_path, {"train": 6, "val": 2}))
    test, some = made["test"], made["calibration"]
    assert test["point_coords"].flatten(1).tolist() == test["boxes"][:, 0].tolist()
    assert test["point_labels"].tolist() == [[[2, 3]]] * 2
    assert some["point_labels"][:2].tolist() == [[[2, 3]], [[1, -1]]]
    x, y = (some["point_coords"][1, 0, 0] / 4).long().tolist()
    assert unpack_masks(some["masks"])[1, 0, y, x]
    assert "point_coords" not in made["train"]


def test_unlabelled_photos_are_for_training_alone(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 4})
    for number in range(50, 60):
        write_photo(tmp_path, "train", number, [np.zeros((40, 64), dtype=bool)])
    made = read(tmp_path)
    assert {port: len(names(made[port])) for port in made} == {
        "train": 12, "validation": 1, "test": 1, "calibration": 2
    }  # fmt: skip
    assert made["train"]["mask_valid"].any(1).sum() == 2
    assert not made["train"]["masks"][~made["train"]["mask_valid"]].any()
    for port in ("validation", "test"):
        assert made[port]["mask_valid"].any(1).all()


def test_scenes_are_added_to_train_alone(tmp_path: Path) -> None:
    source = write_photos(tmp_path, {"train": 4, "val": 2})
    plain, mixed = read(source), read(source, scenes=5)
    assert names(mixed["train"]) == names(plain["train"]) + [f"scene-{i:06d}" for i in range(5)]
    for port in ("validation", "test"):
        assert names(mixed[port]) == names(plain[port])
        assert torch.equal(mixed[port]["images"], plain[port]["images"])
    assert mixed["train"]["mask_valid"][-5:].any(1).all()
    again = read(source, scenes=3)
    assert torch.equal(again["train"]["images"], mixed["train"]["images"][:-2])
    other = read(source, scenes=5, seed=1)
    assert not torch.equal(other["train"]["images"][-5:], mixed["train"]["images"][-5:])
    # no rendered one sets the steps of quantized numbers
    assert names(mixed["calibration"]) == names(plain["train"])
    for seed in range(6):
        some = read(source, scenes=5, calibration=2, seed=seed)
        photos = names(some["train"])[:-5]
        assert len(names(some["calibration"])) == 2
        assert set(names(some["calibration"])) < set(photos)
    with pytest.raises(BadSetting, match="calibration must be > 0"):
        read(source, calibration=0)
    known = json.loads(mixed["train"]["annotations"][-1])
    assert known["licence"] is None
    assert len(known["objects"]) >= mixed["train"]["mask_valid"][-1].sum()


def test_shards_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_photos(tmp_path / "photos", {"train": 8, "val": 2})
    whole = read(source, scenes=3)
    monkeypatch.setattr(data, "SHARD_BYTES", 2 * 3 * 32**2 + 100)
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", 100)
    ports = ReadMasks(size=32, low=8, masks=3, scenes=3)({"source": source}, work=Work.seeded(0))
    save_data(tmp_path / "train", ports["train"])
    assert len(list((tmp_path / "train").glob("*.arrow"))) == 5
    loaded = load_data(tmp_path / "train")
    for name in ("images", "sizes", "masks", "mask_valid", "boxes"):
        assert torch.equal(loaded.columns[name], whole["train"][name])  # type: ignore[arg-type]
    assert loaded.columns["annotations"] == whole["train"]["annotations"]
    assert loaded.columns["id"].tolist() == list(range(len(loaded)))  # type: ignore[union-attr]


def test_the_built_in_scenes_are_read_as_they_were_drawn() -> None:
    arrays = samples.scenes()
    made = read(arrays, size=64, low=64, masks=8)
    assert {port: len(names(made[port])) for port in made} == {
        "train": 144, "validation": 16, "test": 48, "calibration": 64
    }  # fmt: skip
    assert (made["test"]["images"].numpy() == arrays["test_images"]).all()
    assert (made["test"]["sizes"].numpy() == arrays["test_sizes"]).all()
    masks, drawn = unpack_masks(made["test"]["masks"]).numpy(), arrays["test_masks"]
    whole = np.unpackbits(drawn, axis=-1).astype(bool)
    for row in range(48):  # the same ones, the largest first
        assert sorted(map(bytes, masks[row])) == sorted(map(bytes, whole[row]))
        areas = masks[row].sum((1, 2))
        assert (areas[:-1] >= areas[1:]).all()
    assert torch.equal(boxes_of(unpack_masks(made["test"]["masks"])), made["test"]["boxes"])


def test_rows_can_be_prompted_and_mirrored() -> None:
    made = read(samples.scenes(), size=64, low=16, masks=8)["validation"]
    valid = made["mask_valid"]
    points = points_in(unpack_masks(made["masks"])[valid], rng=Generator().manual_seed(0))
    boxes = made["boxes"][valid]
    assert ((points * 4 + 4 > boxes[:, :2]) & (points * 4 < boxes[:, 2:])).all()
    batch = {name: made[name] for name in ("images", "sizes", "masks", "boxes")}
    turned = Flip()({**batch, "view": torch.ones(len(valid), dtype=torch.int64)})
    assert torch.equal(turned["boxes"][~valid], torch.zeros(int((~valid).sum()), 4))


def test_everything_is_the_first_photos_by_id(tmp_path: Path) -> None:
    for number in (30, 4, 200):
        write_photo(tmp_path, "val", number, [block(0, 0, 4, number % 7 + 2, (10, 12 + number))])
    write_photo(tmp_path, "val", 2, [np.zeros((5, 5), dtype=bool)])  # unlabelled: not asked
    write_photos(tmp_path, {"train": 2})
    ports = ReadEverything(count=2)({"source": tmp_path}, work=Work())
    made = joined(ports["photos"])
    assert names(made) == ["4.png", "30.png"]
    assert made["original_sizes"].tolist() == [[10, 16], [10, 42]]
    assert [len(values) for values in made["photos"]] == [160, 420]
    grey = np.asarray(Image.open(tmp_path / "val" / "30.png"))
    assert (made["photos"][1].reshape(10, 42, 3).numpy() == grey[..., None]).all()


def test_everything_is_kept_in_a_folder(tmp_path: Path) -> None:
    ports = ReadEverything(count=3)({"source": samples.scenes()}, work=Work())
    save_data(tmp_path / "photos", ports["photos"])
    loaded = load_data(tmp_path / "photos")
    assert isinstance(loaded, TensorData)
    assert len(loaded) == 3
    photos, sizes = loaded.columns["photos"], loaded.columns["original_sizes"]
    assert isinstance(photos, Ragged)
    assert isinstance(sizes, Tensor)
    assert photos.offsets.diff().tolist() == sizes.prod(1).tolist()
    assert sizes.tolist() == samples.scenes()["test_sizes"][:3].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0, "low": 8}, r"size and masks must be >= 1 \(got 0, 8\)"),
        ({"size": 32, "low": 8, "masks": 0}, "size and masks must be >= 1"),
        ({"size": 32, "low": 12}, "low must be a multiple of 8, from 8 to size 32"),
        ({"size": 32, "low": 40}, r"low must be .* \(got 40\)"),
        ({"size": 32, "low": 0}, r"low must be .* \(got 0\)"),
        ({"size": 32, "low": 8, "validation": 0.0}, "validation must be > 0 and < 1"),
        ({"size": 32, "low": 8, "held_out": 1.0}, "held_out must be > 0 and < 1"),
        ({"size": 32, "low": 8, "scenes": -1}, "scenes must be >= 0"),
        ({"size": 33, "low": 8, "scenes": 1}, "size must be a multiple of 8 from 16 on"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ReadMasks(**settings)


def test_counts_are_checked() -> None:
    with pytest.raises(BadSetting, match=r"count must be >= 1 \(got 0\)"):
        ReadEverything(count=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((2, 3, 8, 8))}, "train_images: float64"),
        ({"test_sizes": np.full((48, 2), 65)}, r"test_sizes: expected \[48, 2\], .* 64"),
        ({"test_masks": np.zeros((47, 8, 64, 8), np.uint8)}, r"test_masks: .*\[48, "),
        ({"test_masks": np.zeros((48, 8, 64, 4), np.uint8)}, r"test_masks: .*K, 64, 8\]"),
        ({"train_masks": np.zeros((160, 8, 64, 8), np.uint8)}, "0 labelled photo"),
        ({"test_masks": np.zeros((48, 8, 64, 8), np.uint8)}, "test: no object"),
    ],
    ids=("dtype", "sizes", "count", "side", "unlabelled", "no test"),
)
def test_arrays_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        read({**samples.scenes(), **changed}, size=64)


def test_sources_are_checked() -> None:
    with pytest.raises(BadData, match="source: a int; expected arrays or a folder"):
        read(3)
    with pytest.raises(BadData, match=r"source: no train_images; expected what samples\.scenes"):
        read({})


def test_one_photo_cannot_be_parted(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"1\.png\): 1 labelled photo\(s\); keeping some for test"):
        read(write_photos(tmp_path, {"train": 1}))


def test_a_broken_photo_is_named(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 4, "val": 2})
    (tmp_path / "val" / "5.png").write_bytes(b"no image")
    with pytest.raises(BadData, match="val/5.png: not an image of a known format; replace it"):
        read(tmp_path)
