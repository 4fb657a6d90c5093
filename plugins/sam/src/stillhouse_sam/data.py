"""Images and masks for promptable models: read in any known format, scaled into SAM's frame.

S: the frame's side in pixels. L: a mask's side in cells. M: the masks of an image. h, w: an
image's own height and width. An image's longer side is scaled to S; it lies at the top left, and
the rest of the frame is zero, as in SAM (Kirillov et al. 2023, arXiv 2304.02643).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from stillhouse.data.data import Columns, Ragged
from stillhouse.data.splits import Split
from stillhouse.data.splits import parts as used
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import positive
from stillhouse.work import Work
from stillhouse_sam.formats import Object, Photo, decoded, of_mask
from stillhouse_sam.prompts import BITS, first_prompts, unpack_masks
from stillhouse_sam.readers import find_photos
from stillhouse_sam.samples import scene

SHARD_BYTES = 256 << 20  # a port is written in parts of about this size
JUDGED = ("validation", "test")
PORTS = ("train", *JUDGED, "calibration")
HALF = 0.5 - 1e-6  # of a cell, inside it: what is half by rounding alone is half


@dataclass(frozen=True, kw_only=True)
class ReadMasks:
    """A `make`: the port "source" to the ports `PORTS`, of an image a row: images
    uint8 [N, 3, S, S]; sizes int64 [N, 2], (height, width) of its real part in the frame; the M =
    `masks` largest objects as masks uint8 [N, M, L, L / 8] (`prompts.pack_masks`), mask_valid bool
    [N, M] and boxes float32 [N, M, 4] (left, top, right, bottom edge in pixels of the frame);
    annotations (text): JSON with name, height, width, licence, licence_name, credit and all
    objects (rle in the image's own pixels, area, crowd, category); but for train, a prompt each
    as `prompts.first_prompts` has it, for calibration with clicks.

    A cell is inside where at least half of it is. A crowd, or an object without a cell, is no mask.

    Source: a folder in a format of `readers`, or arrays as `samples.scenes` gives. Splits of the
    folder are kept (train; test, or validation without a test; else that is validation);
    elsewhere `held_out` of the photos are for testing and `validation` of the rest of train for
    validation, drawn by the rng from those that are labelled. `scenes` rendered ones are added to
    train alone. calibration is what steps of quantized numbers are set on: up to
    `calibration` photos of train, never a rendered one, whose numbers have other ranges; labelled
    ones, where there are any.
    """

    size: int
    low: int
    masks: int = 8
    validation: float = 0.1
    held_out: float = 0.2
    scenes: int = 0
    calibration: int = 64
    void: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positive("calibration", self.calibration)
        if self.size < 1 or self.masks < 1:
            raise BadSetting(f"size and masks must be >= 1 (got {self.size}, {self.masks})")
        if self.low % BITS or not 0 < self.low <= self.size:
            raise BadSetting(
                f"low must be a multiple of {BITS}, from {BITS} to size {self.size} "
                f"(got {self.low})"
            )
        for name in ("validation", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise BadSetting(f"{name} must be > 0 and < 1 (got {getattr(self, name)})")
        if self.scenes < 0:
            raise BadSetting(f"scenes must be >= 0 (got {self.scenes})")
        if self.scenes and (self.size < 16 or self.size % 8):
            raise BadSetting(
                f"size must be a multiple of 8 from 16 on with scenes (got {self.size})"
            )

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Iterator[Columns]]:
        photos = parts(inputs["source"], self.validation, self.held_out, work.rng, void=self.void)
        seed = int(torch.randint(2**31, (), generator=work.rng))
        rendered = (_rendered(self.size, seed, index) for index in range(self.scenes))
        some = [photo for photo in photos["train"] if photo.labelled] or photos["train"]
        drawn = torch.randperm(len(some), generator=work.rng)[: self.calibration].tolist()
        streams: dict[str, Iterable[Photo]] = {
            **photos,
            "train": _both(photos["train"], rendered),
            "calibration": [some[row] for row in sorted(drawn)],
        }
        return {port: self._columns(port, streams[port]) for port in PORTS}

    def _columns(self, port: str, photos: Iterable[Photo]) -> Iterator[Columns]:
        row_bytes = 3 * self.size**2 + self.masks * self.low**2 // BITS
        some = False
        for part in batched(photos, max(1, SHARD_BYTES // row_bytes)):
            rows = [self.row(photo) for photo in part]
            columns: dict[str, Tensor | Ragged | list[str]] = {
                name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in _TENSORS
            }
            if port != "train":
                columns |= self._prompts(columns, clicks=port == "calibration")
            columns["annotations"] = [row["annotations"] for row in rows]
            some = some or any(row["mask_valid"].any() for row in rows)
            yield columns
        if not some and port in JUDGED:  # an encoder is distilled without masks, but not judged
            raise BadData(f"{port}: no object of {self.masks} masks an image; label some")

    def _prompts(self, columns: Mapping[str, Any], *, clicks: bool) -> dict[str, Tensor]:
        masks, valid, boxes = (columns[name][:, 0] for name in ("masks", "mask_valid", "boxes"))
        side = self.size / self.low
        return first_prompts(unpack_masks(masks), valid, boxes, side=side, clicks=clicks)

    def row(self, photo: Photo) -> dict[str, Any]:
        """The columns of a photo, numpy arrays and text; BadData names what cannot be used."""
        original, objects = photo.read()
        height, width = _real(original.height, original.width, self.size)
        image = np.zeros((3, self.size, self.size), dtype=np.uint8)
        scaled = original.resize((width, height), Image.Resampling.BILINEAR)
        image[:, :height, :width] = np.asarray(scaled).transpose(2, 0, 1)
        masks = np.zeros((self.masks, self.low, self.low), dtype=bool)
        boxes = np.zeros((self.masks, 4), dtype=np.float32)
        scale = np.array([width / original.width, height / original.height])
        for row, (mask, box) in enumerate(self._largest(objects, scale)):
            masks[row], boxes[row] = mask, box
        return {
            "images": image,
            "sizes": np.array([height, width], dtype=np.int64),
            "masks": np.packbits(masks, axis=-1),
            "mask_valid": masks.any((1, 2)),
            "boxes": boxes,
            "annotations": photo.annotations(original.height, original.width, objects),
        }

    def _largest(
        self, objects: Sequence[Object], scale: NDArray[np.float64]
    ) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        found: list[tuple[NDArray[np.bool_], NDArray[np.float64]]] = []
        for thing in sorted(objects, key=lambda thing: -thing["area"]):
            if thing["crowd"] or not thing["area"] or len(found) == self.masks:
                continue
            mask, box = lowered(decoded(thing["rle"]), scale * self.low / self.size, self.low)
            if mask.any():
                found.append((mask, box * np.tile(scale, 2)))
        return found


_TENSORS = ("images", "sizes", "masks", "mask_valid", "boxes")


@dataclass(frozen=True, kw_only=True)
class ReadEverything:
    """A `make`: the port "source" to the port photos, for masks of everything in an image: photos
    (ragged uint8, rows of h * w pixels [3]), original_sizes int64 [N, 2] (h, w) and annotations, as
    `ReadMasks` gives them.

    They are the first `count` labelled photos by id (by name where a format has no ids) of those
    for testing. Where the folder has no splits: of all; with `held_out`, of the part that
    `ReadMasks` keeps for testing, with the same stage's seed. Source and `void` as of `ReadMasks`.
    """

    count: int = 10
    held_out: float | None = None
    void: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadSetting(f"count must be >= 1 (got {self.count})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Iterator[Columns]]:
        splits = splits_of(inputs["source"], void=self.void)
        photos = splits.get("test") or splits.get("validation")
        if not photos:
            photos = splits["train"]
            if self.held_out is not None:
                _, photos = parted(photos, self.held_out, work.rng, what="test")
        kept = [photo for photo in photos if photo.labelled]
        if not kept:
            raise BadData(f"{photos[0].where}: no labelled photo; label some")
        first = sorted(kept, key=lambda photo: (photo.place, photo.name))[: self.count]
        return {"photos": map(_whole, first)}


def _whole(photo: Photo) -> Columns:
    image, objects = photo.read()
    pixels = torch.from_numpy(np.array(image)).flatten(0, 1)
    return {
        "photos": Ragged(values=pixels, offsets=torch.tensor([0, len(pixels)])),
        "original_sizes": torch.tensor([[image.height, image.width]]),
        "annotations": [photo.annotations(image.height, image.width, objects)],
    }


def lowered(
    mask: NDArray[np.bool_], scale: NDArray[np.float64], side: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """A mask [h, w], not empty, in `side` x `side` cells, `scale` (x, y) of which are a pixel: what
    is at least half inside; and its box (left, top, right, bottom edge) in pixels.
    """
    (top, bottom), (left, right) = (_ends(np.asarray(mask.any(axis))) for axis in (1, 0))
    down = _overlap(top, bottom, float(scale[1]), side)
    across = _overlap(left, right, float(scale[0]), side)
    share = down @ mask[top:bottom, left:right].astype(np.float64) @ across.T
    return share >= HALF, np.array([left, top, right, bottom], dtype=np.float64)


def _ends(line: NDArray[np.bool_]) -> tuple[int, int]:
    there = np.flatnonzero(line)
    return int(there[0]), int(there[-1]) + 1


def _overlap(start: int, stop: int, scale: float, side: int) -> NDArray[np.float64]:
    """How much of each cell [side, stop - start] each pixel from start to stop covers."""
    edges, cells = scale * np.arange(start, stop + 1), np.arange(side)[:, None]
    return (np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)).clip(0)


def _real(height: int, width: int, size: int) -> tuple[int, int]:
    """The real part of the frame, to the nearest pixel, at least one."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def batched(photos: Iterable[Photo], count: int) -> Iterator[list[Photo]]:
    """Lists of `count` of them; the last may be shorter."""
    part: list[Photo] = []
    for photo in photos:
        part.append(photo)
        if len(part) == count:
            yield part
            part = []
    if part:
        yield part


def _both(photos: Iterable[Photo], rendered: Iterable[Photo]) -> Iterator[Photo]:
    yield from photos
    yield from rendered


def _rendered(size: int, seed: int, index: int) -> Photo:
    image, masks = scene(size=size, seed=seed, index=index)
    return Photo(
        where=f"scene {index}",
        name=f"scene-{index:06d}",
        place=index,
        image=partial(Image.fromarray, image),
        objects=partial(_exact, masks),
        labelled=bool(masks),
    )


def _exact(masks: Sequence[NDArray[np.bool_]], _height: int, _width: int) -> list[Object]:
    return [of_mask(mask) for mask in masks]


def splits_of(source: object, *, void: Sequence[int] = ()) -> dict[Split, list[Photo]]:
    """The photos of a folder, or of arrays as `samples.scenes` gives, by split."""
    if isinstance(source, Path):
        return find_photos(source, void=frozenset(void))
    if isinstance(source, Mapping):
        return {"train": _of_arrays(source, "train"), "test": _of_arrays(source, "test")}
    raise BadData(f"source: a {type(source).__name__}; expected arrays or a folder of photos")


def parts(
    source: object,
    validation: float,
    held_out: float,
    rng: Generator,
    *,
    void: Sequence[int] = (),
) -> dict[str, list[Photo]]:
    """The photos for train, validation and test; see `ReadMasks`."""
    found = splits_of(source, void=void)
    where = source if isinstance(source, Path) else Path("source")
    splits = {split: list(rows) for split, rows in used(found, where, validates=True).items()}
    train, kept, test = splits["train"], splits.get("validation"), splits.get("test")
    if not test:
        train, test = parted(train, held_out, rng, what="test")
    if not kept:
        train, kept = parted(train, validation, rng, what="validation")
    return {"train": train, "validation": kept, "test": test}


def parted(
    photos: Sequence[Photo], fraction: float, rng: Generator, *, what: str
) -> tuple[list[Photo], list[Photo]]:
    """The rest, and `fraction` of the labelled photos (at least one, never all), drawn by `rng`."""
    labelled = [row for row, photo in enumerate(photos) if photo.labelled]
    if len(labelled) < 2:
        raise BadData(
            f"{photos[0].where}: {len(labelled)} labelled photo(s); keeping some for {what} "
            "needs two"
        )
    count = min(len(labelled) - 1, max(1, round(fraction * len(labelled))))
    drawn = {labelled[i] for i in torch.randperm(len(labelled), generator=rng)[:count].tolist()}
    return (
        [photo for row, photo in enumerate(photos) if row not in drawn],
        [photo for row, photo in enumerate(photos) if row in drawn],
    )


def _of_arrays(arrays: Mapping[str, Any], split: str) -> list[Photo]:  # Any: numpy arrays
    names = [f"{split}_{name}" for name in ("images", "sizes", "masks")]
    if missing := [name for name in names if name not in arrays]:
        raise BadData(f"source: no {missing[0]}; expected what samples.scenes gives")
    images, sizes, masks = (np.asarray(arrays[name]) for name in names)
    count, side = len(images), images.shape[-1]
    if images.dtype != np.uint8 or images.shape[1:] != (3, side, side):
        raise BadData(
            f"{names[0]}: {images.dtype} {list(images.shape)}; expected uint8 [N, 3, S, S]"
        )
    if sizes.shape != (count, 2) or sizes.min(initial=1) < 1 or sizes.max(initial=1) > side:
        raise BadData(f"{names[1]}: expected [{count}, 2], each from 1 to {side}")
    if masks.dtype != np.uint8 or masks.ndim != 4 or masks.shape[0] != count:
        raise BadData(
            f"{names[2]}: {masks.dtype} {list(masks.shape)}; expected uint8 [{count}, ...]"
        )
    if masks.shape[2:] != (side, side // BITS):
        raise BadData(
            f"{names[2]}: {list(masks.shape)}; expected [{count}, K, {side}, {side // BITS}]"
        )

    def photo(row: int) -> Photo:
        height, width = (int(value) for value in sizes[row])
        real = images[row, :, :height, :width].transpose(1, 2, 0)
        return Photo(
            where=f"{names[0]}: row {row}",
            name=f"{split}-{row:06d}",
            place=row,
            image=partial(Image.fromarray, np.ascontiguousarray(real)),
            objects=partial(_unpacked, masks[row]),
            labelled=bool(masks[row].any()),
        )

    return [photo(row) for row in range(count)]


def _unpacked(masks: NDArray[np.uint8], height: int, width: int) -> list[Object]:
    whole = np.unpackbits(masks, axis=-1)[:, :height, :width].astype(bool)
    return [of_mask(mask) for mask in whole if mask.any()]
