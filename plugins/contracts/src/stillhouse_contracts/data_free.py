"""What a student is trained on where it is given no contract, and one mode in which it is.

B: batch. L: tokens. E: width of a token's vector. C: types.

- `Noise`: normal numbers in place of token vectors, the paper's words as they stand.
- `Generated`: soft texts of a generator that learns from the teacher alone (DAFL, CMI): put in
  here, since noise by itself does not look like a text.
- `Perturbed`: vectors of real contracts, distorted. NOT data-free, and called so in every report.

In all of them the student learns from the teacher's answers: `student_terms`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import not_negative
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse_contracts.generator import SoftTokens, one_hot
from stillhouse_contracts.models import TokenVectors
from stillhouse_contracts.objectives import (
    BatchStatistics,
    adversarial_loss,
    balance_loss,
    one_hot_loss,
    student_terms,
)
from stillhouse_contracts.training import one_update

STUDENT, GENERATOR = "student", "generator"


def balanced(logits: Tensor, count: int) -> Tensor:
    """Places of `count` of N rows of a teacher's logits [N, C], balanced by its predictions: in
    turns the row of which it is most confident for the first type, for the second, ..., and of
    which it is most confident that it is of none; no row twice. int64 [count]. Raises BadSetting
    for fewer rows than `count`.
    """
    if len(logits) < count:
        raise BadSetting(f"balanced: {count} of {len(logits)} rows")
    scores = torch.cat([logits, -logits.amax(1, keepdim=True)], 1)
    orders = scores.argsort(dim=0, descending=True, stable=True).T.tolist()
    taken: dict[int, None] = {}
    readers = [iter(order) for order in orders]
    while len(taken) < count:
        for reader in readers:
            free = next((row for row in reader if row not in taken), None)
            if free is not None and len(taken) < count:
                taken[free] = None
    return torch.tensor(list(taken), dtype=torch.int64, device=logits.device)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The student on noise in the space of token vectors, [B, L, E], with the teacher's answers.

    `spread` "unit": N(0, 1); "matched": mean and deviation of each of the E numbers over the
    embedding table, which is public. `oversample` times the batch is drawn, and the batch chosen
    from it by `balanced`.
    """

    lr: float
    length: int
    spread: Literal["unit", "matched"] = "unit"
    alpha: float = 0.7
    temperature: float = 4.0
    oversample: int = 4

    def __post_init__(self) -> None:
        if self.oversample < 1 or self.length < 1:
            raise BadSetting(
                f"noise: oversample and length must be >= 1 (got {self.oversample}, {self.length})"
            )

    @property
    def phases(self) -> Mapping[str, Phase]:
        return {STUDENT: one_update(STUDENT, self.lr)}

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        teacher, table = models["teacher"], table_of(models["teacher"])
        count = len(batch["id"])
        drawn = torch.randn(self.oversample * count, self.length, table.shape[1], generator=rng).to(
            table.device
        )
        if self.spread == "matched":
            real = table[1:]  # without padding's zeros
            drawn = real.mean(0) + real.std(0) * drawn
        with torch.no_grad():
            answers = teacher({"vectors": drawn})["logits"]
        chosen = balanced(answers, count)
        student = models[STUDENT]({"vectors": drawn[chosen]})["logits"]
        return student_terms(
            student, answers[chosen], alpha=self.alpha, temperature=self.temperature
        )


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """The student on token vectors of real contracts plus `sigma` times normal noise, in units of
    the table's deviation, with the teacher's answers to the same. Reads batch["tokens"] [B, L]: not
    data-free.
    """

    lr: float
    sigma: float = 0.5
    alpha: float = 0.7
    temperature: float = 4.0

    def __post_init__(self) -> None:
        not_negative("sigma", self.sigma)

    @property
    def phases(self) -> Mapping[str, Phase]:
        return {STUDENT: one_update(STUDENT, self.lr)}

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        teacher, table = models["teacher"], table_of(models["teacher"])
        tokens = batch["tokens"]
        noise = torch.randn(*tokens.shape, table.shape[1], generator=rng).to(table.device)
        vectors = table[tokens] + self.sigma * table[1:].std() * noise
        given = {"vectors": vectors, "tokens": tokens}
        with torch.no_grad():
            answers = teacher(given)["logits"]
        return student_terms(
            models[STUDENT](given)["logits"],
            answers,
            alpha=self.alpha,
            temperature=self.temperature,
        )


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Two phases a step. "student": the teacher's answers to a batch of fresh texts, and to as many
    again from the pool of those of earlier steps (replay), which is kept in the generator's
    buffers. "generator": one-hot + `statistics` x BatchNorm statistics + `balance` x balance +
    `adversarial` x minus the distillation loss, through frozen teacher and student.

    Terms after DAFL, CMI and DeepInversion; their weights are inferred, as is the generator.
    """

    lr: float
    generator_lr: float
    one_hot: float = 1.0
    statistics: float = 0.1
    balance: float = 5.0
    adversarial: float = 0.5
    alpha: float = 0.7
    temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ("one_hot", "statistics", "balance", "adversarial"):
            not_negative(name, getattr(self, name))

    @property
    def phases(self) -> Mapping[str, Phase]:
        # the student first: the first output of a training is what is scored
        return {
            STUDENT: one_update(STUDENT, self.lr),
            GENERATOR: one_update(GENERATOR, self.generator_lr),
        }

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        generator = models[GENERATOR]
        assert isinstance(generator, SoftTokens)
        drawn = generator.noise_for(len(batch["id"]), rng)
        given = {name: value.to(generator.places.device) for name, value in drawn.items()}
        if phase == GENERATOR:
            return self._generator_terms(generator, given, models)
        with torch.no_grad():
            fresh = generator(given)["mixture"]
            texts = torch.cat([fresh, one_hot(generator.draw(len(fresh), rng))])
            answers = models["teacher"]({"mixture": texts})["logits"]
        student = models[STUDENT]({"mixture": texts})["logits"]
        return student_terms(student, answers, alpha=self.alpha, temperature=self.temperature)

    def _generator_terms(self, generator: SoftTokens, given: Tensors, models: Models) -> Tensors:
        texts = generator(given)["mixture"]
        with BatchStatistics(network=models["teacher"]) as statistics:
            answers = models["teacher"]({"mixture": texts})["logits"]
        student = models[STUDENT]({"mixture": texts})["logits"]
        generator.keep(texts)
        return {
            "one_hot": self.one_hot * one_hot_loss(answers),
            "statistics": self.statistics * statistics.loss,
            "balance": self.balance * balance_loss(answers),
            "adversarial": self.adversarial * adversarial_loss(student, answers),
        }


def table_of(network: torch.nn.Module) -> Tensor:
    """The table [V, E] of a network's `TokenVectors`. Raises BadSetting where it has none."""
    for part in network.modules():
        if isinstance(part, TokenVectors):
            return part.table
    raise BadSetting(f"{type(network).__name__} has no token vectors; give a model of this domain")
