"""The frames of a KITTI folder: which there are, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.errors import BadData
from stillhouse_pointcloud.boxes import in_view
from stillhouse_pointcloud.camera import image_file, image_size
from stillhouse_pointcloud.formats import Calibration, Label, read_calib, read_labels, text
from stillhouse_pointcloud.sweeps import Points, missing_cloud

FULL, REDUCED = "velodyne", "velodyne_reduced"  # whole scans; the part within the image
SPLITS = ("train", "val")  # ImageSets/train.txt is for training, val.txt for testing


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The files of one frame."""

    name: str
    points: Path
    calib: Path
    label: Path
    image: Path  # need not exist


@dataclass(frozen=True, kw_only=True)
class Described:
    """All of a frame but its points, which are read when they are wanted."""

    name: str
    points: Path
    image: Path  # need not exist
    size: tuple[int, int]  # of the image: width, height
    calib: Calibration
    labels: list[Label]


def described(frame: Frame) -> Described:
    """What the files of a frame say."""
    calib = read_calib(frame.calib)
    return Described(
        name=frame.name,
        points=frame.points,
        image=frame.image,
        size=image_size(frame.image, calib),
        calib=calib,
        labels=read_labels(frame.label, calib),
    )


def seen(points: Points, frame: Described) -> Points:
    """The points within the frame's image. BadData where there is none: a reduced cloud is never
    empty.
    """
    found = points[in_view(points.astype(np.float64), frame.calib.to_image, frame.size)]
    if len(found) == 0:
        raise BadData(
            f"{frame.points}: none of its {len(points)} points is within the image "
            f"({frame.size[0]} x {frame.size[1]} pixels) by calib's P2, R0_rect and "
            "Tr_velo_to_cam; correct these, or take the frame off its list"
        )
    return found


def find_frames(source: Path) -> dict[str, list[Frame]]:
    """The frames of "train" and "val" in a KITTI folder, by its ImageSets; raises BadData where a
    list, or a file of a frame in it, is missing, and for a frame that is listed twice.
    """
    root, clouds = source / "training", cloud_folder(source)
    found: dict[str, list[Frame]] = {}
    for split in SPLITS:
        names = text(source / "ImageSets" / f"{split}.txt").split()
        if not names:
            raise BadData(f"{source / 'ImageSets' / f'{split}.txt'}: no frame in it; expected some")
        found[split] = [_frame(root, clouds, name) for name in names]
    listed = {split: [frame.name for frame in frames] for split, frames in found.items()}
    check_once(listed, {split: source / "ImageSets" / f"{split}.txt" for split in SPLITS})
    return found


def check_once(listed: Mapping[str, Sequence[str]], files: Mapping[str, Path]) -> None:
    """Raises BadData for a frame that the lists, which are those of `files`, name twice: scores on
    frames that were trained on are none.
    """
    first: dict[str, Path] = {}
    for split, names in listed.items():
        for name in names:
            if name in first:
                where = first[name].name if first[name] != files[split] else "it"
                raise BadData(
                    f"{files[split]}: frame {name} is in {where} already; name each frame once, in "
                    "train or in val"
                )
            first[name] = files[split]


def cloud_folder(source: Path) -> Path:
    """Where the clouds of a KITTI folder are; BadData where it has none."""
    for name in (FULL, REDUCED):
        if (source / "training" / name).is_dir():
            return source / "training" / name
    raise BadData(f"{source}: no training/{FULL} or training/{REDUCED}; expected KITTI")


def _frame(root: Path, clouds: Path, name: str) -> Frame:
    frame = Frame(
        name=name,
        points=clouds / f"{name}.bin",
        calib=root / "calib" / f"{name}.txt",
        label=root / "label_2" / f"{name}.txt",
        image=image_file(root / "image_2", name),
    )
    if not frame.points.is_file():
        raise BadData(f"{frame.points}: missing; {missing_cloud(frame.points)}")
    for what, file in (("calib", frame.calib), ("label", frame.label)):
        if not file.is_file():
            raise BadData(
                f"{file}: missing; frame {name} needs its {what}, or leave ImageSets' list"
            )
    return frame
