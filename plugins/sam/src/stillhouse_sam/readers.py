"""Where masks are published: COCO's instances and panoptic JSON, SA-1B's JSON beside each picture,
a folder of pictures and one of mask PNGs. Which it is, the folder says.

h, w: a picture's height and width in pixels.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from stillhouse.errors import BadData
from stillhouse_sam.coco import instances, panoptic
from stillhouse_sam.formats import (
    PICTURES,
    Json,
    Object,
    Photo,
    as_object,
    field,
    of_mask,
    read_ids,
    read_json,
    read_picture,
    records,
)

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
          "test": "test", "testing": "test"}  # fmt: skip
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
EXPECTED = (
    "expected COCO's instances_*.json or panoptic_*.json, SA-1B's JSON beside each picture, "
    "or images/ and masks/"
)


def find_photos(source: Path) -> dict[str, list[Photo]]:
    """The photos below a folder by split (train, val, test; all are train where nothing says
    which), in whichever format it has. Objects are read, and checked, with each photo.

    Panoptic annotations go before instances. BadData names a folder, file or annotation that cannot
    be used.
    """
    files = _files(source)
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    if not pictures:
        raise BadData(f"{source}: no pictures; {EXPECTED}")
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    for start, reader in (("panoptic", panoptic), ("instances", instances)):
        if named := [file for file in jsons if file.name.startswith(start)]:
            return _by_split(source, [(file, reader(pictures, file)) for file in named])
    if masks := {file: None for file in pictures if "masks" in file.relative_to(source).parts}:
        return mask_folder(source, [file for file in pictures if file not in masks], list(masks))
    if not jsons:
        raise BadData(f"{source}: {len(pictures)} picture(s) and no masks; {EXPECTED}")
    return _unnamed(source, pictures, jsons)


def _unnamed(
    source: Path, pictures: Sequence[Path], jsons: Sequence[Path]
) -> dict[str, list[Photo]]:
    """Annotations whose names say nothing: SA-1B's if the first is, else those that are COCO's."""
    if "image" in _keys(jsons[0]):
        return sa1b(source, pictures, jsons)
    coco = [file for file in jsons if {"images", "annotations"} <= _keys(file)]
    if not coco:
        raise BadData(f"{jsons[0]}: neither COCO's annotations nor SA-1B's; {EXPECTED}")
    return _by_split(source, [(file, instances(pictures, file)) for file in coco])


def _keys(file: Path) -> set[str]:
    content = read_json(file)
    return set(cast("Json", content)) if isinstance(content, dict) else set()


def sa1b(source: Path, pictures: Sequence[Path], jsons: Sequence[Path]) -> dict[str, list[Photo]]:
    """SA-1B: beside each picture a JSON of the same stem with {"image", "annotations"}."""
    found: list[tuple[Path, list[Photo]]] = []
    pairs = _paired(pictures, jsons, lambda path: path.with_suffix(""), "JSON")
    for place, (picture, file) in enumerate(pairs):
        photo = Photo(
            where=str(file),
            name=picture.name,
            place=place,
            picture=partial(read_picture, picture),
            objects=partial(_sa1b, file, picture),
        )
        found.append((picture.parent, [photo]))
    return _by_split(source, found)


def _sa1b(file: Path, picture: Path, height: int, width: int) -> list[Object]:
    content = read_json(file)
    image = cast("Json", content).get("image") if isinstance(content, dict) else None
    if not isinstance(image, dict):
        raise BadData(f"{file}: there is no record 'image' in it; expected SA-1B's annotations")
    known = cast("Json", image)
    if (name := field(str(file), known, "file_name", str)) != picture.name:
        raise BadData(f"{file}: annotates {name}, but {picture.name} is beside it; rename either")
    told = field(str(file), known, "height", int), field(str(file), known, "width", int)
    if told != (height, width):
        raise BadData(
            f"{picture}: {width} x {height} pixels, but {told[1]} x {told[0]} in {file}; correct it"
        )
    return [
        as_object(f"{file}: annotation {row.get('id')}", row.get("segmentation"), height, width)
        for row in records(str(file), content, "annotations")
    ]


def mask_folder(
    source: Path, pictures: Sequence[Path], masks: Sequence[Path]
) -> dict[str, list[Photo]]:
    """images/ and masks/ with PNGs of the same stems, in which each value but 0 is an object;
    folders in them, or around both, may be splits.
    """

    def key(path: Path) -> tuple[str, ...]:
        folders = path.relative_to(source).parent.parts
        return (*(part for part in folders if part not in ("images", "masks")), path.stem)

    found: list[tuple[Path, list[Photo]]] = []
    for place, (picture, mask) in enumerate(_paired(pictures, masks, key, "mask")):
        photo = Photo(
            where=str(picture),
            name=picture.name,
            place=place,
            picture=partial(read_picture, picture),
            objects=partial(_masked, mask),
        )
        found.append((picture.parent, [photo]))
    return _by_split(source, found)


def _masked(file: Path, height: int, width: int) -> list[Object]:
    ids = read_ids(file, height, width)
    return [of_mask(ids == number) for number in np.unique(ids[ids != 0])]


def _paired(
    pictures: Sequence[Path],
    others: Sequence[Path],
    key: Callable[[Path], Hashable],
    what: str,
) -> list[tuple[Path, Path]]:
    """Each picture and the other file of its key; BadData for one without the other, or two."""
    by_key: dict[Hashable, Path] = {}
    for other in others:
        if (first := by_key.setdefault(key(other), other)) != other:
            raise BadData(f"{other}: {first} has the same stem; keep one of them")
    pairs: dict[Hashable, tuple[Path, Path]] = {}
    for picture in pictures:
        if key(picture) not in by_key:
            raise BadData(f"{picture}: there is no {what} of its stem; add it or remove it")
        if (first := pairs.setdefault(key(picture), (picture, by_key[key(picture)]))[0]) != picture:
            raise BadData(f"{picture}: {first} has the same stem; keep one of them")
    for stem, other in by_key.items():
        if stem not in pairs:
            raise BadData(f"{other}: there is no picture of its stem; add it or remove it")
    return list(pairs.values())


def _files(source: Path) -> list[Path]:
    """All files below, in order, but hidden ones and what macOS adds to archives."""
    if not source.is_dir():
        raise BadData(f"{source}: not a folder; {EXPECTED}")
    return [
        file
        for file in sorted(source.rglob("*"))
        if file.is_file()
        and not any(p.startswith((".", "__MACOSX")) for p in file.relative_to(source).parts)
    ]


def _by_split(
    source: Path, found: Sequence[tuple[Path, Sequence[Photo]]]
) -> dict[str, list[Photo]]:
    """Photos by the split that the path they were found at names last."""
    splits: dict[str, list[Photo]] = {}
    for path, photos in found:
        names = SPLIT.findall(path.relative_to(source).as_posix())
        splits.setdefault(SPLITS[names[-1].lower()] if names else "", []).extend(photos)
    if "" in splits and len(splits) > 1:
        raise BadData(f"{splits[''][0].where}: in neither train, val nor test, as others are")
    if "train" not in splits:  # one part, whatever it is called, is parted by who reads it
        if len(splits) > 1:
            raise BadData(f"{source}: has {' and '.join(sorted(splits))}, but nothing for train")
        return {"train": next(iter(splits.values()))}
    return splits
