"""Annotation formats as their owners publish them: 300-W's .pts, WFLW's lists, COFW's .mat.

Points come out in pixels from the picture's left and top edge: the middle of the first pixel is
(0.5, 0.5). 300-W and COFW count pixels from 1 (MATLAB), WFLW from 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stillhouse.errors import BadData, MissingExtra

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# what folders of a split are called; 300-W trains on AFW and tests on iBUG whole
TRAIN = ("train", "trainset", "training", "afw")
TEST = ("test", "testset", "testing", "ibug")
WFLW_LISTS = {
    "train": "list_98pt_rect_attr_train.txt",
    "test": "list_98pt_rect_attr_test.txt",
}
WFLW_POINTS, WFLW_NUMBERS = 98, 98 * 2 + 4 + 6  # points, box, attributes; then the file's name
COFW_POINTS = 29
COFW_KEYS = {"train": ("IsTr", "phisTr"), "test": ("IsT", "phisT")}


class Photo(Protocol):
    """A picture that is not decoded yet."""

    def open(self) -> Image.Image:
        """Decoded, in RGB; raises BadData naming it."""
        ...


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A picture file."""

    path: Path

    def open(self) -> Image.Image:
        try:
            with Image.open(self.path) as opened:
                return opened.convert("RGB")
        except UnidentifiedImageError as error:
            raise BadData(f"{self.path}: not a picture of a known format; replace it") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadData(f"{self.path}: not a whole picture ({error}); replace it") from error


@dataclass(frozen=True, kw_only=True)
class CofwPhoto:
    """Row `row` of the pictures `key` within one of COFW's files."""

    path: Path
    key: str
    row: int

    def open(self) -> Image.Image:
        with _hdf5(self.path) as file:
            pixels = np.asarray(file[file[self.key][:].ravel()[self.row]])
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise BadData(f"{self.path}: {self.key}, row {self.row}: {found} is no 8-bit picture")
        return Image.fromarray(np.ascontiguousarray(pixels.T)).convert("RGB")  # HDF5 has [3, W, H]


@dataclass(frozen=True, kw_only=True)
class Face:
    """One annotated face: `where` names it in messages; points [P, 2] in pixels from the edges."""

    where: str
    photo: Photo
    points: NDArray[np.float64]


def find_faces(source: Path) -> dict[str, list[Face]]:
    """The faces of "train" and, where there is one, "test" below a folder, in whichever format it
    has; raises BadData for a folder without any.
    """
    if any(source.rglob("list_98pt_rect_attr_*.txt")):
        return wflw(source)
    mats = [source] if source.suffix == ".mat" else sorted(source.rglob("COFW*.mat"))
    return cofw(mats) if mats else pts_tree(source)


def pts_tree(source: Path) -> dict[str, list[Face]]:
    """Pictures with a .pts of the same name beside each, at any depth. The split is that of the
    first folder on the way named as in TRAIN or TEST; where no folder is, all are for training.
    """
    files = [p for p in sorted(source.rglob("*")) if not p.name.startswith(".")]
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    if not pictures:
        raise BadData(
            f"{source}: no pictures; expected train/ and test/ with a .pts beside each picture, "
            f"{WFLW_LISTS['train']}, or COFW_train_color.mat"
        )
    for file in files:
        if file.suffix == ".pts" and not any(p.with_suffix(".pts") == file for p in _beside(file)):
            raise BadData(f"{file}: there is no picture beside it; add it or remove the points")
    splits: dict[str, list[Face]] = {}
    for picture in pictures:
        split = _split(picture.relative_to(source))
        splits.setdefault(split, []).append(_pts_face(picture))
    if "" in splits and len(splits) > 1:
        raise BadData(
            f"{splits[''][0].where}: neither below train nor below test, as other pictures are"
        )
    found = {"train": splits.pop("")} if "" in splits else splits
    return _with_train(source, found)


