"""Zero-shot classification of several data sets by their class names, as ELEVATER's (Li et al.
2022, arXiv 2204.08790) are scored.

A folder of data sets, each a folder with

    set.json    {"metric": "accuracy", "labels": {"en": ["cat", ...], "zh": ["猫", ...]},
                "templates": {"en": ["a photo of a {}", ...]}}
    images.tsv  <path of an image in this folder><tab><number of its class>, from 0; of several
                classes 3,7

N: images. C: classes. P: templates. D: width of the space.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stillhouse.data.data import Columns, Data
from stillhouse.errors import BadData, MissingData
from stillhouse.metrics import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_clip.images import DecodeImage, Sample, image_columns
from stillhouse_clip.languages import (
    Languages,
    image_embeddings,
    rows_at,
    templates_in,
    templates_of,
    text_embeddings,
    texts_by_language,
)
from stillhouse_clip.metrics import class_mean_accuracy
from stillhouse_clip.objectives.distillation import unit, zero_shot_rows

SetMetric = Literal["accuracy", "class_mean_accuracy", "map11", "roc_auc"]
ABOUT, LISTED = "set.json", "images.tsv"
LEVELS = 11  # of recall: 0, 0.1, ..., 1


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """A data set: its folder's name, its metric, and by language its class names and templates."""

    name: str
    metric: SetMetric
    labels: Mapping[str, tuple[str, ...]]
    templates: Mapping[str, tuple[str, ...]]

    @property
    def classes(self) -> int:
        return len(next(iter(self.labels.values())))


def read_sets(root: Path) -> tuple[ClassSet, ...]:
    """The data sets of a folder, by name. Raises MissingData without one, BadData for a set.json
    that is none: each names the file.
    """
    files = sorted(root.glob(f"*/{ABOUT}"))
    if not files:
        raise MissingData(f"{root}: holds no <data set>/{ABOUT}; see the plugin's README")
    return tuple(_class_set(file) for file in files)


def _class_set(file: Path) -> ClassSet:
    try:
        about: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{file}: not JSON ({error})") from error
    if not isinstance(about, dict) or not about.get("labels"):
        raise BadData(f'{file}: expected {{"labels": {{"en": ["cat", ...]}}, ...}}')
    metric = about.get("metric", "accuracy")
    if metric not in get_args(SetMetric):
        raise BadData(f"{file}: metric '{metric}' is none of {', '.join(get_args(SetMetric))}")
    labels = texts_by_language(about["labels"], where=f"{file}: labels")
    counts = {language: len(names) for language, names in labels.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} in {language}" for language, count in counts.items())
        raise BadData(f"{file}: labels: {listed}; name each class once a language, in one order")
    (count,) = set(counts.values())
    if count < 2 or (metric == "roc_auc" and count > 2):
        raise BadData(f"{file}: {count} classes, of which {metric} cannot be")
    templates = templates_in(about.get("templates") or {}, where=f"{file}: templates")
    return ClassSet(name=file.parent.name, metric=metric, labels=labels, templates=templates)


@dataclass(frozen=True, kw_only=True)
class ReadSets:
    """A `make`: the images of the port "sets", a folder of the data sets `sets`, to the port
    "images": images, set (its place in `sets`) and truth [N, C] of 0 and 1, C of the set with the
    most classes. Raises MissingData or BadData, which name the file and its line.
    """

    size: int
    sets: tuple[ClassSet, ...]

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Iterator[Columns]]:
        # Any: what the port's opener returns
        root = Path(inputs["sets"])
        samples, places, truths = list[Sample](), list[int](), list[Sequence[int]]()
        for place, each in enumerate(self.sets):
            for file, classes in _listed(root / each.name, each.classes):
                samples.append(Sample(str(file), file, len(samples)))
                places.append(place)
                truths.append(classes)
        width = max(each.classes for each in self.sets)
        truth = torch.zeros(len(samples), width, dtype=torch.uint8)
        for row, classes in enumerate(truths):
            truth[row, list(classes)] = 1
        return {"images": _parts(samples, torch.tensor(places), truth, self.size, work)}


def _parts(
    samples: Sequence[Sample], places: Tensor, truth: Tensor, size: int, work: Work
) -> Iterator[Columns]:
    for part in image_columns(samples, DecodeImage(size=size), work):
        rows = part["labels"]  # a sample's label is its row here
        assert isinstance(rows, Tensor)
        yield {"images": part["images"], "set": places[rows], "truth": truth[rows]}


