"""Which student owns which condition: labels in blocks, prompts in quadrants.

Every partition is disjoint, complete and of equal parts. Labels stay those of the whole set: a
student sees the ids that its teacher knows, never ids of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from stillhouse.errors import BadData, BadSetting

Blocks = tuple[tuple[int, ...], ...]
QUADRANTS = 4
KMEANS_ROUNDS = 100


def label_blocks(classes: int, k: int) -> Blocks:
    """MSD, section on partitioning: the labels 0 ... classes - 1 as k consecutive blocks of equal
    size. Raises BadSetting where k does not divide the classes.
    """
    return _cut(list(range(classes)), check_students(classes, k))


def random_blocks(classes: int, k: int, rng: Generator) -> Blocks:
    """k blocks of equal size of labels drawn by `rng`, each in ascending order: the control of a
    semantic partition.
    """
    check_students(classes, k)
    return _cut(torch.randperm(classes, generator=rng).tolist(), k)


def kmeans_blocks(embeddings: Float[Tensor, "classes D"], k: int, rng: Generator) -> Blocks:
    """k blocks of equal size of labels whose `embeddings` (of each class, its mean) are near.

    Lloyd's algorithm with a balanced assignment: each round gives every centre as many labels, at
    the least sum of squared distances (Hungarian algorithm). Differs: plain k-means, which the
    paper tried, gives uneven parts. First centres are drawn by `rng`.
    """
    classes = len(embeddings)
    check_students(classes, k)
    if not bool(torch.isfinite(embeddings).all()):
        raise BadData("k-means: the embeddings of the classes hold values that are not finite")
    rows = embeddings.double()
    centres = rows[torch.randperm(classes, generator=rng)[:k]]
    owner = torch.full((classes,), -1)
    for _ in range(KMEANS_ROUNDS):
        found = _balanced(torch.cdist(rows, centres).square())
        if torch.equal(found, owner):
            break
        owner = found
        centres = torch.stack([rows[owner == each].mean(0) for each in range(k)])
    return tuple(tuple((owner == each).nonzero()[:, 0].tolist()) for each in range(k))


def _balanced(costs: Float[Tensor, "classes k"]) -> Int[Tensor, " classes"]:
    """The centre of each class, as many classes a centre, at the least sum of costs."""
    from scipy.optimize import linear_sum_assignment

    classes, k = costs.shape
    seats = np.repeat(costs.numpy(), classes // k, axis=1)
    _, seat = linear_sum_assignment(seats)
    return torch.from_numpy(np.asarray(seat // (classes // k)))


def check_students(classes: int, k: int) -> int:
    """k, where so many students get as many classes each; raises BadSetting otherwise."""
    if not 1 <= k <= classes or classes % k:
        fit = ", ".join(str(n) for n in range(1, classes + 1) if classes % n == 0)
        raise BadSetting(
            f"{k} students cannot share {classes} classes equally; choose one of {fit}"
        )
    return k


def _cut(labels: list[int], k: int) -> Blocks:
    size = len(labels) // k
    return tuple(tuple(sorted(labels[i * size : (i + 1) * size])) for i in range(k))


def owners(blocks: Sequence[Sequence[int]], classes: int) -> Int[Tensor, " classes"]:
    """The student of each label: the router of a label-conditional model. Raises BadData unless
    each of the labels 0 ... classes - 1 is in exactly one block.
    """
    owner = torch.full((classes,), -1, dtype=torch.long)
    for student, labels in enumerate(blocks):
        for label in labels:
            if not 0 <= label < classes:
                raise BadData(f"partition: label {label} is not in 0..{classes - 1}")
            if owner[label] >= 0:
                raise BadData(f"partition: label {label} is in two parts")
            owner[label] = student
    if bool((owner < 0).any()):
        raise BadData(f"partition: label {int((owner < 0).nonzero()[0, 0])} is in no part")
    return owner


@dataclass(frozen=True, kw_only=True)
class PromptQuadrants:
    """Four parts of the space of prompts: the first principal axis cut at its median, each half at
    its own median along the second.

    `mean` [D], `axes` [2, D], `first` [] and `second` [2], the thresholds. The paper says "four
    quadrants" of text embeddings pooled over tokens, and not which axes: this choice is ours. The
    fitted prompts fall into parts of equal size (but for ties, and for a rest of four).
    """

    mean: Tensor
    axes: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def fit(cls, embeddings: Float[Tensor, "N D"]) -> "PromptQuadrants":
        """The quadrants of training prompts; the same for the same rows in any order, but for the
        last bits. Raises BadData for fewer than four rows or two dimensions, or values that are not
        finite.
        """
        if len(embeddings) < QUADRANTS or embeddings.shape[1] < 2:
            found = list(embeddings.shape)
            raise BadData(f"prompt quadrants need four embeddings of two or more numbers ({found})")
        if not bool(torch.isfinite(embeddings).all()):
            raise BadData("prompt quadrants: the embeddings hold values that are not finite")
        rows = embeddings.double()
        mean = rows.mean(0)
        _, _, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        # a singular vector has no sign of its own: its largest entry is positive
        largest = axes[:2].abs().argmax(1, keepdim=True)
        axes = axes[:2] * axes[:2].gather(1, largest).sign()
        one, two = (rows - mean) @ axes[0], (rows - mean) @ axes[1]
        first = one.quantile(0.5)
        second = torch.stack([two[half].quantile(0.5) for half in (one <= first, one > first)])
        return cls(mean=mean, axes=axes, first=first, second=second)

    def route(self, embeddings: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """The part of each prompt, 0 to 3: the half of the first axis times two, plus that of the
        second. A prompt on a threshold belongs to the lower part.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.mean):
            found = list(embeddings.shape)
            raise BadData(
                f"prompt quadrants: expected embeddings [N, {len(self.mean)}] (got {found})"
            )
        projected = (embeddings.double() - self.mean) @ self.axes.T
        half = (projected[:, 0] > self.first).long()
        return 2 * half + (projected[:, 1] > self.second[half]).long()

    def tensors(self) -> dict[str, Tensor]:
        """The router as named tensors, for a safetensors file."""
        return {"mean": self.mean, "axes": self.axes, "first": self.first, "second": self.second}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "PromptQuadrants":
        """The router of what `tensors` gave."""
        return cls(**{name: tensors[name] for name in ("mean", "axes", "first", "second")})
