"""Texts as tokens, and images with tokens of several texts: what both towers are trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET, tokenized

Part = Literal["all", "covered", "lacking"]
COVER = 7_919  # of a seed that no student has


def covered(labels: Int64[Tensor, " N"], share: float) -> Bool[Tensor, " N"]:
    """Which labels are among the `share` that stage 2's pairs cover: each by its own number, so
    that all data agree.
    """
    numbers = [mix(COVER, label) % 1000 for label in labels.tolist()]
    return torch.tensor(numbers, dtype=torch.int64) < round(1000 * share)


def of_part(labels: Int64[Tensor, " N"], part: Part, share: float) -> Bool[Tensor, " N"]:
    """Which labels belong to a part."""
    if part == "all":
        return torch.ones(len(labels), dtype=torch.bool)
    found = covered(labels, share)
    return found if part == "covered" else ~found


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A `make`: the texts of the port "texts" as tokens [N, L] of the tokenizer that the port
    "tower" has, with their other columns, to the port "train". Raises BadData for a text of more
    than `length` tokens.
    """

    length: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data, file = inputs["texts"], inputs["tower"].assets[ASSET]
        texts = text_column(data, "text")
        found = tokenized(file, texts, length=self.length, where="texts")["tokens"]
        rest = {name: data.columns[name] for name in ("labels", "language", "source")}
        return {"train": {"tokens": found, **rest}}


@dataclass(frozen=True, kw_only=True)
class PairUp:
    """A `make`: each image of the port "images" with `copies` of its texts, of the port "tokens",
    to the port "train": tokens [N, copies, L] beside images and labels.

    A label's texts are drawn by the stage's seed, language after language, so that each language
    has its share; a label with fewer texts has some of them again. Only labels of `part` of the
    `share` that is covered are kept. Raises BadData for an image without a text.
    """

    copies: int = 4
    part: Part = "all"
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.copies < 1 or not 0 < self.share < 1:
            raise BadSetting(
                f"copies must be >= 1, share > 0 and < 1 (got {self.copies}, {self.share})"
            )

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        images, texts = inputs["images"], inputs["tokens"]
        labels = _numbers(images, "labels")
        kept = torch.nonzero(of_part(labels, self.part, self.share)).flatten()
        places = self._places(texts, work)
        rows: list[Tensor] = []
        for number, label in zip(kept.tolist(), labels[kept].tolist(), strict=True):
            if label not in places:
                raise BadData(f"image {number} has no text; give one, or leave it out")
            turns = places[label]
            first = mix(work.seed, number) % len(turns)
            rows.append(turns[(first + torch.arange(self.copies)) % len(turns)])
        if not rows:
            raise BadData(f"no image is left of the {len(labels)} of this part; set another share")
        chosen = torch.stack(rows)
        tokens = _numbers(texts, "tokens")
        found = {**images.select(kept)}
        return {"train": {**found, "tokens": tokens[chosen]}}

    def _places(self, texts: RowData, work: Work) -> Mapping[int, Tensor]:
        """By label, the rows of its texts: one of each language in turn, shuffled within it."""
        order = torch.randperm(len(texts), generator=work.rng)
        labels, language = _numbers(texts, "labels")[order], _numbers(texts, "language")[order]
        found: dict[int, dict[int, list[int]]] = {}
        for row, label, which in zip(
            order.tolist(), labels.tolist(), language.tolist(), strict=True
        ):
            found.setdefault(label, {}).setdefault(which, []).append(row)
        return {
            label: torch.tensor(_in_turns([by[which] for which in sorted(by)]))
            for label, by in found.items()
        }


def _in_turns(lists: list[list[int]]) -> list[int]:
    """The first of each, the second of each, and so on; a shorter one begins again."""
    longest = max(map(len, lists))
    return [each[turn % len(each)] for turn in range(longest) for each in lists]


def _numbers(data: RowData, name: str) -> Tensor:
    column = data.columns.get(name)
    if not isinstance(column, Tensor):
        raise BadData(f"the data have no column '{name}' of numbers")
    return column


@dataclass(frozen=True, kw_only=True)
class PickText:
    """An augmentation: of each image's texts, tokens [B, T, L], one, tokens [B, L], by its id and
    view, so that a batch mixes languages and T views show all; and images mirrored half of the time
    where `flip`.
    """

    flip: bool = True
    seed: int = 0

    def __call__(self, batch: Tensors) -> Tensors:
        ids, views = batch["id"].tolist(), batch["view"].tolist()
        found = dict(batch)
        if batch.get("tokens", batch["id"]).ndim == 3:
            count = batch["tokens"].shape[1]
            pairs = zip(ids, views, strict=True)
            turn = torch.tensor([(mix(self.seed, i) + view) % count for i, view in pairs])
            found["tokens"] = batch["tokens"][torch.arange(len(turn)), turn]
        if self.flip and "images" in batch:
            pairs = zip(ids, views, strict=True)
            mirror = torch.tensor([mix(self.seed, i, view, 1) % 2 == 1 for i, view in pairs])
            images = batch["images"]
            found["images"] = torch.where(mirror[:, None, None, None], images.flip(-1), images)
        return found
