"""KITTI folders of users: what would end in wrong boxes or scores is refused, with what would do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillhouse.data import TensorData, read_image
from stillhouse.data.notes import noted
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_pointcloud.camera_images import WithCameraImages
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import Found
from stillhouse_pointcloud.frames import REDUCED
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.stock import write_infos
from stillhouse_pointcloud.sweeps import read_bin

CARS = 12  # a frame


def cloud(count=200, seed=0):
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((6, -2, -1.5), (40, 2, 1), (count, 3))
    return np.concatenate([xyz, rng.random((count, 1))], axis=1).astype(np.float32)


def calib(size, focal):
    x, y = size[0] / 2, size[1] / 2
    return (
        f"P2: {focal} 0 {x} 0 0 {focal} {y} 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
        "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )


def labels(size, focal):
    """Cars on both sides of the lane, with their outlines' heights in the image."""
    lines = []
    for i in range(CARS):
        x, z = -4 + 8 * (i % 2), 8 + 4 * (i // 2)
        top, high = size[1] / 2 + focal * 0.2 / z, focal * 1.5 / z
        lines.append(f"Car 0 0 0 9 {top:.1f} 60 {top + high:.1f} 1.5 1.6 4 {x} 1.7 {z} -1.57")
    return "\n".join(lines)


def kitti(folder: Path, size=(1242, 375), focal=707.0, suffix=".png", frames=4) -> Path:
    root = folder / "training"
    for name in ("velodyne", "calib", "label_2", "image_2"):
        (root / name).mkdir(parents=True)
    for i in range(frames):
        cloud(seed=i).tofile(root / f"velodyne/{i:06}.bin")
        (root / f"calib/{i:06}.txt").write_text(calib(size, focal))
        (root / f"label_2/{i:06}.txt").write_text(labels(size, focal))
        Image.new("RGB", size).save(root / f"image_2/{i:06}{suffix}")
    (folder / "ImageSets").mkdir()
    names = [f"{i:06}" for i in range(frames)]
    (folder / "ImageSets/train.txt").write_text("\n".join(names[: frames // 2]))
    (folder / "ImageSets/val.txt").write_text("\n".join(names[frames // 2 :]))
    return folder


def read(source: Path):
    return ReadKitti()({"source": source}, work=Work.seeded(0))


class Says(nn.Module):
    """The truth, and surer than it cars in the middle of the lane, where there is none."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {name: batch[name] for name in ("boxes", "boxes_offsets")}

    def boxes(self, outputs, picking):
        made = []
        for truth in outputs["boxes"].split(outputs["boxes_offsets"].diff().tolist()):
            wrong = truth.clone()
            wrong[:, 1] = 0
            wrong = wrong.unique(dim=0)
            scores = torch.cat([torch.full((len(wrong),), 0.9), torch.full((len(truth),), 0.5)])
            boxes = torch.cat([wrong, truth])
            labels = torch.zeros(len(boxes), dtype=torch.int64)
            made.append(Found(boxes=boxes, scores=scores, labels=labels))
        return made


@pytest.mark.parametrize(
    ("size", "focal"), [((1242, 375), 707), ((1280, 720), 900), ((1920, 1080), 1400)]
)
def test_the_scores_do_not_hang_on_the_height_of_the_images(tmp_path, size, focal):
    made = read(kitti(tmp_path, size, focal))
    assert made["test"]["image_size"].tolist() == [list(size)] * 2
    metric = KittiAp(role="it", sampling="exact")
    scores = metric({"it": Says()}, TensorData(made["test"]), work=Work())
    # 12 right boxes behind 6 wrong ones a frame, whatever the camera
    assert scores["mean_3d_moderate_exact_ap"] == pytest.approx(CARS / (CARS + 6))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_images_of_another_kind_are_seen(tmp_path, suffix):
    made = read(kitti(tmp_path, (1280, 720), 900, suffix))
    assert made["test"]["image_size"].tolist() == [[1280, 720]] * 2
    assert f"image_2/000002{suffix}" in made["test"]["frames"][0]


def test_without_an_image_its_size_is_kittis_or_not_guessed(tmp_path):
    near, other = kitti(tmp_path / "a"), kitti(tmp_path / "b", (1920, 1080), 1400)
    for folder in (near, other):
        shutil.rmtree(folder / "training/image_2")
    assert read(near)["test"]["image_size"].tolist() == [[1242, 375]] * 2
    with pytest.raises(BadData) as caught:
        read(other)
    assert str(caught.value) == (
        f"{other}/training/image_2/000000.png: missing, and the camera is not KITTI's (1242 x 375 "
        "pixels): P2 has its optical axis at pixel (960, 540); give the image, whose size says "
        "which points are in view"
    )


def spoil(folder: Path, what: str) -> None:
    root, points = folder / "training", cloud()
    file, text = root / "velodyne/000000.bin", (root / "label_2/000000.txt").read_text()
    first = text.splitlines()[0]
    match what:
        case "two images":
            Image.new("RGB", (9, 9)).save(root / "image_2/000000.jpg")
        case "turned":
            exif = Image.Exif()
            exif[0x0112] = 6  # a camera's orientation: a quarter turn
            Image.new("RGB", (1242, 375)).save(root / "image_2/000000.png", exif=exif)
        case "same cloud":
            shutil.copy(file, root / "velodyne/000003.bin")
        case "no 2D box":
            words = first.split()
            words[4:8] = ["0"] * 4
            (root / "label_2/000000.txt").write_text(" ".join(words))
        case "occlusion":
            (root / "label_2/000000.txt").write_text(first.replace("Car 0 0", "Car 0 7"))
        case "bytes":
            points[:, 3] *= 255
            points[0, 3] = 127.5
            points.tofile(file)
        case "negative":
            points[:, 3] -= 1
            points[0, 3] = -0.5
            points.tofile(file)
        case "five":  # 200 points: their bytes are those of 250 of four numbers
            ring = np.arange(200, dtype=np.float32)[:, None] % 64
            np.concatenate([points, ring], axis=1).tofile(file)
        case "cut":
            file.write_bytes(points.tobytes()[:-6])
        case "ply":
            file.rename(file.with_suffix(".ply"))
        case "pcd":
            file.rename(file.with_suffix(".pcd"))
        case "rotation":
            (root / "calib/000000.txt").write_text(
                calib((1242, 375), 707).replace("R0_rect: 1 0 0", "R0_rect: 0 0 0")
            )
        case "focal":
            (root / "calib/000000.txt").write_text(calib((1242, 375), 0.0))
        case "nothing":
            for i in (0, 1):
                (root / f"label_2/{i:06}.txt").write_text(first.replace("Car", "Tram"))
        case "hard":
            for i in (2, 3):
                (root / f"label_2/{i:06}.txt").write_text(first.replace("Car 0 0", "Car 0 3"))
        case "both":
            (folder / "ImageSets/val.txt").write_text("000002\n000001\n")
        case _:
            (folder / "ImageSets/train.txt").write_text("000000\n000000\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("two images", "training/image_2: 000000.jpg and 000000.png are both images of frame 000000; keep one"),
        ("same cloud", "training/velodyne/000003.bin: has the bytes of {}/training/velodyne/000000.bin, in another split; keep one"),
        ("no 2D box", "training/label_2/000000.txt: line 1: its 2D box (0 0 0 0: left, top, right, bottom) has no height, by which KITTI says what counts; write its outline in the image, in pixels, or leave the line out where the camera does not see it"),
        ("occlusion", "training/label_2/000000.txt: line 1: truncation 0 and occlusion 7; expected 0 to 1, and 0, 1, 2 or 3 (-1: unknown)"),
        ("bytes", "training/velodyne/000000.bin: the reflectance of point 0 of 200 is 127.5, outside 0..1; divide the fourth column by 255, the largest intensity of a byte"),
        ("negative", "training/velodyne/000000.bin: the reflectance of point 0 of 200 is -0.5, outside 0..1; save float32 x, y, z, reflectance (0..1) and nothing else of each point"),
        ("five", "training/velodyne/000000.bin: it holds five numbers a point (200 points), not float32 x, y, z, reflectance (0..1); keep four of them: points = numpy.fromfile(file, 'float32').reshape(-1, 5)[:, :4], the fourth brought to 0..1"),
        ("cut", "training/velodyne/000000.bin: 3194 bytes are no multiple of 16, 4 float32 a point; is it cut short, or has a point more numbers?"),
        ("ply", "training/velodyne/000000.bin: missing; there is 000000.ply: convert it to float32 x, y, z, reflectance (0..1), as points.astype('float32').tofile(file) of numpy writes it"),
        ("pcd", "training/velodyne/000000.bin: missing; there is 000000.pcd: convert it to float32 x, y, z, reflectance (0..1), as points.astype('float32').tofile(file) of numpy writes it"),
        ("rotation", "training/calib/000000.txt: the first three columns of R0_rect are no rotation (0 0 0 is its first row); correct it"),
        ("focal", "training/calib/000000.txt: P2 has the focal lengths 0 0, which must be > 0 pixels; correct it"),
        ("nothing", "training/label_2: no frame of train.txt has a Car, Pedestrian or Cyclist; there is nothing to learn"),
        ("hard", "training/label_2: no frame of val.txt has a Car, Pedestrian or Cyclist that counts (higher than 25 pixels, occlusion 0 to 2, truncation at most 0.5); there is nothing to score on"),
        ("both", "ImageSets/val.txt: frame 000001 is in train.txt already; name each frame once, in train or in val"),
        ("twice", "ImageSets/train.txt: frame 000000 is in it already; name each frame once, in train or in val"),
    ],
)  # fmt: skip
def test_what_would_be_misread_is_named(tmp_path, what, message):
    source = kitti(tmp_path)
    spoil(source, what)
    with pytest.raises(BadData) as caught:
        read(source)
    assert str(caught.value) == f"{tmp_path}/{message.replace('{}', str(tmp_path))}"


def test_an_image_that_a_camera_turned_is_refused(tmp_path):
    source = kitti(tmp_path)
    spoil(source, "turned")
    with pytest.raises(BadData, match=r"image_2/000000.png: .*orientation"):
        read(source)


def test_deep_images_are_shown_by_their_range_or_refused(tmp_path):
    source = kitti(tmp_path)
    file = source / "training/image_2/000002.png"
    make = WithCameraImages(make=ReadKitti(), port="test")
    for value, shown in ((65535, 255), (32768, 127)):
        Image.fromarray(np.full((375, 1242), value, np.uint16)).save(file)
        made = make({"source": source}, work=Work.seeded(0))
        batch = TensorData(made["test"]).rows(torch.tensor([0]))
        image = read_image(batch["picture"].numpy().tobytes(), "it")
        assert abs(image.getpixel((0, 0))[0] - shown) <= 1
    Image.fromarray(np.full((375, 1242), 900, np.uint16)).save(file)
    with pytest.raises(BadData, match=r"image_2/000002.png: "):
        make({"source": source}, work=Work.seeded(0))


def test_clouds_of_no_list_and_hidden_files_are_left_out_and_said(tmp_path):
    source, lines = kitti(tmp_path), []
    folder = source / "training/velodyne"
    cloud(seed=9).tofile(folder / "000009.bin")
    (folder / "._000000.bin").write_bytes(b"clutter")
    with noted(lines.append):
        read(source)
    assert lines == [f"{folder}: 1 file(s) not read: 1 .bin (first: 000009.bin)"]


def test_no_reduced_cloud_is_empty(tmp_path):
    source = kitti(tmp_path)
    behind = cloud()
    behind[:, 0] *= -1
    behind.tofile(source / "training/velodyne/000001.bin")
    with pytest.raises(BadData) as caught:
        write_infos(source, tmp_path / "out")
    assert str(caught.value) == (
        f"{source}/training/velodyne/000001.bin: none of its 200 points is within the image (1242 "
        "x 375 pixels) by calib's P2, R0_rect and Tr_velo_to_cam; correct these, or take the frame "
        "off its list"
    )
    reduced = tmp_path / "out/training" / REDUCED
    assert all(len(read_bin(file)) for file in reduced.glob("*.bin"))
    assert not (tmp_path / "out/kitti_infos_train.pkl").exists()


def test_info_files_that_list_a_frame_twice_are_refused(tmp_path):
    source = kitti(tmp_path)
    write_infos(source, source)
    shutil.copy(source / "kitti_infos_train.pkl", source / "kitti_infos_val.pkl")
    with pytest.raises(BadData, match=r"kitti_infos_val.pkl: frame 000000 is in kitti_infos_tra"):
        read(source)