def _beside(file: Path) -> list[Path]:
    return [file.with_suffix(end) for end in PICTURES if file.with_suffix(end).is_file()] + [
        file.with_suffix(end.upper()) for end in PICTURES if file.with_suffix(end.upper()).is_file()
    ]


def _split(path: Path) -> str:
    for part in path.parts[:-1]:
        for split, names in (("train", TRAIN), ("test", TEST)):
            if part.lower() in names:
                return split
    return ""


def _with_train(source: Path, splits: dict[str, list[Face]]) -> dict[str, list[Face]]:
    if not splits.get("train"):
        raise BadData(f"{source}: there is no face for training; expected some below train")
    return splits


def _pts_face(picture: Path) -> Face:
    file = picture.with_suffix(".pts")
    if not file.is_file():
        raise BadData(f"{picture}: there is no {file.name} beside it; add it or remove the picture")
    return Face(where=str(file), photo=PhotoFile(path=picture), points=read_pts(file) - 0.5)


def read_pts(file: Path) -> NDArray[np.float64]:
    """The points [P, 2] of a .pts file, as written there: counted from 1."""
    lines = _text(file).splitlines()
    marks = [i for i, line in enumerate(lines) if line.strip() in ("{", "}")]
    if [lines[i].strip() for i in marks] != ["{", "}"]:
        raise BadData(f"{file}: no points between one {{ and one }}; expected 300-W's .pts")
    inner = range(marks[0] + 1, marks[1])
    rows = [_numbers(f"{file}: line {i + 1}", lines[i], 2) for i in inner if lines[i].strip()]
    header = [line.partition(":") for line in lines[: marks[0]]]
    said = next((v.strip() for k, _, v in header if k.strip() == "n_points"), str(len(rows)))
    if said != str(len(rows)):
        raise BadData(f"{file}: n_points is {said}, but it has {len(rows)} points; correct it")
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


def wflw(source: Path) -> dict[str, list[Face]]:
    """WFLW: a line a face (98 points x y, box, six attributes, file name below WFLW_images)."""
    pictures = next((p for p in sorted(source.rglob("WFLW_images")) if p.is_dir()), None)
    if pictures is None:
        raise BadData(f"{source}: WFLW's lists are there, but no folder WFLW_images; unpack it too")
    splits: dict[str, list[Face]] = {}
    for split, name in WFLW_LISTS.items():
        for file in sorted(source.rglob(name)):
            lines = enumerate(_text(file).splitlines(), 1)
            splits[split] = [
                _wflw_face(f"{file}: line {number}", line, pictures)
                for number, line in lines
                if line.strip()
            ]
    return _with_train(source, splits)


def _wflw_face(where: str, line: str, pictures: Path) -> Face:
    words = line.split(maxsplit=WFLW_NUMBERS)
    if len(words) != WFLW_NUMBERS + 1:
        raise BadData(
            f"{where}: {len(words)} fields; expected {WFLW_NUMBERS} numbers and a file name"
        )
    numbers = _numbers(where, " ".join(words[:-1]), WFLW_NUMBERS)
    path = pictures / words[-1].strip()
    if not path.is_file():
        raise BadData(f"{where}: the picture {path} is not there; unpack all of WFLW_images")
    points = np.array(numbers[: 2 * WFLW_POINTS]).reshape(-1, 2) + 0.5
    return Face(where=where, photo=PhotoFile(path=path), points=points)


def cofw(files: Sequence[Path]) -> dict[str, list[Face]]:
    """COFW: COFW_train_color.mat with IsTr and phisTr, COFW_test_color.mat with IsT and phisT."""
    splits: dict[str, list[Face]] = {}
    for path in files:
        with _hdf5(path) as file:
            split = next((s for s, keys in COFW_KEYS.items() if set(keys) <= set(file)), None)
            if split is None:
                raise BadData(
                    f"{path}: has {', '.join(sorted(file))}; expected IsTr and phisTr, "
                    "or IsT and phisT"
                )
            splits[split] = _cofw_faces(path, file, *COFW_KEYS[split])
    return _with_train(files[0].parent, splits)


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
