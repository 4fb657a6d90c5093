"""Training-free scores as the score of a Search stage.

The stage's inputs hold a port of labelled images ("images", "labels") and, for DisWOT, one of a
teacher. One batch, drawn once, serves all candidates.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Model
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.search.evolution import RandomSearch
from stillhouse.search.proxies import COMPARISON, Similarities, View, diswot_score, views
from stillhouse.search.space import Encoding, SearchSpace, Trial
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class DisWOT:
    """`diswot_score` of each candidate; higher is better.

    "zscore" adds the two parts after bringing them to one scale: minus the mean, over the standard
    deviation, of `references` architectures drawn from the space before the search, so that a
    score does not change while candidates come in. "sum" adds them as they are, as released.
    `by_class`: the semantic part's form for students of several widths (`semantic_distance`).
    """

    teacher: str = "teacher"
    data: str = "data"
    batch: int = 64
    inits: int = 4
    combine: Literal["zscore", "sum"] = "zscore"
    references: int = 32
    by_class: bool = False

    def __post_init__(self) -> None:
        if self.combine not in ("zscore", "sum"):
            raise BadSetting(f"combine must be zscore or sum in a search (got {self.combine!r})")
        if self.batch < 2 or self.inits < 1 or self.references < 2:
            raise BadSetting(
                "DisWOT needs batch >= 2, inits >= 1 and references >= 2 "
                f"(got {self.batch}, {self.inits} and {self.references})"
            )

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, work: Work
    ) -> "PreparedDisWOT":  # Any: what each input's opener returns
        images, labels = labelled_batch(inputs, self.data, self.batch, work.rng, work.device)
        seed = int(torch.randint(2**62, (), generator=work.rng))
        teacher = named(inputs, self.teacher, what="input", where="DisWOT's score").module
        seen = views(teacher.to(work.device), images, labels, inits=self.inits, seed=seed)
        raw = PreparedDisWOT(
            images=images, labels=labels, teacher=seen, seed=seed, by_class=self.by_class
        )
        if self.combine == "sum":
            return raw
        scores = [raw.parts(space.model(e)) for e in _distinct(space, self.references, work.rng)]
        semantics = torch.tensor([s.semantic for s in scores], dtype=torch.float64)
        relations = torch.tensor([s.relation for s in scores], dtype=torch.float64)
        return replace(raw, semantic=Scale.of(semantics), relation=Scale.of(relations))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear scale: (value - origin) / unit."""

    origin: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, values: Tensor) -> "Scale":
        """Mean and standard deviation (of n) of [n] values; a unit of 1 where all are equal."""
        unit = values.std(correction=0).item()
        return cls(origin=values.mean().item(), unit=unit if unit > 0 else 1.0)

    def __call__(self, value: float) -> float:
        return (value - self.origin) / self.unit


@dataclass(frozen=True, kw_only=True)
class PreparedDisWOT:
    """DisWOT's score with the batch drawn, the teacher seen and the scales known."""

    images: Tensor
    labels: Tensor
    teacher: tuple[View, ...]
    seed: int
    by_class: bool
    semantic: Scale = Scale()
    relation: Scale = Scale()

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        parts = self.parts(candidate)
        return self.semantic(parts.semantic) + self.relation(parts.relation)

    def parts(self, candidate: Model) -> Similarities:
        return diswot_score(
            self.teacher,
            candidate.new().to(self.images.device),
            self.images,
            self.labels,
            inits=len(self.teacher),
            combine="sum",
            by_class=self.by_class,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class ZeroCost:
    """One of `COMPARISON` by name, of each candidate's fresh weights; higher is better."""

    proxy: str
    data: str = "data"
    batch: int = 64

    def __post_init__(self) -> None:
        named(COMPARISON, self.proxy, what="proxy", where="zero-cost score")
        if self.batch < 2:
            raise BadSetting(f"a zero-cost score needs batch >= 2 (got {self.batch})")

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, work: Work
    ) -> "PreparedZeroCost":  # Any: what each input's opener returns
        images, labels = labelled_batch(inputs, self.data, self.batch, work.rng, work.device)
        return PreparedZeroCost(proxy=self.proxy, images=images, labels=labels)


@dataclass(frozen=True, kw_only=True)
class PreparedZeroCost:
    """A proxy with its batch."""

    proxy: str
    images: Tensor
    labels: Tensor

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        network = candidate.new().to(self.images.device)
        return COMPARISON[self.proxy](network, self.images, self.labels)


def labelled_batch(
    inputs: Mapping[str, Any], port: str, size: int, rng: Generator, device: str
) -> tuple[Tensor, Tensor]:
    """A random batch of images in [0, 1] and their labels; raises BadData where columns lack."""
    data = named(inputs, port, what="input", where="score of a search")
    batch: Mapping[str, Tensor] = next(iter(data.batches(size, rng=rng)))
    for column in ("images", "labels"):
        if column not in batch:
            raise BadData(f"a score needs a column '{column}'; there are: {', '.join(batch)}")
    images = batch["images"].to(device)
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    return scaled, batch["labels"].to(device)


def _distinct(space: SearchSpace, count: int, rng: Generator) -> Iterable[Encoding]:
    """As many different architectures, or as many as the space gives."""
    drawn: list[Trial] = []
    while len(drawn) < count:
        encoding = RandomSearch().propose(space, drawn, rng)
        if encoding is None:
            return
        drawn.append(Trial(encoding=encoding, cost={}, score=0.0))
        yield encoding
