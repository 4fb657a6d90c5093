"""Faces for training: read in any known format, cut out around their points, checked.

Everything is checked before anything is trained: an image without points or the other way round, a
wrong or mixed number of points, points far outside their image, an image that cannot be decoded or
is in two parts. The message names the file.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from stillhouse.data.data import Columns
from stillhouse.data.images import check_pixels
from stillhouse.data.notes import note
from stillhouse.data.sources import check_apart, copied
from stillhouse.data.splits import parts
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import not_negative
from stillhouse.work import Work
from stillhouse_landmarks.formats import Face, Photo, PhotoFile, find_faces
from stillhouse_landmarks.layouts import NAMED, check_mirror

SHARD_BYTES = 256 << 20  # a port is written in parts of this size
SPLITS = ("train", "test")  # of arrays
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class ReadFaces:
    """A `make`: the port "source" to ports train, validation and test, with images uint8
    [N, 3, size, size] and landmarks float32 [N, 2 * points].

    Landmarks are x0, y0, x1, y1, ... in fractions of the crop: 0 is its left or top edge, 1 the
    other. A crop is the square around the box of a face's own points, `margin` times its longer
    side, black where it leaves the image.

    Source: a folder in a format of `formats`, or arrays train_images, train_landmarks, test_images,
    test_landmarks that are such crops already. A validation part beside a test part is that for
    validation, without a test part it is the test part. Otherwise `validation` of the training
    photos are kept for validation, and where there is no test part, `held_out` of them for testing
    first. Both are drawn by photo, so that two faces of one photo stay together. An image file in
    two parts is refused.
    A point may lie outside its image by `outside` of the image's longer side, as faces at its edge
    have; farther is refused. `fractions`: of .pts files, see `find_faces`. `swap`: the point that
    each becomes in a mirror, which the mean training face must agree with (`check_mirror`); empty
    where faces are never mirrored.
    """

    points: int
    size: int
    margin: float = 1.5
    validation: float = 0.1
    held_out: float = 0.2
    outside: float = 0.1
    fractions: bool = False
    swap: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.points < 1 or self.size < 1:
            raise BadSetting(f"points and size must be >= 1 (got {self.points}, {self.size})")
        if not self.margin >= 1:
            raise BadSetting(f"margin must be >= 1 (got {self.margin})")
        for name in ("validation", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise BadSetting(f"{name} must be > 0 and < 1 (got {getattr(self, name)})")
        not_negative("outside", self.outside)

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            return self._from_arrays(source, work.rng)
        if not isinstance(source, Path):
            raise BadData(
                f"source: a {type(source).__name__}; expected arrays or a folder of faces"
            )
        found = find_faces(source, fractions=self.fractions)
        splits = {str(s): list(faces) for s, faces in parts(found, source, validates=True).items()}
        self._check_counts([face for split in PARTS for face in splits.get(split, ())])
        check_photos(splits)
        self._check_order(np.stack([face.points for face in splits["train"]]), str(source))
        for part, fraction in (("test", self.held_out), ("validation", self.validation)):
            if part not in splits:
                splits["train"], splits[part] = parted(
                    splits["train"], fraction, work.rng, what=part
                )
        return {port: self._columns(splits[port]) for port in PARTS}

    def _check_counts(self, faces: Sequence[Face]) -> None:
        first = faces[0]
        for face in faces:
            if len(face.points) != len(first.points):
                raise BadData(
                    f"{face.where}: {len(face.points)} points, but {first.where} has "
                    f"{len(first.points)}; keep one layout in a folder"
                )
        if len(first.points) != self.points:
            raise BadData(
                f"{first.where}: {len(first.points)} points, expected {self.points}; "
                f"{_layout_hint(len(first.points))}"
            )

    def _check_order(self, shapes: NDArray[Any], where: str) -> None:  # Any: of any precision
        if self.swap:
            check_mirror(shapes, self.swap, where)

    def _columns(self, faces: Sequence[Face]) -> Iterator[Columns]:
        part = max(1, SHARD_BYTES // (3 * self.size**2))
        for start in range(0, len(faces), part):
            crops = [self.crop(face) for face in faces[start : start + part]]
            images, landmarks = zip(*crops, strict=True)
            yield {
                "images": torch.from_numpy(np.stack(images)),
                "landmarks": torch.from_numpy(np.stack(landmarks)),
            }

    def crop(self, face: Face) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The face as image [3, size, size] and landmarks [2 * points]; BadData names it."""
        photo = face.photo.open()
        self._check_inside(face, photo.size)
        low, high = face.points.min(axis=0), face.points.max(axis=0)
        side = float((high - low).max()) * self.margin
        if side <= 0:
            raise BadData(f"{face.where}: all points are the same; correct it")
        corner = (low + high) / 2 - side / 2
        check_pixels(face.where, math.ceil(side), math.ceil(side))
        image = cut(photo, float(corner[0]), float(corner[1]), side, self.size)
        return image, ((face.points - corner) / side).astype(np.float32).ravel()

    def _check_inside(self, face: Face, size: tuple[int, int]) -> None:
        slack = self.outside * max(size)
        beyond = np.maximum(-face.points, face.points - np.array(size)).max(axis=1)
        worst = int(beyond.argmax())
        if beyond[worst] > slack:
            x, y = face.points[worst]
            raise BadData(
                f"{face.where}: point {worst + 1} at ({x:.1f}, {y:.1f}) is outside its image of "
                f"{size[0]} x {size[1]} pixels; correct it, or set outside (now {self.outside})"
            )

    def _from_arrays(
        self, arrays: Mapping[str, Any], rng: Generator
    ) -> Mapping[str, Columns]:  # Any: numpy arrays or tensors
        train, test = (self._array_split(arrays, split) for split in SPLITS)
        self._check_order(train["landmarks"].unflatten(1, (-1, 2)).numpy(), "train_landmarks")
        order = torch.randperm(len(train["images"]), generator=rng)
        count = kept_out(len(order), self.validation, where="train_images", what="validation")
        held, rest = order[:count].sort().values, order[count:].sort().values
        return {
            "train": {name: column[rest] for name, column in train.items()},
            "validation": {name: column[held] for name, column in train.items()},
            "test": test,
        }

    def _array_split(self, arrays: Mapping[str, Any], split: str) -> dict[str, Tensor]:
        images = torch.as_tensor(np.asarray(arrays[f"{split}_images"]))
        landmarks = torch.as_tensor(np.asarray(arrays[f"{split}_landmarks"])).float()
        shapes = [3, self.size, self.size], [2 * self.points]
        if images.dtype != torch.uint8 or list(images.shape[1:]) != shapes[0]:
            found = f"{images.dtype} {list(images.shape[1:])}"
            raise BadData(f"{split}_images: {found}; expected torch.uint8 {shapes[0]}")
        if len(landmarks) != len(images) or list(landmarks.shape[1:]) != shapes[1]:
            expected = [len(images), *shapes[1]]
            raise BadData(f"{split}_landmarks: {list(landmarks.shape)}; expected {expected}")
        inside = (landmarks >= -self.outside) & (landmarks <= 1 + self.outside)  # NaN is neither
        if not bool(inside.all()):
            row = int((~inside.all(1)).nonzero()[0, 0])
            raise BadData(f"{split}_landmarks: row {row}: not all are fractions of the crop")
        return {"images": images, "landmarks": landmarks}


