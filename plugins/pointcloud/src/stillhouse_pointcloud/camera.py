"""A frame's camera image: its file, and its size in pixels."""

from pathlib import Path

from stillhouse.data import IMAGE_SUFFIXES
from stillhouse.data import image_size as stored_size
from stillhouse.errors import BadData
from stillhouse_pointcloud.formats import IMAGE_SIZE, Calibration

# how far the optical axis of a camera may be from the middle of its image, of width and height
OFF_CENTRE = (0.1, 0.2)


def image_file(folder: Path, stem: str) -> Path:
    """The one image of this stem in `folder`, whatever its suffix's case; a missing
    <stem>.png, where it has none. BadData for two.
    """
    named = (folder / f"{stem}{s}" for lower in IMAGE_SUFFIXES for s in (lower, lower.upper()))
    # by number: a file system may take both cases for one file
    found = list({file.stat().st_ino: file for file in named if file.is_file()}.values())
    if len(found) > 1:
        raise BadData(
            f"{folder}: {' and '.join(file.name for file in found)} are both images of frame "
            f"{stem}; keep one"
        )
    return found[0] if found else folder / f"{stem}.png"


def image_size(file: Path, calib: Calibration) -> tuple[int, int]:
    """Width and height of a frame's image; where there is none KITTI's usual size, if the optical
    axis is about where KITTI's is. BadData where the size can only be guessed.
    """
    if file.is_file():
        # P2 and 2D boxes are in its pixels: no orientation tag may turn it
        return stored_size(file, str(file), annotated=True)
    axis = (calib.p2[0, 2], calib.p2[1, 2])
    for pixel, side, part in zip(axis, IMAGE_SIZE, OFF_CENTRE, strict=True):
        if abs(pixel - side / 2) > part * side:
            raise BadData(
                f"{file}: missing, and the camera is not KITTI's ({IMAGE_SIZE[0]} x "
                f"{IMAGE_SIZE[1]} pixels): P2 has its optical axis at pixel ({axis[0]:g}, "
                f"{axis[1]:g}); give the image, whose size says which points are in view"
            )
    return IMAGE_SIZE
