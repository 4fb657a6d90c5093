"""AutoDistil's training of a SuperLM: the sandwich rule over subnets that share its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting, ContractError
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse.training import mix
from stillhouse_language.architecture import Architecture
from stillhouse_language.encoder import PROJECTIONS, Encoder
from stillhouse_language.relations import Kind, relation_distance, relations
from stillhouse_language.spaces import SubSpace
from stillhouse_language.subnets import subnet


def sampled(space: SubSpace, *, draws: int, seed: int, step: int) -> tuple[Architecture, ...]:
    """The subnets of a step: the largest, the smallest, and `draws` others, drawn without
    replacement by a generator of (seed, step) alone, so that every process has the same.
    """
    architectures = space.architectures
    ends = [architectures[-1], *architectures[:1]][: len(architectures)]
    rest = architectures[1:-1]
    numbers = Random(mix(seed, step)).sample(range(len(rest)), min(draws, len(rest)))
    return (*ends, *(rest[number] for number in numbers))


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """Few-shot task-agnostic training of one SuperLM (Xu et al. 2022, arXiv 2201.12507, Algorithm 1
    with the sandwich rule that its text and the released code have): each step distils the largest,
    the smallest and `draws` random subnets of `space` from the teacher, whose relations are
    computed once a batch. Each subnet's loss is back-propagated by itself; gradients are summed,
    not averaged, before the clip.

    A subnet's loss is the sum of the three relation losses of queries, keys and values, times
    `weights`. The role "teacher" is frozen, "student" is the SuperLM: an `Encoder` of as many
    layers as `space.full` that is at least as wide as the largest subnet. `heads`, the relation
    heads, are the teacher's. Terms: "largest", "smallest", "random" (of all random ones together).
    """

    space: SubSpace
    phase: Phase
    heads: int
    kind: Kind = "mse_softmax"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    draws: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 0 or self.heads < 1:
            raise BadSetting(
                f"sandwich: draws >= 0 and heads >= 1 (got {self.draws} and {self.heads})"
            )
        if self.phase.trains != ("student",):
            raise BadSetting("sandwich: its phase trains 'student' alone")
        narrow = min(a.attention for a in self.space.architectures)
        if narrow < self.heads:
            raise BadSetting(
                f"sandwich: {narrow} channels of the narrowest subnet cannot be split over "
                f"{self.heads} relation heads; give its heads more"
            )

    @property
    def phases(self) -> Mapping[str, Phase]:
        return {"superlm": self.phase}

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Iterator[Tensors]:
        student = models["student"]
        if not isinstance(student, Encoder):
            raise ContractError(
                f"sandwich: the SuperLM must be an Encoder (got a {type(student).__name__})"
            )
        mask = batch["mask"]
        with torch.no_grad():
            targets = teacher_relations(models["teacher"], batch, heads=self.heads, kind=self.kind)
        names = ("largest", "smallest")
        drawn = sampled(self.space, draws=self.draws, seed=self.seed, step=step)
        for number, architecture in enumerate(drawn):
            found = subnet(student, architecture).projections(batch, in_place=True)
            name = names[number] if number < len(names) else "random"
            yield {name: self.loss(targets, found, mask)}

    def loss(self, targets: Tensors, found: Tensors, mask: Tensor) -> Tensor:
        """The weighted sum of the three relation losses of a subnet's projections."""
        return relation_sum(
            targets, found, mask, heads=self.heads, kind=self.kind, weights=self.weights
        )


def teacher_relations(
    teacher: nn.Module, batch: Tensors, *, heads: int, kind: Kind
) -> dict[str, Tensor]:
    """The teacher's relations of queries, keys and values, [B, H, S, S] each, which all subnets are
    held against. Of an `Encoder` only what they need is computed; of another role (a cache) its
    outputs are read.
    """
    found = teacher.projections(batch) if isinstance(teacher, Encoder) else teacher(batch)
    return {
        name: relations(found[name].float(), batch["mask"], heads=heads, kind=kind)
        for name in PROJECTIONS
    }


def relation_sum(
    targets: Tensors,
    found: Tensors,
    mask: Tensor,
    *,
    heads: int,
    kind: Kind,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """L = beta_1 L_Q + beta_2 L_K + beta_3 L_V of a network's projections and a teacher's
    relations: `relation_loss` of each.
    """
    parts = [
        weight
        * relation_distance(
            targets[name], relations(found[name], mask, heads=heads, kind=kind), mask, kind=kind
        )
        for name, weight in zip(PROJECTIONS, weights, strict=True)
        if weight
    ]
    if not parts:
        raise BadSetting("sandwich: one of the three weights must not be 0")
    return torch.stack(parts).sum()


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From 1 to 0 over the run, after a linear warm-up over its first `warmup` fraction."""

    warmup: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        start = self.warmup * steps
        if step < start:
            return min(1.0, (step + 1) / start)
        return max(0.0, (steps - step) / max(1.0, steps - start))
