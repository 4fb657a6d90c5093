"""The command `predict` on clouds: the files it writes, and what it refuses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData, MissingData, StorageError
from stillhouse_pointcloud.detectors import SMALL_GRID, model
from stillhouse_pointcloud.detectors.anchors import PLACES
from stillhouse_pointcloud.formats import camera_box, camera_numbers, read_calib, read_labels
from stillhouse_pointcloud.predict import NOMINAL, predict, read
from stillhouse_pointcloud.samples import PROJECTION

# the camera 0.3 m before the LiDAR and 0.1 m below it
CALIB = "P2: 700 0 600 0 0 700 180 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.1 1 0 0 -0.3\n"
CLOUD = np.array([[10, 0, -1, 0.5], [12, 1, -1, 0.2], [-5, 0, 0, 0.1]], dtype=np.float32)


@pytest.fixture
def built():
    """A detector that says every first anchor of a cell is a car, whatever it sees: of those that
    overlap the first is kept.
    """
    torch.manual_seed(0)
    spec = model("pillars-4", grid=SMALL_GRID, layers=(0, 0, 0))
    module = spec.new().eval()
    with torch.no_grad():
        for conv in (module.head.cls, module.head.box, module.head.dir):
            conv.weight.zero_()
            conv.bias.zero_()
        module.head.cls.bias.fill_(-9)
        module.head.cls.bias.view(PLACES, 3)[0, 0] = 3.0
    return Built(spec=spec, module=module)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def kitti(name="000001"):
    for folder in ("velodyne", "calib", "image_2"):
        (Path("training") / folder).mkdir(parents=True, exist_ok=True)
    file = Path("training/velodyne") / f"{name}.bin"
    CLOUD.tofile(file)
    (Path("training/calib") / f"{name}.txt").write_text(CALIB)
    return file


def test_a_box_of_the_camera_and_back():
    Path("calib.txt").write_text(CALIB)
    calib = read_calib(Path("calib.txt"))
    for yaw in (-3.0, -0.5, 0.0, 1.0, 3.1):
        box = np.array([10.0, 2.0, -1.0, 4.0, 1.6, 1.5, yaw])
        assert camera_box(np.array(camera_numbers(box, calib)), calib) == pytest.approx(box)
    numbers = camera_numbers(np.array([10.0, 2.0, -1.0, 4.0, 1.6, 1.5, 0.0]), calib)
    # right of the camera is -y; its middle is 0.9 below it, its bottom 0.75 further; it faces ahead
    assert numbers == pytest.approx([1.5, 1.6, 4.0, -2.0, 0.9 + 0.75, 9.7, -math.pi / 2])
    assert NOMINAL.to_image == pytest.approx(PROJECTION)


def test_a_cloud_of_kitti_has_its_camera_and_its_image(built):
    file = kitti()
    Image.new("RGB", (1242, 375), (9, 8, 7)).save("training/image_2/000001.png")
    row = predict(built, [file])[0]
    assert row["camera"] == str(Path("training/calib/000001.txt").resolve())
    assert row["points"] == 2  # one is behind the camera
    assert (row["pedestrian"], row["cyclist"]) == (0, 0)
    labels = Path(row["listed"]).read_text().splitlines()
    assert len(labels) == row["car"] > 0
    words = labels[0].split()
    assert words[:3] == ["Car", "-1", "-1"]
    assert float(words[15]) == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-4)
    # read again, a line is an anchor: at a cell's middle, on the road, facing ahead
    calib = read_calib(Path("training/calib/000001.txt"))
    Path("first.txt").write_text(labels[0])
    box = read_labels(Path("first.txt"), calib)[0].box
    assert box[3:] == pytest.approx([3.9, 1.6, 1.56, 0.0], abs=0.01)
    assert ((box[0] - 0.55) / 1.1) % 1 == pytest.approx(0, abs=0.02)
    drawn = Image.open(row["drawn"]).convert("RGB")
    assert (9, 8, 7) in {colour for _, colour in drawn.getcolors(1 << 20)}


def test_a_cloud_alone_has_a_nominal_camera_and_no_drawing_is_overwritten(built):
    CLOUD.tofile("a.bin")
    Path("sub").mkdir()
    CLOUD.tofile("sub/a.bin")
    rows = predict(built, [Path()])
    assert [row["file"] for row in rows] == ["a.bin", "sub/a.bin"]
    assert [row["camera"] for row in rows] == ["nominal"] * 2
    assert [Path(row["drawn"]).name for row in rows] == ["a.png", "a-2.png"]
    assert all(Path(row["drawn"]).is_file() for row in rows)


def test_a_image_that_is_none_is_named(built):
    file, photo = kitti(), Path("training/image_2/000001.png")
    Image.new("RGB", (4, 4)).save(photo)
    torn = photo.read_bytes()[:33] + b"\0\0\0\1\xff\xff\xff\xff" + bytes(20)
    for content in (b"no image", torn):  # of which Pillow says OSError, SyntaxError
        photo.write_bytes(content)
        with pytest.raises(BadData, match=r"000001.png: not an? (whole )?image .*; replace it"):
            predict(built, [file])


def test_a_file_in_the_place_of_the_folder_is_named(built):
    CLOUD.tofile("a.bin")
    Path("predictions").write_text("mine")
    with pytest.raises(StorageError, match="predictions: a file, where a folder is to be; move it"):
        predict(built, [Path("a.bin")])
    assert Path("predictions").read_text() == "mine"


def test_clouds_of_others_are_turned_and_lowered():
    # nuScenes: x right, y front
    np.array([[-1.0, 10.0, -1.0, 51.0, 3.0]], dtype=np.float32).tofile("a.pcd.bin")
    assert read(Path("a.pcd.bin")).points[0] == pytest.approx([10, 1, -1, 0.2])
    import pyarrow as pa
    import pyarrow.feather as feather

    cells = {"x": [10.0], "y": [1.0], "z": [0.4], "intensity": [51]}
    feather.write_feather(pa.table(cells), "a.feather")
    assert read(Path("a.feather")).points[0] == pytest.approx([10, 1, -1.03, 0.2])


def linear() -> nn.Module:
    return nn.Linear(1, 1)


def test_what_cannot_be_used_is_named(built):
    with pytest.raises(MissingData, match="no.bin: there is no such file"):
        predict(built, [Path("no.bin")])
    Path("empty").mkdir()
    with pytest.raises(MissingData, match="empty: no clouds in this folder"):
        predict(built, [Path("empty")])
    (CLOUD[:2] * [-1, 1, 1, 1]).astype(np.float32).tofile("behind.bin")
    with pytest.raises(BadData, match="behind.bin: no point is in the camera's view"):
        predict(built, [Path("behind.bin")])
    np.full((2, 4), np.nan, dtype=np.float32).tofile("nan.bin")
    with pytest.raises(BadData, match="nan.bin: point 0 of 2 is not finite"):
        predict(built, [Path("nan.bin")])
    Path("torn.bin").write_bytes(b"123")
    with pytest.raises(BadData, match="torn.bin: 3 bytes are no multiple of 16"):
        predict(built, [Path("torn.bin")])
    other = Built(spec=Model(build=linear), module=linear())
    with pytest.raises(BadData, match="linear: a model that finds no boxes"):
        predict(other, [Path("torn.bin")])