def _layout_hint(points: int) -> str:
    own = f"layout=own points={points}"
    known = next((name for name, layout in NAMED.items() if layout.points == points), "")
    return f"set layout={known} if they have its order, else {own}" if known else f"set {own}"


def cut(image: Image.Image, left: float, top: float, side: float, size: int) -> NDArray[np.uint8]:
    """The square of `side` pixels at (left, top), from the edges, as [3, size, size]; antialiased,
    black outside the image.
    """
    x, y = math.floor(left), math.floor(top)
    whole = math.ceil(max(left - x, top - y) + side)
    part = image.crop((x, y, x + whole, y + whole))
    box = (left - x, top - y, left - x + side, top - y + side)
    scaled = part.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1))


def kept_out(count: int, fraction: float, *, where: str, what: str) -> int:
    """How many of `count` are kept for another part: at least one, never all."""
    if count < 2:
        raise BadData(f"{where}: {count} photo(s) for training; keeping some for {what} needs two")
    return min(count - 1, max(1, round(fraction * count)))


def parted(
    faces: Sequence[Face], fraction: float, rng: Generator, *, what: str
) -> tuple[list[Face], list[Face]]:
    """The rest, and the faces of `fraction` of the photos drawn by `rng`, each in their order.

    A photo file whose bytes another has stays in the rest, which is logged.
    """
    contents = _contents(faces)
    copies = copied(contents.values())
    photos = [photo for photo, (where, _) in contents.items() if where not in copies]
    if copies:
        note(f"{len(copies)} photo(s) that have copies are not drawn for {what}")
    count = kept_out(len(photos), fraction, where=faces[0].where, what=what)
    drawn = {photos[i] for i in torch.randperm(len(photos), generator=rng)[:count].tolist()}
    return (
        [face for face in faces if face.photo not in drawn],
        [face for face in faces if face.photo in drawn],
    )


def check_photos(splits: Mapping[str, Sequence[Face]]) -> None:
    """Raises BadData for an image file whose bytes one in another part has. Rows of COFW's files
    with the pixels of one in another part are counted in a line, as are photos that the data's own
    lists have in two parts (of several faces, each its own).
    """
    if len(splits) < 2:
        return
    contents = {split: _contents(faces) for split, faces in splits.items()}
    seen: dict[Photo, str] = {}
    both = {p: c[p][0] for s, c in contents.items() for p in c if seen.setdefault(p, s) != s}
    if both:
        first = min(both.values())
        note(f"{len(both)} photo(s) have faces in two parts by the data's own lists ({first})")
    check_apart({s: [c[p] for p in c if p not in both] for s, c in contents.items()})


def _contents(faces: Sequence[Face]) -> dict[Photo, tuple[str, Path | bytes]]:
    """The photos of faces, each once: where it is, and its content."""
    first: dict[Photo, str] = {}
    for face in faces:
        first.setdefault(face.photo, face.where)
    return {photo: (_name(photo, where), photo.content()) for photo, where in first.items()}


def _name(photo: Photo, where: str) -> str:
    return str(photo.path) if isinstance(photo, PhotoFile) else where
