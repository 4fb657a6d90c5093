"""mmdetection3d's info files: written, read to the same samples, refused; no pickle runs code."""

import collections
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.cli import main
from stillhouse.data.data import Ragged
from stillhouse.errors import BadData, StorageError
from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import from_bottom, inside
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.frames import FULL, REDUCED
from stillhouse_pointcloud.pickles import read_pickle
from stillhouse_pointcloud.stock import write_infos

KITTI = project_root(Path(__file__).parent) / "data" / "kitti-mini"
real = [
    pytest.mark.data,
    pytest.mark.skipif(
        not KITTI.is_dir(), reason=f"{KITTI} not found. Run: uv run dvc pull data.dvc"
    ),
]
# the camera looks along the LiDAR's x from its place: x right, y down, z front
CALIB = "P2: 100 0 50 0 0 100 40 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
CAR = "Car 0.10 1 0.3 10 20 60 70 1.5 1.6 4.0 2.0 1.75 10.0 0.0"
DONT = "DontCare -1 -1 -10 0 0 10 10 -1 -1 -1 -1000 -1000 -1000 -10"
# two points in the car, one before it, one behind the camera
CLOUD = np.array(
    [[10, -2, -1, 0.5], [10.5, -2.5, -1.2, 0.2], [5, 0, 0, 0.3], [-5, 0, 0, 0.1]], dtype=np.float32
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "kitti"
    for name in ("velodyne", "calib", "label_2", "planes", "image_2"):
        (root / "training" / name).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for i in range(5):
        cloud = CLOUD * np.array([1, 1, 1, 1 - i / 99], np.float32)
        cloud.tofile(root / f"training/velodyne/{i:06}.bin")
        (root / f"training/calib/{i:06}.txt").write_text(CALIB)
        Image.new("RGB", (100, 80)).save(root / f"training/image_2/{i:06}.png")
        kinds = [CAR, DONT, CAR.replace("Car", "Van")]
        (root / f"training/label_2/{i:06}.txt").write_text("\n".join(kinds[: 3 * (i != 1)]))
    (root / "training/planes/000000.txt").write_text("# Plane\nWidth 4\nHeight 1\n0 2 0 -3.3\n")
    (root / "ImageSets/train.txt").write_text("000000\n000001\n000002\n000003\n")
    (root / "ImageSets/val.txt").write_text("000004\n")
    return root


def read(source: Path):
    return ReadKitti()({"source": source}, work=Work.seeded(0))


def same(one, two) -> None:
    assert list(one) == list(two)
    for port, columns in one.items():
        assert list(columns) == list(two[port])
        for name, column in columns.items():
            other = two[port][name]
            if isinstance(column, Ragged):
                assert torch.equal(column.values, other.values)
                assert torch.equal(column.offsets, other.offsets)
            elif isinstance(column, torch.Tensor):
                assert torch.equal(column, other)
            else:
                assert column == other


def without_labels(folder: Path) -> Path:
    """What is left are the info files, the clouds and the images."""
    for name in ("training/calib", "training/label_2", "ImageSets"):
        shutil.rmtree(folder / name)
    return folder


def test_infos_by_hand(folder):
    counts = write_infos(folder, folder)
    assert counts == {
        "kitti_infos_train.pkl": 4, "kitti_infos_val.pkl": 1, "kitti_dbinfos_train.pkl": 6,
    }  # fmt: skip
    whole = read_pickle(folder / "kitti_infos_train.pkl")
    assert whole["metainfo"]["categories"]["Car"] == 2
    first, empty = whole["data_list"][:2]
    assert first["sample_idx"] == 0
    assert first["lidar_points"]["lidar_path"] == "000000.bin"
    assert first["images"]["CAM2"]["cam2img"][3] == [0, 0, 0, 1]
    # the normal (0, 2, 0) points down: it is turned over, and made 1 m long
    assert first["plane"] == pytest.approx([0, -1, 0, 1.65])
    assert "plane" not in empty
    assert empty["instances"] == []
    car, dont, van = first["instances"]
    assert (car["bbox_label_3d"], dont["bbox_label_3d"], van["bbox_label_3d"]) == (2, -1, 3)
    assert car["bbox_3d"] == [2.0, 1.75, 10.0, 4.0, 1.5, 1.6, 0.0]
    assert car["depth"] == 10
    assert car["center_2d"] == pytest.approx([100 * 2 / 10 + 50, 100 * 1 / 10 + 40])
    assert (car["num_lidar_pts"], dont["num_lidar_pts"]) == (2, -1)
    assert (car["truncated"], car["occluded"], car["alpha"], car["difficulty"]) == (0.1, 1, 0.3, 1)


def test_the_database_holds_the_objects_points(folder):
    write_infos(folder, folder)
    listed = read_pickle(folder / "kitti_dbinfos_train.pkl")
    assert {kind: len(objects) for kind, objects in listed.items()} == {"Car": 3, "Van": 3}
    one = listed["Car"][0]
    assert one["path"] == "kitti_gt_database/0_Car_0.bin"
    assert one["box3d_lidar"] == pytest.approx([10, -2, -1.75, 4.0, 1.6, 1.5, -math.pi / 2])
    points = np.fromfile(folder / one["path"], np.float32).reshape(-1, 4)
    # from the middle of the box's bottom
    assert points == pytest.approx(np.array([[0, 0, 0.75, 0.5], [0.5, -0.5, 0.55, 0.2]]))
    reduced = np.fromfile(folder / "training/velodyne_reduced/000000.bin", np.float32)
    assert reduced.reshape(-1, 4) == pytest.approx(CLOUD[:3])
    # no frame of the validation split is in it
    assert {one["image_idx"] for objects in listed.values() for one in objects} == {0, 2, 3}


def test_reduced_clouds_follow_the_scans_and_others_stay(folder):
    write_infos(folder, folder)
    reduced, scan = (folder / "training" / f"{kind}/000000.bin" for kind in (REDUCED, FULL))
    own = reduced.with_name("000099.bin")  # of no list: the user's own
    own.write_bytes(b"mine")
    CLOUD[:1].tofile(scan)
    write_infos(folder, folder)
    assert np.fromfile(reduced, np.float32).reshape(-1, 4) == pytest.approx(CLOUD[:1])
    assert own.read_bytes() == b"mine"


def test_a_file_in_the_place_of_the_folder_is_named(folder, tmp_path):
    place = tmp_path / "out"
    place.write_text("mine")
    with pytest.raises(StorageError, match=r"/out: a file, where a folder is to be; move it"):
        write_infos(folder, place)
    assert place.read_text() == "mine"


def test_the_same_samples_either_way(folder):
    plain = read(folder)
    write_infos(folder, folder)
    same(plain, read(folder))
    bare = without_labels(folder)
    same(plain, read(bare))
    same(plain, read(bare / "kitti_infos_train.pkl"))
    shutil.rmtree(bare / "training/velodyne")  # the reduced clouds are those within the image
    same(plain, read(bare))


class TestReal:
    pytestmark = real

    def test_the_same_samples_either_way(self, tmp_path):
        shutil.copytree(KITTI, tmp_path / "kitti")
        plain = read(tmp_path / "kitti")
        assert sum(write_infos(tmp_path / "kitti", tmp_path / "kitti").values()) == 19 + 71
        same(plain, read(without_labels(tmp_path / "kitti")))
        listed = read_pickle(tmp_path / "kitti/kitti_dbinfos_train.pkl")
        held = 0
        for one in (one for objects in listed.values() for one in objects):
            points = np.fromfile(tmp_path / "kitti" / one["path"], np.float32).reshape(-1, 4)
            assert len(points) == one["num_points_in_gt"]
            box = from_bottom(one["box3d_lidar"][None].astype(float))[0]
            grown = box * np.array([1, 1, 1, 1.001, 1.001, 1.001, 1])
            there = points[:, :3] + one["box3d_lidar"][:3]
            assert inside(there.astype(float), grown).all()
            held += len(points)
        assert held > 5000


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Trap(), "names pathlib"),
        ({"data_list": [np.array([Trap()], dtype=object)]}, "contains arrays of O8"),
        (print, "names builtins.print"),
        (collections.Counter("a"), "names collections.Counter"),
        (eval, "names builtins.eval"),
        (np.load, "names numpy.load"),
    ],
)
def test_a_pickle_runs_nothing(tmp_path, monkeypatch, value, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(BadData) as caught:
        read_pickle(tmp_path / "a.pkl")
    assert str(caught.value).startswith(
        f"{tmp_path}/a.pkl: not a pickle of numbers, texts, lists, dicts and numpy arrays alone "
        f"(it {named}"
    )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


class Bytes:
    """An array of objects at an address that the file chooses."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (np._core.multiarray.scalar, (np.dtype("O"), b"12345678")),
        (np.ndarray, ((1,), np.dtype("O"), b"12345678")),
        (np.ndarray, ((1,), np.dtype("i8"), b"12345678")),
        (np._core.numeric._frombuffer, (b"12345678", np.dtype("O"), (1,), "C")),
        (np._core.numeric._frombuffer, (b"1234", np.dtype("i8"), (1,), "C")),
        (np._core.numeric._frombuffer, (b"12345678", np.dtype([("a", "O")]), (1,), "C")),
    ],
)
def test_no_array_takes_bytes_for_addresses(tmp_path, call, args):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bytes(call, *args)))
    with pytest.raises(BadData, match=r"a.pkl: not a pickle of numbers"):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_and_arrays_of_every_protocol_are_read(tmp_path, protocol):
    value = {
        "a": [1, 2.5, "x", None, True, (3,), {4}],
        "array": np.arange(6.0).reshape(2, 3),
        "number": np.float32(0.5),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 4), np.float32),
        "texts": np.array(["Car", "Van"]),
        "ordered": collections.OrderedDict(b=1),
    }
    if protocol < 4:
        value["a"] = value["a"][:-1]  # protocols before 4 ask for the function set
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert found["a"] == value["a"]
    assert found["number"] == 0.5
    for name in ("array", "turned", "big", "none", "texts"):
        assert np.array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype


def test_what_is_no_pickle_is_named(tmp_path):
    for content in (b"", b"nothing", pickle.dumps([1] * 100)[:-20]):
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(BadData, match=r"a.pkl: not a pickle of numbers.*make it anew"):
            read_pickle(tmp_path / "a.pkl")
    with pytest.raises(BadData, match=r"b.pkl: cannot be read \(No such file"):
        read_pickle(tmp_path / "b.pkl")


def spoilt(folder: Path, what: str) -> None:
    file = folder / "kitti_infos_train.pkl"
    whole = read_pickle(file)
    first = whole["data_list"][0]
    match what:
        case "one":
            (folder / "kitti_infos_val.pkl").unlink()
        case "old":
            whole = whole["data_list"]
        case "none":
            whole["data_list"] = []
        case "cam":
            del first["images"]["CAM2"]
        case "matrix":
            first["images"]["R0_rect"] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        case "nan":
            first["instances"][0]["bbox_3d"][2] = math.nan
        case "size":
            first["instances"][0]["bbox_3d"][3] = 0.0
        case "cloud":
            first["lidar_points"]["lidar_path"] = "../../secret.bin"
        case "kind":
            whole["metainfo"]["categories"] = {"Boat": 2}
    file.write_bytes(pickle.dumps(whole))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("one", "kitti_infos_val.pkl: missing beside the other; run: stillhouse pointcloud kitti-infos {}"),
        ("old", "kitti_infos_train.pkl: a list without metainfo and data_list, as before mmdetection3d 1.1; make it anew: stillhouse pointcloud kitti-infos {}"),
        ("none", "kitti_infos_train.pkl: no frame in it; expected some"),
        ("cam", "kitti_infos_train.pkl: frame 0: no images.CAM2; expected mmdetection3d's of KITTI"),
        ("matrix", "kitti_infos_train.pkl: frame 0: images.R0_rect is not 16 finite numbers; correct it"),
        ("nan", "kitti_infos_train.pkl: frame 0: instance 0: bbox_3d is not 7 finite numbers; correct it"),
        ("size", "kitti_infos_train.pkl: frame 0: instance 0: sizes [1.5, 1.6, 0.0] are not all > 0; correct it"),
        ("cloud", "training/velodyne/secret.bin: missing; {}/kitti_infos_train.pkl: frame 0 names it"),
        ("kind", "kitti_infos_train.pkl: frame 0: instance 0: type 'Boat'; expected one of Car, Pedestrian, Cyclist, Van, Person_sitting, Truck, Tram, Misc, DontCare"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, what, message):
    write_infos(folder, folder)
    spoilt(folder, what)
    with pytest.raises(BadData) as caught:
        read(folder)
    assert str(caught.value) == f"{folder}/{message.format(folder)}"


def test_the_command(folder, tmp_path, capsys):
    assert main(["pointcloud", "kitti-infos", str(folder), "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/new/kitti_infos_train.pkl: 4 frames\n"
        f"{tmp_path}/new/kitti_infos_val.pkl: 1 frames\n"
        f"{tmp_path}/new/kitti_dbinfos_train.pkl: 6 objects\n"
    )
    assert not (folder / "kitti_infos_train.pkl").exists()
    assert len(list((tmp_path / "new/kitti_gt_database").iterdir())) == 6
    assert main(["pointcloud", "kitti-infos", str(tmp_path)]) == 2
    assert "expected KITTI" in capsys.readouterr().err
