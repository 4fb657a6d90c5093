"""Annotation formats as their owners publish them: 300-W's .pts, WFLW's lists, COFW's .mat.

Points come out in pixels from the image's left and top edge: the middle of the first pixel is
(0.5, 0.5). 300-W and COFW count pixels from 1 (MATLAB), WFLW from 0.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.data.images import IMAGE_SUFFIXES, check_pixels, image_size, read_image
from stillhouse.data.sources import check_stems, note_left_out, visible_files
from stillhouse.data.splits import Split, folder_split
from stillhouse.errors import BadData, MissingExtra

# 300-W trains on AFW and tests on iBUG whole
FOLDERS: Mapping[str, Split] = {"afw": "train", "ibug": "test"}
WFLW_LISTS: Mapping[Split, str] = {
    "train": "list_98pt_rect_attr_train.txt",
    "test": "list_98pt_rect_attr_test.txt",
}
WFLW_POINTS, WFLW_NUMBERS = 98, 98 * 2 + 4 + 6  # points, box, attributes; then the file's name
COFW_POINTS = 29
COFW_KEYS: Mapping[Split, tuple[str, str]] = {
    "train": ("IsTr", "phisTr"),
    "test": ("IsT", "phisT"),
}


class Photo(Protocol):
    """An image that is not decoded yet."""

    def open(self) -> Image.Image:
        """Decoded, in RGB; raises BadData naming it."""
        ...

    def content(self) -> Path | bytes:
        """What two copies share: the file, whose bytes count, or a digest of the pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """An image file."""

    path: Path

    def open(self) -> Image.Image:
        return read_image(self.path, str(self.path), annotated=True)

    def content(self) -> Path | bytes:
        return self.path


@dataclass(frozen=True, kw_only=True)
class CofwPhoto:
    """Row `row` of the images `key` within one of COFW's files."""

    path: Path
    key: str
    row: int

    def open(self) -> Image.Image:
        pixels = self._pixels()
        return Image.fromarray(np.ascontiguousarray(pixels.T)).convert("RGB")  # HDF5 has [3, W, H]

    def content(self) -> Path | bytes:
        pixels = self._pixels()
        return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()

    def _pixels(self) -> NDArray[np.uint8]:
        """[3, W, H], or [W, H] of a grey one."""
        with _hdf5(self.path) as file:
            stored = file[file[self.key][:].ravel()[self.row]]
            where = f"{self.path}: {self.key}, row {self.row}"
            check_pixels(where, *stored.shape[-2:])
            pixels = np.asarray(stored)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise BadData(f"{where}: {found} is no 8-bit image")
        return pixels


@dataclass(frozen=True, kw_only=True)
class Face:
    """One annotated face: `where` names it in messages; points [P, 2] in pixels from the edges."""

    where: str
    photo: Photo
    points: NDArray[np.float64]


def find_faces(source: Path, *, fractions: bool = False) -> dict[Split, list[Face]]:
    """The faces of "train" and, where there are any, "validation" and "test" below a folder, in
    whichever format it has; raises BadData for a folder without any.

    `fractions`: the points of .pts files are fractions of the image's width and height.
    """
    files = visible_files(source)
    names = set(WFLW_LISTS.values())
    if any(file.name in names for file in files):
        return wflw(source, files)
    mats = [f for f in files if f.suffix == ".mat" and (f == source or f.name.startswith("COFW"))]
    return cofw(mats) if mats else pts_tree(source, files, fractions=fractions)


def pts_tree(
    source: Path, files: Sequence[Path], *, fractions: bool = False
) -> dict[Split, list[Face]]:
    """Images with a .pts of the same name beside each, at any depth. The split is that of a folder
    on the way; where no folder is one, all are for training.
    """
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadData(
            f"{source}: no images; expected train/ and test/ with a .pts beside each image, "
            f"{WFLW_LISTS['train']}, or COFW_train_color.mat"
        )
    check_stems(images)
    listed = {file for file in files if file.suffix == ".pts"}
    if alone := listed - {image.with_suffix(".pts") for image in images}:
        raise BadData(f"{min(alone)}: there is no image beside it; add it or remove the points")
    note_left_out(source, files, [*images, *listed])
    splits: dict[Split | None, list[Face]] = {}
    for image in images:
        split = folder_split(image, source, FOLDERS)
        splits.setdefault(split, []).append(_pts_face(image, fractions=fractions))
    rest = splits.pop(None, [])
    if rest and splits:
        raise BadData(
            f"{rest[0].where}: in no folder of a part (train, val, test), as other images are"
        )
    return _with_train(source, {"train": rest} if rest else {s: f for s, f in splits.items() if s})


def _with_train(source: Path, splits: Mapping[Split, list[Face]]) -> dict[Split, list[Face]]:
    if not splits.get("train"):
        raise BadData(f"{source}: there is no face for training; expected some below train")
    return dict(splits)


def _pts_face(image: Path, *, fractions: bool) -> Face:
    file = image.with_suffix(".pts")
    if not file.is_file():
        raise BadData(f"{image}: there is no {file.name} beside it; add it or remove the image")
    points = read_pts(file)
    inside = bool(((points >= 0) & (points <= 1)).all())
    if fractions:
        if not inside:
            raise BadData(f"{file}: not all points are fractions in 0..1; set fractions=false")
        points = points * np.array(image_size(image, str(image), annotated=True)) + 0.5
    elif inside:
        raise BadData(
            f"{file}: all points are in 0..1; expected pixels, or set fractions=true for fractions "
            "of the image's width and height"
        )
    return Face(where=str(file), photo=PhotoFile(path=image), points=points - 0.5)


