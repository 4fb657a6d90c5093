"""What data of a user's own say of a recipe's settings, quickly: names of folders, a parquet file's
schema and label column, some images.

C: channels.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.data.images import IMAGE_SUFFIXES, read_image
from stillhouse.data.parquet import column_of, open_parquet
from stillhouse.data.sources import visible_files
from stillhouse.data.splits import Split
from stillhouse.errors import BadData, BadSetting
from stillhouse_vision.data import LABEL_COLUMNS
from stillhouse_vision.folders import class_folders, class_names, parquet_files
from stillhouse_vision.images import IMAGE_COLUMNS
from stillhouse_vision.models.classifier import IMAGENET_MEAN, IMAGENET_STD

GREY_MEAN, GREY_STD = (0.5,), (0.25,)
SIDE, LARGEST_SIDE = 32, 64  # of images that are scaled; up to here square ones stay as they are
LOOKED_AT = 16  # images


@dataclass(frozen=True, kw_only=True)
class Look:
    """What can be seen of labelled images without reading them all."""

    rows: Mapping[int, int]  # of the training part, by label
    sizes: frozenset[tuple[int, int]]  # width, height of some
    grey: bool
    split: bool  # there is a part for testing
    names: tuple[str, ...] = ()
    numbered: bool = False  # the data have numbers of their own for `names`

    @property
    def classes(self) -> int:
        return len(self.names) or max(self.rows, default=-1) + 1

    @property
    def side(self) -> int:
        """That of the images where all that were looked at are small squares of it, else 32."""
        sides = {side for size in self.sizes for side in size}
        return sides.pop() if len(sides) == 1 and max(sides) <= LARGEST_SIDE else SIDE

    def training_rows(self, held_out: float) -> int:
        """Rows for training, once `held_out` of each class is kept where there is no test part."""
        if self.split:
            return sum(self.rows.values())
        kept = (n - min(n - 1, max(1, round(held_out * n))) for n in self.rows.values())
        return sum(kept)


def image_settings(look: Look, given: Mapping[str, Any]) -> dict[str, Any]:  # Any: field values
    """Classes, names, size and normalisation, where `given` has none of them."""
    mean, std = (GREY_MEAN, GREY_STD) if look.grey else (IMAGENET_MEAN, IMAGENET_STD)
    names = tuple(given.get("names", ())) or look.names
    classes = int(number(given, "classes", len(names) or look.classes))
    values: dict[str, Any] = {
        "classes": max(2, classes),
        "names": names if len(names) == classes else (),
        "size": look.side,
        "resize": True,
    }
    _check_order(look, names)
    # one of them alone would have the other's channels
    return values if {"mean", "std"} & set(given) else {**values, "mean": mean, "std": std}


def number(values: Mapping[str, Any], key: str, default: float) -> float:  # Any: field values
    """That of a setting, which may still be text; the default where it is none or missing."""
    try:
        return float(values.get(key, default))
    except (TypeError, ValueError):
        return default  # the settings' own check reports what is wrong


def _check_order(look: Look, names: Sequence[str]) -> None:
    if look.numbered and names != look.names and set(names) == set(look.names):
        raise BadSetting(
            f"names: {','.join(names)}, but the data number their classes as "
            f"{','.join(look.names)}; give this order or leave names out"
        )


def look_at(source: object) -> Look:
    """Of a folder, a parquet file or arrays by name; BadData where they are no labelled images."""
    if isinstance(source, Mapping):
        return _at_arrays(source)  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(source, Path):
        raise BadData(f"a {type(source).__name__}; expected arrays, parquet or folders of images")
    files = parquet_files(source)
    return _at_parquet(files) if files else _at_folders(source)


def _at_arrays(arrays: Mapping[str, Any]) -> Look:  # Any: numpy arrays or tensors
    try:
        shape = np.asarray(arrays["train_images"]).shape
        labels = np.asarray(arrays["train_labels"]).reshape(-1).tolist()
        _, channels, height, width = shape
    except (KeyError, ValueError) as error:
        raise BadData(
            f"data: expected arrays train_images [N, C, H, W] and train_labels [N] ({error})"
        ) from error
    return Look(
        rows=Counter(map(int, labels)),
        sizes=frozenset({(int(width), int(height))}),
        grey=channels == 1,
        split="test_images" in arrays,
    )


def _at_folders(source: Path) -> Look:
    folders = class_folders(source)
    names = class_names(folders["train"])
    files = {
        label: [f for f in visible_files(folders["train"] / name) if _is_image(f)]
        for label, name in enumerate(names)
    }
    # one of each class before the second of any
    turns = (f for place in range(LOOKED_AT) for c in files.values() for f in c[place : place + 1])
    sizes, grey = _seen((str(file), file) for file in turns)
    return Look(
        rows={label: len(found) for label, found in files.items()},
        sizes=sizes,
        grey=grey,
        split=len(folders) > 1,
        names=names,
    )


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _at_parquet(files: Mapping[Split, Sequence[Path]]) -> Look:
    names = _feature_names(open_parquet(files["train"][0]).schema_arrow)
    sizes, grey = _seen(_encoded(files["train"]))
    return Look(
        rows=Counter(label for file in files["train"] for label in _labels(file)),
        sizes=sizes,
        grey=grey,
        split=len(files) > 1,
        names=names,
        numbered=bool(names),
    )


def _labels(file: Path) -> list[int]:
    opened = open_parquet(file)
    column = column_of(opened, LABEL_COLUMNS, file.name)
    values = opened.read(columns=[column]).column(column).to_pylist()
    return [value for value in values if isinstance(value, int)]  # the reader names the others


def _encoded(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    opened = open_parquet(files[0])
    column = next((n for n in IMAGE_COLUMNS if n in opened.schema_arrow.names), None)
    if column is None:
        return  # the reader reports it
    for batch in opened.iter_batches(batch_size=LOOKED_AT, columns=[column]):
        for row, value in enumerate(batch.column(0).to_pylist()):
            content = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(content, bytes):
                yield f"{files[0].name}: row {row}", content
        return


def _feature_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names that Hugging Face's `ClassLabel` has written into the schema; () without one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        label = next(features[name] for name in LABEL_COLUMNS if name in features)
        return tuple(str(name) for name in label["names"])
    except (KeyError, ValueError, TypeError, StopIteration):
        return ()


def _seen(images: Iterator[tuple[str, Path | bytes]]) -> tuple[frozenset[tuple[int, int]], bool]:
    """Sizes of some images, and whether all of them are grey."""
    some = [read_image(content, where, mode="") for where, content in islice(images, LOOKED_AT)]
    return frozenset(image.size for image in some), all(image.mode == "L" for image in some)
