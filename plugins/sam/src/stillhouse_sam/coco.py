"""COCO's two forms of masks: instances, and panoptic annotations with their PNGs.

h, w: an image's height and width in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from stillhouse.errors import BadData
from stillhouse_sam.formats import (
    Json,
    Object,
    Photo,
    as_object,
    field,
    of_mask,
    read_json,
    read_sized,
    records,
)
from stillhouse_sam.mask_files import read_ids

NO_MASKS: Mapping[int, Path] = {}


def instances(images: Sequence[Path], file: Path) -> list[Photo]:
    """The photos of an instances JSON, which lie among `images`: polygons, run lengths, crowds. A
    photo without annotations has no objects.
    """
    coco = Coco.read(file)
    rows: dict[int, list[Json]] = {number: [] for number in coco.images}
    for row in coco.annotations:
        where = f"{file}: annotation {row.get('id')}"
        image = field(where, row, "image_id", int)
        if image not in rows:
            raise BadData(f"{where}: there is no image {image}; add it or remove the annotation")
        rows[image].append(row)
    return coco.photos(images, {n: partial(_instances, coco, rows[n]) for n in rows}, rows)


def _instances(coco: "Coco", rows: Sequence[Json], height: int, width: int) -> list[Object]:
    return [
        as_object(
            f"{coco.file}: annotation {row.get('id')}",
            row.get("segmentation"),
            height,
            width,
            crowd=bool(row.get("iscrowd", 0)),
            category=coco.category(f"{coco.file}: annotation {row.get('id')}", row),
        )
        for row in rows
    ]


def panoptic(images: Sequence[Path], file: Path) -> list[Photo]:
    """The photos of a panoptic JSON: a PNG a photo, in which a segment's id is R + 256 G + 65536 B
    and 0 is nothing. Things and stuff are objects alike.
    """
    coco = Coco.read(file)
    pngs = [path for path in images if file.stem in path.parts and path.suffix == ".png"]
    known = {field(f"{file}: an annotation", row, "image_id", int): row for row in coco.annotations}
    read: dict[int, Callable[[int, int], list[Object]]] = {}
    rows: dict[int, list[Json]] = {}
    masks: dict[int, Path] = {}
    for number in coco.images:
        where = f"{file}: image {number}"
        if number not in known:
            raise BadData(f"{where}: no annotation has this image_id; add it or remove the image")
        png = masks[number] = located(pngs, where, field(where, known[number], "file_name", str))
        rows[number] = records(where, known[number], "segments_info")
        read[number] = partial(_segments, coco, where, png, rows[number])
    every = set(pngs)
    return coco.photos([path for path in images if path not in every], read, rows, masks)


def _segments(
    coco: "Coco", where: str, png: Path, rows: Sequence[Json], height: int, width: int
) -> list[Object]:
    ids = read_ids(png, height, width)
    known = {field(f"{where}: a segment", row, "id", int): row for row in rows}
    there = set(np.unique(ids).tolist()) - {0}
    for number in sorted(there ^ set(known)):
        has, lacks = (png, where) if number in there else (where, png)
        raise BadData(f"{has}: has segment {number}, which {lacks} lacks; correct either")
    return [
        of_mask(
            ids == number,
            crowd=bool(row.get("iscrowd", 0)),
            category=coco.category(f"{where}: segment {number}", row),
        )
        for number, row in known.items()
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Coco:
    """A JSON of COCO: images by id, in order; names of categories and licences by id."""

    file: Path
    images: Mapping[int, Json]
    annotations: Sequence[Json]
    categories: Mapping[int, str]
    licences: Mapping[int, str]

    @classmethod
    def read(cls, file: Path) -> "Coco":
        """BadData for a file that is not COCO's."""
        content = read_json(file)
        images: dict[int, Json] = {}
        for image in records(str(file), content, "images"):
            number = field(f"{file}: an image", image, "id", int)
            if number in images:
                raise BadData(f"{file}: image {number} is there twice; remove one")
            images[number] = image
        if not images:
            raise BadData(f"{file}: no images in it; expected some in 'images'")
        return cls(
            file=file,
            images=dict(sorted(images.items())),
            annotations=records(str(file), content, "annotations"),
            categories=_names(file, content, "categories"),
            licences=_names(file, content, "licenses"),
        )

    def category(self, where: str, row: Json) -> str:
        """The name of an annotation's category; its id where the file names none. BadData for one
        that is not among those it names.
        """
        number = row.get("category_id")
        if number is None:
            return ""
        if self.categories and number not in self.categories:
            known = ", ".join(str(n) for n in sorted(self.categories))
            raise BadData(f"{where}: category_id {number!r} is none of {known}; correct it")
        return self.categories.get(number, str(number))

    def photos(
        self,
        files: Sequence[Path],
        objects: Mapping[int, Callable[[int, int], list[Object]]],
        rows: Mapping[int, Sequence[Json]],
        masks: Mapping[int, Path] = NO_MASKS,
    ) -> list[Photo]:
        """The photos, found among `files`, with what reads their objects, and their masks."""
        by_name: dict[str, list[Path]] = {}
        for path in files:
            by_name.setdefault(path.name, []).append(path)
        return [
            self._photo(
                number,
                by_name,
                objects[number],
                labelled=bool(rows[number]),
                masks=[masks[number]] if number in masks else [],
            )
            for number in self.images
        ]

    def _photo(
        self,
        number: int,
        by_name: Mapping[str, Sequence[Path]],
        objects: Callable[[int, int], list[Object]],
        *,
        labelled: bool,
        masks: Sequence[Path],
    ) -> Photo:
        image, where = self.images[number], f"{self.file}: image {number}"
        name = field(where, image, "file_name", str)
        path = located(by_name.get(Path(name).name, ()), where, name, near=self.file)
        licence = image.get("license")
        return Photo(
            where=f"{where} ({path.name})",
            name=path.name,
            place=number,
            image=partial(read_sized, path, where, image.get("height"), image.get("width")),
            objects=objects,
            labelled=labelled,
            licence=licence if isinstance(licence, int | str) else None,
            licence_name=self.licences.get(cast(int, licence), ""),
            credit=str(image.get("flickr_url") or image.get("coco_url") or ""),
            files=(path, self.file, *masks),
        )


def located(paths: Sequence[Path], where: str, name: str, *, near: Path | None = None) -> Path:
    """The one of `paths` that ends in `name`; of several, the one in a folder that is a part of the
    name of the file `near`, as train2017 is of instances_train2017.json, or beside it.
    """
    end = Path(name).parts
    fitting = [path for path in paths if path.parts[-len(end) :] == end]
    if len(fitting) > 1 and near is not None:
        fitting = [
            path
            for path in fitting
            if path.parent.name in near.stem or near.parent in path.parents
        ]  # fmt: skip
    if len(fitting) != 1:
        found = "not found; unpack it too" if not fitting else "found several times"
        raise BadData(f"{where}: image {name} {found}")
    return fitting[0]


def _names(file: Path, content: Json, what: str) -> dict[int, str]:
    rows = records(str(file), content, what) if what in content else []
    return {
        field(f"{file}: {what}", row, "id", int): str(row.get("name", row["id"])) for row in rows
    }