def _listed(folder: Path, classes: int) -> Iterator[tuple[Path, Sequence[int]]]:
    file = folder / LISTED
    if not file.is_file():
        raise MissingData(f"{file} not found; list <image><tab><number of its class> a line")
    rows = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not rows:
        raise BadData(f"{file}: lists no image")
    for number, line in enumerate(rows, 1):
        name, tab, cells = line.partition("\t")
        given = cells.replace(" ", "").split(",")
        if not tab or not all(each.isdecimal() for each in given):
            raise BadData(f"{file}: line {number}: expected <image>, a tab, <number of its class>")
        labels = [int(each) for each in given]
        if max(labels) >= classes:
            raise BadData(f"{file}: line {number}: class {max(labels)}, but {classes} are named")
        if not (folder / name).is_file():
            raise MissingData(f"{file}: line {number}: {folder / name} not found")
        yield folder / name, labels


@dataclass(frozen=True, kw_only=True)
class ZeroShotSets(Languages):
    """A table: the score of each data set of `sets` in each of the first two languages that its
    classes are named in, of the images at the data port `images` (`ReadSets`).

    A class is the mean over templates of unit vectors: the set's own templates, those of
    `templates`, or the known ones. The score is the set's metric, in the column of its language.
    """

    sets: tuple[ClassSet, ...]
    templates: Mapping[str, tuple[str, ...]]

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        module = named(models, self.role, what="role", where="zero-shot data sets")
        rows = rows_at(work.data, self.images)
        found = unit(image_embeddings(module, rows, device=work.device))
        places, truths = rows.columns["set"], rows.columns["truth"]
        assert isinstance(places, Tensor)
        assert isinstance(truths, Tensor)
        cells: dict[tuple[str, str], float] = {}
        for place, each in enumerate(self.sets):
            where = places == place
            truth = truths[where, : each.classes].bool()
            for language in self.languages[:2]:
                if language in each.labels:
                    cosines = found[where] @ self._bank(models, each, language, work).mT
                    cells[each.name, f"zero_shot_{language}"] = SCORED[each.metric](cosines, truth)
        return cells

    def _bank(self, models: Models, each: ClassSet, language: str, work: Work) -> Tensor:
        """Rows [C, D] of the set's classes in a language."""
        templates = templates_of(language, {**self.templates, **each.templates})
        names = each.labels[language]
        prompts = [text.replace("{}", name) for name in names for text in templates]
        module = named(models, self.role, what="role", where="zero-shot data sets")
        flat = text_embeddings(module, self.tokens(prompts, work), device=work.device)
        return zero_shot_rows(flat.unflatten(0, (len(names), len(templates))))

    def scores(self) -> Sequence[Score]:
        return tuple(
            Score(name=f"zero_shot_{code}", better="higher", unit="%", label=f"Zero-shot, {code}")
            for code in self.languages[:2]
        )


def accuracy(logits: Float[Tensor, "N C"], truth: Bool[Tensor, "N C"]) -> float:
    """The fraction of images whose likeliest class is one of theirs."""
    return float(truth.gather(1, logits.argmax(1, keepdim=True)).float().mean())


def by_class(logits: Float[Tensor, "N C"], truth: Bool[Tensor, "N C"]) -> float:
    """The mean over classes of the fraction of a class's images that are predicted right; raises
    BadData for an image of several classes.
    """
    if bool((truth.sum(1) != 1).any()):
        raise BadData("class_mean_accuracy: an image has several classes; use map11")
    return class_mean_accuracy(logits.argmax(1), truth.int().argmax(1))


def map11(logits: Float[Tensor, "N C"], truth: Bool[Tensor, "N C"]) -> float:
    """The mean over classes of the average precision at 11 levels of recall, as VOC 2007 has it:
    the mean over t in 0, 0.1, ..., 1 of the highest precision at a recall of at least t. Raises
    BadData for a class without an image.
    """
    if not bool(truth.any(0).all()):
        raise BadData(f"map11: no image of class {int((~truth.any(0)).nonzero()[0, 0])}")
    order = logits.argsort(dim=0, descending=True, stable=True)
    hits = truth.gather(0, order).double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)[:, None]
    recall = hits / hits[-1]
    levels = [
        torch.where(recall >= level / (LEVELS - 1) - 1e-9, precision, 0).amax(0)
        for level in range(LEVELS)
    ]
    return float(torch.stack(levels).mean())


def roc_auc(logits: Float[Tensor, "N 2"], truth: Bool[Tensor, "N 2"]) -> float:
    """The probability that an image of class 1 is likelier to be of it than an image of class 0,
    half where both are as likely. Raises BadData without images of either class.
    """
    # torchmetrics takes seconds to import; recipes are built without it
    from torchmetrics.functional.classification import binary_auroc

    one = truth[:, 1].long()
    if not 0 < int(one.sum()) < len(one):
        raise BadData("roc_auc: images of both classes are needed")
    return float(binary_auroc((logits[:, 1] - logits[:, 0]).double(), one))


SCORED: Mapping[SetMetric, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "class_mean_accuracy": by_class,
    "map11": map11,
    "roc_auc": roc_auc,
}
