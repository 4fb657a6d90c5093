"""Few or noisy labels: copies of faces, noise on their points, a draw of labelled faces whose rest
loses its points.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.data import Columns, Data, RowData
from stillhouse.errors import BadData
from stillhouse.objectives.inputs import not_negative
from stillhouse.training import Augment
from stillhouse.work import Work
from stillhouse_landmarks.augment import views_of
from stillhouse_landmarks.pretrained import FOLD, NO_FOLD

FACE, COPY, POINTS = "face", "copy", "landmarks"


def noisy_column(seed: int) -> str:
    """The column of a seed's noisy points."""
    return f"noisy-{seed}"


@dataclass(frozen=True, kw_only=True)
class AddNoise:
    """A `make`: the faces of the port "data" with columns "noisy-0", "noisy-1", ... one a seed, to
    the port "train": their landmarks with Gaussian noise of the standard deviation `noise`, in
    fractions of the crop's side, on each coordinate.
    """

    noise: float
    seeds: int

    def __post_init__(self) -> None:
        not_negative("noise", self.noise)

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]  # Any: what the port's opener returns
        columns = data.select(torch.arange(len(data)))
        points = columns[POINTS]
        assert isinstance(points, Tensor)
        for seed in range(self.seeds):
            noise = torch.randn(points.shape, generator=work.rng)
            columns = {**columns, noisy_column(seed): points + self.noise * noise}
        return {"train": columns}


@dataclass(frozen=True, kw_only=True)
class CopyFaces:
    """A `make`: the first `views` views of each face of the port "data" under `augment`, to the
    port "train" with the columns of the data, and of each which face it is and which copy.
    """

    augment: Augment
    views: int
    columns: tuple[str, ...] = (POINTS,)

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Iterator[Columns]]:
        data: Data = inputs["data"]  # Any: what the port's opener returns
        return {"train": self._parts(data)}

    def _parts(self, data: Data) -> Iterator[Columns]:
        for seen in views_of(data, self.augment, self.views):
            points = {name: seen[name].float() for name in self.columns}
            yield {"images": seen["images"], FACE: seen["id"], COPY: seen["view"], **points}


@dataclass(frozen=True, kw_only=True)
class DrawFaces:
    """A `make`: all copies of `faces` faces of the port "data" (0: all of them), drawn by the
    stage's seed, to the port "labelled"; with `rest` those of all other faces to "unlabelled".

    What "unlabelled" holds has no points: whoever reads it cannot reach one. Labelled faces are
    dealt to `folds` folds, column "fold", the others have -1. `points` names the column that
    becomes the labelled faces' landmarks. Raises BadData for more faces than there are, and where
    none is left without points.
    """

    faces: int
    folds: int
    rest: bool = True
    points: str = POINTS

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]  # Any: what the port's opener returns
        column = data.columns[FACE]
        assert isinstance(column, Tensor)
        every = column.unique()
        count = self.faces or len(every)
        if count > len(every) or (self.rest and count == len(every)):
            raise BadData(
                f"labels={self.faces}: there are {len(every)} training faces"
                + ("; set fewer, or rows that need no others" if self.rest else "; set fewer")
            )
        drawn = every[torch.randperm(len(every), generator=work.rng)[:count]]
        fold_of = torch.full((int(every.max()) + 1,), NO_FOLD)
        fold_of[drawn] = torch.arange(count) % self.folds
        fold = fold_of[column]
        parts = {"labelled": self._part(data, fold, fold != NO_FOLD)}
        if self.rest:
            found = self._part(data, fold, fold == NO_FOLD)
            parts["unlabelled"] = {n: c for n, c in found.items() if n != POINTS}
        return parts

    def _part(self, data: RowData, fold: Tensor, mask: Tensor) -> dict[str, Any]:
        rows = mask.nonzero().flatten()
        kept = data.select(rows)
        points = kept[self.points]
        columns = {n: c for n, c in kept.items() if not n.startswith("noisy-") and n != FACE}
        return {**columns, POINTS: points, FOLD: fold[rows]}


@dataclass(frozen=True, kw_only=True)
class FirstViews:
    """A `make`: the copies of the port "data" of the first `views` views, to the port "train"."""

    views: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]  # Any: what the port's opener returns
        copy = data.columns[COPY]
        assert isinstance(copy, Tensor)
        return {"train": data.select((copy < self.views).nonzero().flatten())}