def read_pts(file: Path) -> NDArray[np.float64]:
    """The points [P, 2] of a .pts file, as written there: counted from 1."""
    lines = _text(file).splitlines()
    marks = [i for i, line in enumerate(lines) if line.strip() in ("{", "}")]
    if [lines[i].strip() for i in marks] != ["{", "}"]:
        raise BadData(f"{file}: no points between one {{ and one }}; expected 300-W's .pts")
    inner = range(marks[0] + 1, marks[1])
    rows = [_numbers(f"{file}: line {i + 1}", lines[i], 2) for i in inner if lines[i].strip()]
    header = [line.partition(":") for line in lines[: marks[0]]]
    listed = next((v.strip() for k, _, v in header if k.strip() == "n_points"), str(len(rows)))
    if listed != str(len(rows)):
        raise BadData(f"{file}: n_points is {listed}, but it has {len(rows)} points; correct it")
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{file}: cannot be read as text ({error}); replace it") from error


def _numbers(where: str, text: str, count: int) -> list[float]:
    words = text.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        shown = text.strip() if len(text) < 60 else f"{text.strip()[:60]}..."
        raise BadData(f"{where}: '{shown}' is not {count} numbers; correct it")
    if odd := [
        word for word, number in zip(words, numbers, strict=True) if not math.isfinite(number)
    ]:
        raise BadData(f"{where}: a coordinate is {odd[0]}; correct it")
    return numbers


def wflw(source: Path, files: Sequence[Path]) -> dict[Split, list[Face]]:
    """WFLW: a line a face (98 points x y, box, six attributes, file name below WFLW_images)."""
    inside = (folder for file in files for folder in file.parents)
    photos = next((folder for folder in inside if folder.name == "WFLW_images"), None)
    if photos is None:
        raise BadData(f"{source}: WFLW's lists are there, but no folder WFLW_images; unpack it too")
    splits: dict[Split, list[Face]] = {}
    for split, name in WFLW_LISTS.items():
        for file in (file for file in files if file.name == name):
            lines = enumerate(_text(file).splitlines(), 1)
            splits[split] = [
                _wflw_face(f"{file}: line {number}", line, photos)
                for number, line in lines
                if line.strip()
            ]
    return _with_train(source, splits)


def _wflw_face(where: str, line: str, photos: Path) -> Face:
    words = line.split(maxsplit=WFLW_NUMBERS)
    if len(words) != WFLW_NUMBERS + 1:
        raise BadData(
            f"{where}: {len(words)} fields; expected {WFLW_NUMBERS} numbers and a file name"
        )
    numbers = _numbers(where, " ".join(words[:-1]), WFLW_NUMBERS)
    path = photos / words[-1].strip()
    if not path.is_file():
        raise BadData(f"{where}: image {path} not found; unpack all of WFLW_images")
    points = np.array(numbers[: 2 * WFLW_POINTS]).reshape(-1, 2) + 0.5
    return Face(where=where, photo=PhotoFile(path=path), points=points)


def cofw(files: Sequence[Path]) -> dict[Split, list[Face]]:
    """COFW: COFW_train_color.mat with IsTr and phisTr, COFW_test_color.mat with IsT and phisT."""
    splits: dict[Split, list[Face]] = {}
    for path in files:
        with _hdf5(path) as file:
            split = _cofw_split(set(file))
            if split is None:
                raise BadData(
                    f"{path}: has {', '.join(sorted(file))}; expected IsTr and phisTr, "
                    "or IsT and phisT"
                )
            splits[split] = _cofw_faces(path, file, *COFW_KEYS[split])
    return _with_train(files[0].parent, splits)


def _cofw_split(names: set[str]) -> Split | None:
    for split, keys in COFW_KEYS.items():
        if set(keys) <= names:
            return split
    return None


def _cofw_faces(path: Path, file: Mapping[str, Any], images: str, phis: str) -> list[Face]:
    # Any: HDF5 datasets; MATLAB's [N, 87] is [87, N] here: 29 x, 29 y, 29 times whether occluded
    table = np.asarray(file[phis], dtype=np.float64)
    count = file[images].size
    if table.shape != (3 * COFW_POINTS, count):
        raise BadData(
            f"{path}: {phis} is {list(table.shape)}; expected [{3 * COFW_POINTS}, {count}]"
        )
    faces: list[Face] = []
    for row in range(count):
        where = f"{path}: row {row}"
        points = table[: 2 * COFW_POINTS, row].reshape(2, COFW_POINTS).T - 0.5
        if not np.isfinite(points).all():
            raise BadData(f"{where}: a coordinate is not finite; correct it")
        faces.append(
            Face(where=where, photo=CofwPhoto(path=path, key=images, row=row), points=points)
        )
    return faces


def _hdf5(path: Path) -> Any:  # Any: h5py ships no types
    try:
        import h5py
    except ImportError as error:
        install = "uv sync --extra landmarks-cofw"
        raise MissingExtra(f"{path}: COFW's format", "h5py", install=install) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{path}: cannot be read as MATLAB 7.3 ({reason}); get it again") from error
