"""Data that the method makes: parts of the training data, conditions to sample, teacher pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadSetting
from stillhouse.recipe import Resource
from stillhouse.work import Work
from stillhouse_diffusion.data import balanced_labels
from stillhouse_diffusion.partition import (
    Blocks,
    check_students,
    kmeans_blocks,
    label_blocks,
    owners,
    random_blocks,
)

Split = Literal["blocks", "random", "kmeans"]
Shape = tuple[int, int, int]
BATCH = 500


def part_ports(students: int) -> tuple[str, ...]:
    """The ports of `SplitByLabel` that hold the students' parts."""
    return tuple(f"part{number}" for number in range(students))


@dataclass(frozen=True, kw_only=True)
class SplitByLabel:
    """A `make`: the port "data" as a part a student ("part0", ...: its images and labels, in order,
    with the label ids of the whole set), and "owner", whose row of each label says the student.

    `by` blocks of label numbers, labels drawn at random, or k-means of the classes' mean features
    by the role of the port "features" (its output "embedding").
    """

    students: int
    classes: int
    by: Split = "blocks"

    def __post_init__(self) -> None:
        check_students(self.classes, self.students)

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: the opened ports
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]
        owner = owners(self._blocks(inputs, work), self.classes)
        labels = data.columns["labels"]
        assert isinstance(labels, Tensor)
        made: dict[str, Columns] = {"owner": {"owner": owner}}
        for number, port in enumerate(part_ports(self.students)):
            rows = data.select((owner[labels] == number).nonzero()[:, 0])
            made[port] = {name: rows[name] for name in ("images", "labels")}
        return made

    def _blocks(self, inputs: Mapping[str, Any], work: Work) -> Blocks:  # Any: the opened ports
        if self.by == "blocks":
            return label_blocks(self.classes, self.students)
        if self.by == "random":
            return random_blocks(self.classes, self.students, work.rng)
        network = inputs["features"].module.to(work.device)
        sums, counts = torch.zeros(0), torch.zeros(self.classes)

        def embedded(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            found = network({"images": batch["images"].to(work.device)})["embedding"]
            return found.cpu(), batch["labels"]

        for found, labels in each_batch(inputs["data"], embedded, most=BATCH, device=work.device):
            sums = sums if len(sums) else torch.zeros(self.classes, found.shape[1])
            sums.index_add_(0, labels, found)
            counts += torch.bincount(labels, minlength=self.classes)
        return kmeans_blocks(sums / counts[:, None], self.students, work.rng)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """A `make`: the inputs from which `rows` images are made, to the port "test": "noise" of
    `shape` and "labels", each class in turn. The teacher and every student get the same.
    """

    rows: int
    classes: int
    shape: Shape

    def __post_init__(self) -> None:
        if self.rows < self.classes:
            raise BadSetting(f"rows must be >= classes (got {self.rows}, {self.classes})")

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        noise = torch.randn(self.rows, *self.shape, generator=work.rng)
        return {"test": {"noise": noise, "labels": balanced_labels(0, self.rows, self.classes)}}


@dataclass(frozen=True, kw_only=True)
class TeacherPairs:
    """A `make`: `rows` pairs of the sampler at the port "teacher", to the port "train": "noise",
    "labels" and the "images" that it makes of them, float32.

    Parts of `size` rows are kept when they are done: a killed stage goes on behind the last.
    """

    rows: int
    classes: int
    shape: Shape
    size: int = 250
    resource: ClassVar[Resource] = "gpu"

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: the opened ports
        *,
        work: Work,
    ) -> Mapping[str, Any]:  # Any: an iterator of columns
        sampler = inputs["teacher"].module.to(work.device)

        def compute(first: int, last: int, rng: Generator) -> Columns:
            noise = torch.randn(last - first, *self.shape, generator=rng)
            labels = balanced_labels(first, last, self.classes)
            given = {"noise": noise.to(work.device), "labels": labels.to(work.device)}
            with torch.no_grad():
                images = sampler(given)["images"].float().cpu()
            return {"noise": noise, "labels": labels, "images": images}

        return {"train": work.parts("pairs", self.rows, compute, of=self, size=self.size)}
