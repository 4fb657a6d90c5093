"""Data of VLM-OOD: images of classes that are trained on, and of classes that are not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.data import Columns
from stillhouse.data.parquet import parquet_rows
from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse.work import Work
from stillhouse_clip.class_lists import ClassText, Split, plain_name, read_lists
from stillhouse_clip.images import DecodeImage, Fit, Sample, image_columns
from stillhouse_clip.labels import prompts_of

PORTS = ("train", "validation", "unseen", "shots", "classes", "every")
LISTED = "classes.json"  # of a folder of parquet files


@dataclass(frozen=True, kw_only=True)
class ReadClasses:
    """A `make`: the port "source" (and "descriptions") to six ports.

    train, validation: images of known classes, labels 0 ... K - 1. unseen: images of classes that
    are never trained on, labels 0 ... U - 1. shots: `shots` other images of each of those, the
    first in order, labels K ... K + U - 1. classes: name, description, known, first the known ones,
    and what a teacher reads of each, plain and (where all have a description) described.
    every: what a teacher that is trained here sees, labels 0 ... K + U - 1: training images of all
    classes of built-in data, of other data those of the known.

    Sources: arrays (stillhouse_clip.scenes); a folder with train.parquet, val.parquet and
    classes.json; a folder as stillhouse_clip.class_lists says. Where classes are not split by the
    source, round(`known` of all) are drawn by `split`.
    """

    size: int
    known: float = 0.5
    shots: int = 5
    split: int = 0
    fit: Fit = "square"

    def __post_init__(self) -> None:
        if not 0 < self.known < 1:
            raise BadSetting(
                f"known must be > 0 and < 1, a fraction of the classes (got {self.known})"
            )

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        # Any: what the ports' openers return
        source = inputs["source"]
        if isinstance(source, Mapping):
            return self._of_arrays(source)
        root = Path(source)
        if (root / LISTED).is_file():
            split = self._of_parquet(root, inputs.get("descriptions"))
        elif root.is_dir():
            split = read_lists(root)
        else:
            raise BadData(f"{root}: expected a folder; see the plugin's README")
        return self._columns(split, work)

    def _columns(self, split: Split, work: Work) -> Mapping[str, Columns | Iterator[Columns]]:
        decode = DecodeImage(size=self.size, fit=self.fit)
        shots, rest = self._few(split.parts["unseen"], len(split.unseen))
        count = len(split.known)
        offset = [sample._replace(label=sample.label + count) for sample in shots]
        parts = {"train": split.parts["train"], "validation": split.parts["validation"]}
        parts |= {"unseen": rest, "shots": offset, "every": split.parts["train"]}
        return {
            "classes": class_columns((*split.known, *split.unseen), count),
            **{part: image_columns(samples, decode, work) for part, samples in parts.items()},
        }

    def _few(
        self, samples: Sequence[Sample], classes: int
    ) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """The first images of each class, and the others."""
        taken, few, rest = [0] * classes, list[Sample](), list[Sample]()
        for sample in samples:
            chosen = taken[sample.label] < self.shots
            taken[sample.label] += 1
            (few if chosen else rest).append(sample)
        if short := [label for label, count in enumerate(taken) if count <= self.shots]:
            raise BadData(
                f"unseen class {short[0]} has {taken[short[0]]} images, too few for {self.shots} "
                "shots and a test; set shots to fewer"
            )
        return few, rest

    def _drawn(self, count: int) -> tuple[list[int], list[int]]:
        """Known and unseen classes, each in order."""
        known = round(self.known * count)
        if not 0 < known < count:
            raise BadData(f"{count} classes cannot be split by known={self.known}")
        order = np.random.default_rng(self.split).permutation(count)
        return sorted(order[:known].tolist()), sorted(order[known:].tolist())

    def _of_arrays(self, source: Mapping[str, Any]) -> Mapping[str, Columns]:
        names, described = list(map(str, source["name"])), list(map(str, source["description"]))
        known, unseen = self._drawn(len(names))
        place = torch.full((len(names),), -1)
        place[torch.tensor([*known, *unseen])] = torch.arange(len(names))
        images = {p: torch.as_tensor(source[f"{p}_images"]) for p in ("train", "test")}
        labels = {p: place[torch.as_tensor(source[f"{p}_labels"])] for p in ("train", "test")}
        count = len(known)
        texts = [described[i] for i in (*known, *unseen)]

        def rows(part: str, chosen: Tensor, less: int = 0) -> Columns:
            kept = labels[part][chosen]
            captions = [texts[label] for label in kept.tolist()]
            return {"images": images[part][chosen], "labels": kept - less, "captions": captions}

        shots = [
            torch.nonzero(labels["train"] == label).flatten()[: self.shots]
            for label in range(count, len(names))
        ]
        listed = [
            ClassText(folder=names[i], name=names[i], description=described[i])
            for i in (*known, *unseen)
        ]
        return {
            "train": rows("train", torch.nonzero(labels["train"] < count).flatten()),
            "validation": rows("test", torch.nonzero(labels["test"] < count).flatten()),
            "unseen": rows("test", torch.nonzero(labels["test"] >= count).flatten(), count),
            "shots": rows("train", torch.cat(shots)),
            "every": rows("train", torch.arange(len(labels["train"]))),
            "classes": class_columns(listed, count),
        }

    def _of_parquet(self, root: Path, described: Path | None) -> Split:
        texts = listed_classes(root / LISTED, described)
        known, unseen = self._drawn(len(texts))
        place = {old: i for names in (known, unseen) for i, old in enumerate(names)}
        parts: dict[str, list[Sample]] = {"train": [], "validation": [], "unseen": []}
        for file, part in (("train.parquet", "train"), ("val.parquet", "validation")):
            for row in parquet_rows(root / file, ("image", "label")):
                label = int(row["label"])
                if not 0 <= label < len(texts):
                    raise BadData(f"{root / file}: label {label}, but {len(texts)} classes listed")
                where = f"{root / file}: an image of class {label}"
                sample = Sample(where, row["image"]["bytes"], place[label])
                parts[part if label in known else "unseen"].append(sample)
        return Split(
            known=tuple(texts[i] for i in known),
            unseen=tuple(texts[i] for i in unseen),
            parts=parts,
        )


def class_columns(texts: Sequence[ClassText], known: int) -> Columns:
    """The table of classes; raises BadData for two of one name, which no text could distinguish."""
    seen: dict[str, str] = {}
    for text in texts:
        if text.name in seen:
            raise BadData(
                f"classes '{seen[text.name]}' and '{text.folder}' are both called '{text.name}'; "
                "give each a name of its own"
            )
        seen[text.name] = text.folder
    names = [text.name for text in texts]
    described = [text.description for text in texts]
    read = {"plain": prompts_of(names)}
    if all(described):
        read["described"] = prompts_of(names, described)
    return {
        "name": names,
        "description": described,
        **read,
        "known": (torch.arange(len(texts)) < known).long(),
    }


def listed_classes(file: Path, described: Path | None) -> list[ClassText]:
    """The classes of a classes.json, a list of objects with wnid and en (and description), with the
    descriptions of a JSONL file by wnid where one is given. Raises BadData or MissingData.
    """
    rows = _json(file, file.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise BadData(f"{file}: expected a list of classes")
    more = {} if described is None else described_by(described)
    found = list[ClassText]()
    for row in rows:
        name, wnid = plain_name(str(row["en"])), str(row["wnid"])
        if described is not None and wnid not in more:
            raise BadData(f"{described}: describes no class {wnid} ('{name}'), which {file} lists")
        text = more.get(wnid, str(row.get("description") or ""))
        found.append(ClassText(folder=wnid, name=name, description=text))
    return found


def described_by(file: Path) -> dict[str, str]:
    """The description of each wnid in a JSONL file."""
    if not file.is_file():
        raise MissingData(f"{file} not found; give a JSONL file with wnid and description")
    rows = [_json(file, line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return {str(row["wnid"]): str(row["description"]) for row in rows}


def _json(file: Path, text: str) -> Any:  # Any: JSON values
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadData(f"{file}: not JSON ({error}); get it again") from error
