"""Reading KITTI's folders and other clouds: numbers by hand, real frames, and every refusal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
import torch
from PIL import Image

from stillhouse.data import save_data
from stillhouse.errors import BadData, BadSetting
from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import corners, from_bottom, in_view, inside, project, to_bottom
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.formats import difficulty, read_calib, read_labels
from stillhouse_pointcloud.frames import find_frames
from stillhouse_pointcloud.sweeps import lower, read_argoverse, read_bin, read_sweep

DATA = project_root(Path(__file__).parent) / "data"
KITTI, EXTRA = DATA / "kitti-mini", DATA / "lidar-extra"
real = [
    pytest.mark.data,
    pytest.mark.skipif(
        not KITTI.is_dir(), reason=f"{KITTI} not found. Run: uv run dvc pull data.dvc"
    ),
]
# the camera looks along the LiDAR's x from its place: x right, y down, z front
CALIB = "P2: 100 0 50 0 0 100 40 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
CAR = "Car 0.00 0 0.0 10 20 60 70 1.5 1.6 4.0 2.0 1.75 10.0 0.0"
DONT = "DontCare -1 -1 -10 0 0 10 10 -1 -1 -1 -1000 -1000 -1000 -10"
CLOUD = np.array([[10, 0, 0, 0.5], [12, 1, -1, 0.2], [-5, 0, 0, 0.1]], dtype=np.float32)


def write(folder: Path, frames: dict[str, str], val: str = "") -> Path:
    root = folder / "training"
    for name in ("velodyne", "calib", "label_2", "image_2"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets").mkdir(exist_ok=True)
    for i, (name, labels) in enumerate(frames.items()):
        (CLOUD * np.array([1, 1, 1, 1 - i / 99], np.float32)).tofile(root / f"velodyne/{name}.bin")
        (root / "calib" / f"{name}.txt").write_text(CALIB)
        (root / "label_2" / f"{name}.txt").write_text(labels)
        Image.new("RGB", (100, 80)).save(root / "image_2" / f"{name}.png")
    names = list(frames)
    (folder / "ImageSets" / "train.txt").write_text("\n".join(n for n in names if n != val))
    (folder / "ImageSets" / "val.txt").write_text(val)
    return folder


def read(source: Any, **kwargs: Any) -> dict[str, Any]:
    return dict(ReadKitti(**kwargs)({"source": source}, work=Work.seeded(0)))


def test_a_label_by_hand(tmp_path: Path) -> None:
    write(tmp_path, {"000": CAR})
    calib = read_calib(tmp_path / "training/calib/000.txt")
    (label,) = read_labels(tmp_path / "training/label_2/000.txt", calib)
    # 2 m to the right is y = -2, 1.75 m below is the bottom: the centre is at -1.75 + 0.75 = -1;
    # rotation_y 0 heads to the camera's right, the LiDAR's -y
    assert label.box == pytest.approx([10, -2, -1, 4.0, 1.6, 1.5, -math.pi / 2])
    assert label.difficulty == 0
    assert to_bottom(label.box[None])[0, 2] == pytest.approx(-1.75)
    assert from_bottom(to_bottom(label.box[None])) == pytest.approx(label.box[None])


def test_difficulty_is_the_first_whose_limits_are_kept() -> None:
    assert [difficulty(*row) for row in ((41, 0, 0.1), (40, 0, 0.1), (41, 1, 0.0), (30, 2, 0.5), (25, 0, 0), (99, 3, 0))] == [0, 1, 1, 2, -1, -1]  # fmt: skip


def test_corners_inside_and_projection_by_hand() -> None:
    box = np.array([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, math.pi / 2]])
    at = corners(box)[0]
    # turned by 90 degrees, the front left corner (2, 1) is at (-1, 2)
    assert at[0] == pytest.approx([0, 4, 2.5])
    assert at[6] == pytest.approx([2, 0, 3.5])
    points = np.array([[1, 3.9, 3], [2.9, 2, 3], [1, 2, 3.6]])
    assert inside(points, box[0]).tolist() == [True, False, False]
    matrix = np.array([[50.0, -100, 0, 0], [40, 0, -100, 0], [1, 0, 0, 0]])
    pixels, depth = project(np.array([[10.0, 1, -1]]), matrix)
    assert (pixels[0].tolist(), depth[0]) == ([40, 50], 10)
    assert in_view(CLOUD.astype(float), matrix, (100, 80)).tolist() == [True, True, False]


def test_ports_and_columns(tmp_path: Path) -> None:
    labels = f"{CAR}\n{DONT}\n{CAR.replace('Car', 'Van')}\n{CAR.replace('Car', 'Cyclist')}\n"
    made = read(write(tmp_path, {f"{i:03}": labels for i in range(5)} | {"900": CAR}, val="900"))
    assert {port: len(columns["frames"]) for port, columns in made.items()} == {
        "train": 4, "validation": 1, "test": 1
    }  # fmt: skip
    train = made["train"]
    assert train["points"].values.shape == (8, 4)  # the point behind the camera is not seen
    assert train["labels"].values.tolist() == [0, 2] * 4
    assert train["ignored_labels"].values.tolist() == [0] * 4
    assert train["boxes"].values.dtype == torch.float32
    assert made["test"]["boxes"].values.shape == (1, 7)
    names = [json.loads(text)["name"] for port in made.values() for text in port["frames"]]
    assert sorted(names) == ["000", "001", "002", "003", "004", "900"]
    assert train["projection"].shape == (4, 3, 4)
    whole = read(tmp_path, view=False)
    assert whole["train"]["points"].values.shape == (12, 4)
    save_data(tmp_path / "saved", made["train"])


def test_the_rng_draws_the_validation_frames(tmp_path: Path) -> None:
    source = write(tmp_path, {f"{i:03}": CAR for i in range(9)}, val="008")

    def held(seed: int) -> list[str]:
        made = ReadKitti(validation=0.4)({"source": source}, work=Work.seeded(seed))
        frames = made["validation"]["frames"]  # type: ignore[index]
        return [json.loads(text)["name"] for text in frames]

    assert held(0) == held(0)
    assert len({tuple(held(seed)) for seed in range(8)}) > 1


def broken(folder: Path, what: str) -> None:
    root, nan = folder / "training", CLOUD.copy()
    nan[1, 2] = np.nan
    cloud = root / "velodyne/000.bin"
    if what == "nan":
        nan.tofile(cloud)
    elif what == "empty":
        cloud.write_bytes(b"")
    elif what == "stride":
        np.zeros((3, 5), np.float32).tofile(cloud)
    elif what == "unseen":
        CLOUD[2:].tofile(cloud)
    elif what in ("calib", "label_2"):
        (root / what / "000.txt").unlink()
    elif what == "points":
        cloud.unlink()
    elif what == "matrix":
        (root / "calib/000.txt").write_text(CALIB.replace("R0_rect", "R1"))
    elif what == "numbers":
        (root / "calib/000.txt").write_text(CALIB.replace("R0_rect: 1", "R0_rect:"))
    elif what == "list":
        (folder / "ImageSets/val.txt").unlink()
    elif what == "none":
        (folder / "ImageSets/val.txt").write_text("\n")
    else:
        (root / "label_2/000.txt").write_text(f"{CAR}\n{what}\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "training/velodyne/000.bin: point 1 of 3 is not finite [12.0, 1.0, nan, 0.20000000298023224]; remove such points"),
        ("empty", "training/velodyne/000.bin: the cloud is empty; remove the frame or get it again"),
        ("stride", "training/velodyne/000.bin: it holds five numbers a point (3 points), not float32 x, y, z, reflectance (0..1); keep four of them: points = numpy.fromfile(file, 'float32').reshape(-1, 5)[:, :4], the fourth brought to 0..1"),
        ("unseen", "training/velodyne/000.bin: none of its 1 points is within the image (100 x 80 pixels) by calib's P2, R0_rect and Tr_velo_to_cam; correct these, or take the frame off its list"),
        ("calib", "training/calib/000.txt: missing; frame 000 needs its calib, or leave ImageSets' list"),
        ("label_2", "training/label_2/000.txt: missing; frame 000 needs its label, or leave ImageSets' list"),
        ("points", "training/velodyne/000.bin: missing; frame 000 needs its points, or leave ImageSets' list"),
        ("matrix", "training/calib/000.txt: no R0_rect; expected P2, R0_rect and Tr_velo_to_cam"),
        ("numbers", "training/calib/000.txt: R0_rect: '0 0 0 1 0 0 0 1' is not 9 finite numbers; correct it"),
        ("list", "ImageSets/val.txt: cannot be read as text (No such file or directory); replace it"),
        ("none", "ImageSets/val.txt: no frame in it; expected some"),
        ("Car 0 0 1", "training/label_2/000.txt: line 2: 4 fields; expected 15: type and 14 numbers"),
        (CAR.replace("1.75", "x"), "training/label_2/000.txt: line 2: '0.00 0 0.0 10 20 60 70 1.5 1.6 4.0 2.0 x 10.0 0.0' is not 14 finite numbers; correct it"),
        (CAR.replace("Car", "car"), "training/label_2/000.txt: line 2: type 'car'; expected one of Car, Pedestrian, Cyclist, Van, Person_sitting, Truck, Tram, Misc, DontCare"),
        (CAR.replace("1.6", "0"), "training/label_2/000.txt: line 2: sizes [1.5, 0.0, 4.0] are not all > 0; correct it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, what: str, message: str) -> None:
    source = write(tmp_path, {"000": CAR, "001": CAR, "002": CAR}, val="002")
    broken(source, what)
    with pytest.raises(BadData) as caught:
        read(source)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(
        BadData, match="no training/velodyne or training/velodyne_reduced; expected"
    ):
        read(tmp_path)
    with pytest.raises(BadData, match="source: a int; expected arrays or a KITTI folder"):
        read(3)
    with pytest.raises(
        BadData, match="source: no train_points; expected what samples.scenes gives"
    ):
        read({})
    with pytest.raises(
        BadData, match=r"train: 1 frame\(s\); keeping some for validation needs two"
    ):
        read(write(tmp_path, {"000": CAR, "001": CAR}, val="001"))
    with pytest.raises(BadSetting, match=r"validation must be > 0 and < 1 \(got 1.0\)"):
        ReadKitti(validation=1.0)
    with pytest.raises(
        BadData, match=r"a.ply: not a known cloud; expected .bin \(float32 x, y, z, refl"
    ):
        read_sweep(tmp_path / "a.ply")
    with pytest.raises(BadData, match=r"a.bin: cannot be read \(No such file or directory\)"):
        read_sweep(tmp_path / "a.bin")


def test_sweeps_of_nuscenes_and_argoverse(tmp_path: Path) -> None:
    five = np.array([[1, 2, 3, 255, 7], [4, 5, 6, 51, 8]], dtype=np.float32)
    five.tofile(tmp_path / "a.pcd.bin")
    expected = [[1, 2, 3, 1], [4, 5, 6, np.float32(0.2)]]
    assert read_sweep(tmp_path / "a.pcd.bin").tolist() == expected
    table = {"x": five[:, 0], "y": five[:, 1], "z": five[:, 2]}
    feather.write_feather(pa.table(table), tmp_path / "b.feather")
    with pytest.raises(
        BadData, match="b.feather: no column intensity; expected x, y, z, intensity"
    ):
        read_sweep(tmp_path / "b.feather")
    table["intensity"] = five[:, 3].astype(np.uint8)
    feather.write_feather(pa.table(table), tmp_path / "b.feather")
    assert read_argoverse(tmp_path / "b.feather").tolist() == expected
    assert lower(read_bin(tmp_path / "a.pcd.bin", floats=5), 1.5)[:, 2].tolist() == [1.5, 4.5]
    (tmp_path / "c.feather").write_bytes(b"nothing")
    with pytest.raises(BadData, match=r"c.feather: cannot be read as feather \("):
        read_sweep(tmp_path / "c.feather")


class TestReal:
    pytestmark = real

    def test_all_frames(self) -> None:
        made = read(KITTI)
        assert {port: len(columns["frames"]) for port, columns in made.items()} == {
            "train": 12, "validation": 1, "test": 6
        }  # fmt: skip
        counts = sum(torch.bincount(made[port]["labels"].values, minlength=3) for port in made)
        assert torch.as_tensor(counts).tolist() == [74, 25, 14]
        assert sum(len(made[port]["ignored"].values) for port in made) == 5

    def test_boxes_hold_points_and_their_images_agree(self) -> None:
        """Cars that are not hidden hold points; a box's outline in the image is its 2D box."""
        found: list[int] = []
        errors: list[float] = []
        for frame in find_frames(KITTI)["train"]:
            calib = read_calib(frame.calib)
            points = read_bin(frame.points).astype(float)
            for label in read_labels(frame.label, calib):
                if label.type != "Car" or label.difficulty != 0 or label.truncation > 0:
                    continue
                found.append(int(inside(points, label.box).sum()))
                pixels, _ = project(corners(label.box[None]), calib.to_image)
                outline = [*pixels[0].min(axis=0), *pixels[0].max(axis=0)]
                errors.append(float(np.abs(np.array(outline) - label.box_2d).max()))
        assert len(found) > 10
        assert sorted(found)[1] > 50  # a labelled car of frame 002155 has no point
        assert max(errors) < 2

    def test_an_argoverse_sweep(self) -> None:
        file = sorted(EXTRA.rglob("sensors/lidar/*.feather"))[0]
        points = read_sweep(file)
        assert points.shape in {(100_660, 4), (99_229, 4), (99_466, 4)}
        assert 0 <= points[:, 3].min() <= points[:, 3].max() <= 1
