"""Where masks are published: COCO's instances and panoptic JSON, SA-1B's JSON beside each image,
a folder of images and one of mask PNGs. Which it is follows from the folder.

h, w: an image's height and width in pixels.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.data.sources import check_apart, note_left_out, visible_files
from stillhouse.data.splits import Split, split_of, split_within
from stillhouse.errors import BadData
from stillhouse_sam.coco import instances, panoptic
from stillhouse_sam.formats import (
    Json,
    Object,
    Photo,
    as_object,
    field,
    of_mask,
    read_annotated,
    read_json,
    records,
)
from stillhouse_sam.mask_files import read_ids

ANY = "image"  # a name that names no split
NO_VOID: frozenset[int] = frozenset()
EXPECTED = (
    "expected COCO's instances_*.json or panoptic_*.json, SA-1B's JSON beside each image, "
    "or images/ and masks/"
)


def find_photos(source: Path, *, void: frozenset[int] = NO_VOID) -> dict[Split, list[Photo]]:
    """The photos below a folder by split (train, validation, test; all are train where nothing says
    which), in whichever format it has. Objects are read, and checked, with each photo.

    Panoptic annotations go before instances. `void`: values of mask files that are no object.
    Hidden files are not seen, those of no use are counted in a line. BadData names a folder, file
    or annotation that cannot be used, and an image that is in two splits.
    """
    if not source.is_dir():
        raise BadData(f"{source}: not a folder; {EXPECTED}")
    files = visible_files(source)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadData(f"{source}: no images; {EXPECTED}")
    splits = _found(source, images, files, void)
    found = {split: [photo.files[0] for photo in photos] for split, photos in splits.items()}
    check_apart({split: [(str(path), path) for path in paths] for split, paths in found.items()})
    note_left_out(
        source, files, (file for some in splits.values() for photo in some for file in photo.files)
    )
    return splits


def _found(
    source: Path, images: Sequence[Path], files: Sequence[Path], void: frozenset[int]
) -> dict[Split, list[Photo]]:
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    for start, reader in (("panoptic", panoptic), ("instances", instances)):
        if named := [file for file in jsons if file.name.startswith(start)]:
            return _by_split(source, [(file, reader(images, file)) for file in named])
    if masks := {file: None for file in images if "masks" in file.relative_to(source).parts}:
        rest = [file for file in images if file not in masks]
        return mask_folder(source, rest, list(masks), void=void)
    if not jsons:
        raise BadData(f"{source}: {len(images)} image(s) and no masks; {EXPECTED}")
    return _unnamed(source, images, jsons)


def _unnamed(
    source: Path, images: Sequence[Path], jsons: Sequence[Path]
) -> dict[Split, list[Photo]]:
    """Annotations whose names say nothing: SA-1B's if the first is, else those that are COCO's."""
    if "image" in _keys(jsons[0]):
        return sa1b(source, images, jsons)
    coco = [file for file in jsons if {"images", "annotations"} <= _keys(file)]
    if not coco:
        raise BadData(f"{jsons[0]}: neither COCO's annotations nor SA-1B's; {EXPECTED}")
    return _by_split(source, [(file, instances(images, file)) for file in coco])


def _keys(file: Path) -> set[str]:
    content = read_json(file)
    return set(cast("Json", content)) if isinstance(content, dict) else set()


def sa1b(source: Path, images: Sequence[Path], jsons: Sequence[Path]) -> dict[Split, list[Photo]]:
    """SA-1B: beside each image a JSON of the same stem with {"image", "annotations"}."""
    found: list[tuple[Path, list[Photo]]] = []
    pairs = _paired(images, jsons, lambda path: path.with_suffix(""), "JSON")
    for place, (image, file) in enumerate(pairs):
        photo = Photo(
            where=str(file),
            name=image.name,
            place=place,
            image=partial(read_annotated, image),
            objects=partial(_sa1b, file, image),
            files=(image, file),
        )
        found.append((image.with_name(ANY), [photo]))
    return _by_split(source, found)


def _sa1b(file: Path, image: Path, height: int, width: int) -> list[Object]:
    content = read_json(file)
    record = cast("Json", content).get("image") if isinstance(content, dict) else None
    if not isinstance(record, dict):
        raise BadData(f"{file}: there is no record 'image' in it; expected SA-1B's annotations")
    known = cast("Json", record)
    if (name := field(str(file), known, "file_name", str)) != image.name:
        raise BadData(f"{file}: annotates {name}, but {image.name} is beside it; rename either")
    listed = field(str(file), known, "height", int), field(str(file), known, "width", int)
    if listed != (height, width):
        raise BadData(
            f"{image}: {width} x {height} pixels, but {listed[1]} x {listed[0]} in {file}; "
            "correct it"
        )
    return [
        as_object(f"{file}: annotation {row.get('id')}", row.get("segmentation"), height, width)
        for row in records(str(file), content, "annotations")
    ]


def mask_folder(
    source: Path, images: Sequence[Path], masks: Sequence[Path], *, void: frozenset[int]
) -> dict[Split, list[Photo]]:
    """images/ and masks/ with PNGs of the same stems, in which each value but 0 and those in `void`
    is an object; folders in them, or around both, may be splits.
    """

    def key(path: Path) -> tuple[str, ...]:
        folders = path.relative_to(source).parent.parts
        return (*(part for part in folders if part not in ("images", "masks")), path.stem)

    found: list[tuple[Path, list[Photo]]] = []
    for place, (image, mask) in enumerate(_paired(images, masks, key, "mask")):
        photo = Photo(
            where=str(image),
            name=image.name,
            place=place,
            image=partial(read_annotated, image),
            objects=partial(_masked, mask, void),
            files=(image, mask),
        )
        found.append((image.with_name(ANY), [photo]))
    return _by_split(source, found)


def _masked(file: Path, void: frozenset[int], height: int, width: int) -> list[Object]:
    ids = read_ids(file, height, width, void=void)
    return [of_mask(ids == number) for number in np.unique(ids[ids != 0])]


def _paired(
    images: Sequence[Path],
    others: Sequence[Path],
    key: Callable[[Path], Hashable],
    what: str,
) -> list[tuple[Path, Path]]:
    """Each image and the other file of its key; BadData for one without the other, or two."""
    by_key: dict[Hashable, Path] = {}
    for other in others:
        if (first := by_key.setdefault(key(other), other)) != other:
            raise BadData(f"{other}: {first} has the same stem; keep one of them")
    pairs: dict[Hashable, tuple[Path, Path]] = {}
    for image in images:
        if key(image) not in by_key:
            raise BadData(f"{image}: there is no {what} of its stem; add it or remove it")
        if (first := pairs.setdefault(key(image), (image, by_key[key(image)]))[0]) != image:
            raise BadData(f"{image}: {first} has the same stem; keep one of them")
    for stem, other in by_key.items():
        if stem not in pairs:
            raise BadData(f"{other}: there is no image of its stem; add it or remove it")
    return list(pairs.values())


def _by_split(
    source: Path, found: Sequence[tuple[Path, Sequence[Photo]]]
) -> dict[Split, list[Photo]]:
    """Photos by the split that the annotations they were found by name, else their folder."""
    splits: dict[Split | None, list[Photo]] = {}
    for path, photos in found:
        split = split_within(path.stem) or split_of(path, source)
        splits.setdefault(split, []).extend(photos)
    named: dict[Split, list[Photo]] = {name: some for name, some in splits.items() if name}
    if None in splits and named:
        where = splits[None][0].where
        raise BadData(f"{where}: in neither train, validation nor test, as others are; move it")
    if "train" not in named:  # one part, whatever it is called, is parted by who reads it
        if len(named) > 1:
            raise BadData(
                f"{source}: has {' and '.join(sorted(named))}, but no train part; add one, as a "
                "folder train/"
            )
        return {"train": next(iter(splits.values()))}
    return named
