"""Which items a graph loss looks at, and the nearest neighbours of each.

n: items (voxels, pillars, cells, points) of a cloud, or of all clouds laid end to end. C: channels.
N: chosen items. K: items of a graph, its centre among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadData
from stillhouse.objectives.inputs import full, product

Features = Tensor | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The graphs of one cloud: rows of the clouds laid end to end."""

    start: int  # the cloud's first row
    centres: Integer[Tensor, " N"]
    neighbours: Integer[Tensor, "N K"]  # the centre first

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def edges(self) -> int:
        return self.neighbours.numel()


def chosen_items(importance: Float[Tensor, " n"], num: int) -> Integer[Tensor, " N"]:
    """PointDistiller's top-N: the N = min(num, n) largest, largest first, ties by lower index."""
    return importance.sort(descending=True, stable=True).indices[:num]


@torch.no_grad()
def nearest(
    features: Float[Tensor, "n C"], centres: Integer[Tensor, " N"], k: int, *, chunk: int
) -> Integer[Tensor, "N K"]:
    """The K = min(k, n) items nearest to each centre by squared distance in C, the centre first.

    `chunk` centres at a time: the memory is chunk * n distances. Ties fall as torch.topk has them.
    """
    shifted = full(features) - full(features).mean(dim=0)  # the expanded square loses fewer digits
    squares = shifted.square().sum(dim=1)
    parts = [
        _nearest(shifted, squares, part, min(k, len(features))) for part in centres.split(chunk)
    ]
    return torch.cat(parts)


def _nearest(features: Tensor, squares: Tensor, centres: Tensor, k: int) -> Tensor:
    # |a - b|^2 less |a|^2, which is the same all along a row
    distances = product(features[centres], features.mT).mul_(-2).add_(squares)
    # rounding and duplicates must not push a centre out of its own graph
    distances.scatter_(1, centres[:, None], float("-inf"))
    return distances.topk(k, dim=1, largest=False).indices


def build_graphs(
    clouds: Sequence[Tensor], importance: Sequence[Tensor], *, num: int, k: int, chunk: int
) -> list[Graphs]:
    """The graphs of every cloud that has items, `clouds` being its [n, C] teacher features."""
    found: list[Graphs] = []
    start = 0
    for features, score in zip(clouds, importance, strict=True):
        if len(features):
            centres = chosen_items(score, num)
            near = nearest(features, centres, k, chunk=chunk)
            found.append(Graphs(start=start, centres=centres + start, neighbours=near + start))
        start += len(features)
    return found


def chunks(
    graphs: Sequence[Graphs], chunk: int
) -> Iterator[tuple[slice, Integer[Tensor, "part K"]]]:
    """At most `chunk` graphs at a time: which of all graphs they are, and their neighbours."""
    start = 0
    for one in graphs:
        for part in one.neighbours.split(chunk):
            yield slice(start, start + len(part)), part
            start += len(part)


def as_clouds(features: Features, width: int, who: str) -> list[Float[Tensor, "n C"]]:
    """One [n, C] a cloud from [n, C], [B, C, N], [B, C, H, W] or a sequence of [n, C].

    Raises BadData for another shape or width, no cloud at all, and numbers that are not finite.
    """
    if isinstance(features, Tensor):
        if features.ndim not in (2, 3, 4):
            raise BadData(
                f"graph distillation: {who} must be [n, C], [B, C, N] or [B, C, H, W] "
                f"(got {list(features.shape)})"
            )
        whole = features.ndim == 2
        parts = [features] if whole else [x.flatten(1).mT for x in features]
    else:
        parts = list(features)
    if not parts:
        raise BadData(f"graph distillation: {who} has no cloud; give at least one")
    for i, part in enumerate(parts):
        _check_cloud(part, width, f"{who}, cloud {i}")
    return [full(part) for part in parts]


def _check_cloud(part: Tensor, width: int, where: str) -> None:
    if part.ndim != 2 or part.shape[1] != width:
        raise BadData(
            f"graph distillation: {where}: expected {width} channels, [n, {width}] "
            f"(got {list(part.shape)})"
        )
    if not bool(part.isfinite().all()):
        raise BadData(f"graph distillation: {where}: a feature is NaN or infinite")


def as_scores(importance: Features | None, counts: Sequence[int]) -> list[Float[Tensor, " n"]]:
    """One [n] a cloud of the `counts` items, from [n], [B, ...] or a sequence of such."""
    if importance is None:
        raise BadData("graph distillation: importance is missing; only importance='max' needs none")
    if isinstance(importance, Tensor) and importance.ndim == 1:
        importance = [importance]
    scores = [full(part.detach()).flatten() for part in importance]
    lengths = [len(part) for part in scores]
    if lengths != list(counts):
        raise BadData(
            f"graph distillation: importance must have one number an item, {list(counts)} a cloud "
            f"(got {lengths})"
        )
    for i, part in enumerate(scores):
        if not bool(part.isfinite().all()):
            raise BadData(f"graph distillation: importance, cloud {i}: NaN or infinite")
    return scores
