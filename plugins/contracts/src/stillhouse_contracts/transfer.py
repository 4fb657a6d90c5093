"""A student moved to a type of vulnerability that it was not trained on, from few labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.checkpoint import State
from stillhouse.data.data import Data, TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.many import trainings
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.groups import Only
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_contracts.lessons import logits_in_parts, train_inside
from stillhouse_contracts.metrics import declared_scores, type_scores
from stillhouse_contracts.training import drawn, supervised

WAYS = ("frozen", "whole", "scratch")
TAUGHT = ("hidden.*", "head.*")  # what a frozen transfer trains
SHOWN = ("f1", "precision", "recall", "auc", "average_precision")


@dataclass(frozen=True, kw_only=True)
class Transfer(Metric):
    """`role` with a new head, trained on `shots` labelled functions, half of which have the new
    type, and scored on the data: means over `seeds` draws of the functions, a row "<shots> labels,
    <way>".

    "frozen" trains the last two layers, behind the fusion blocks; "whole" all of it; "scratch" the
    same network from fresh weights, as a control. Reads the column "novel" of the data and of the
    port `train`. Labels for which `train` has too few functions of either kind are left out, and
    named. Raises BadData where no row can be made.
    """

    model: Model  # the student's, with one type
    role: str = "student"
    train: str = "train"
    shots: tuple[int, ...] = (8, 32, 128)
    seeds: int = 5
    lr: float = 1e-2
    steps: int = 100

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 2 or self.seeds < 1:
            raise BadSetting(
                f"transfer: shots must be >= 2, seeds >= 1 (got {self.shots}, {self.seeds})"
            )

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        tokens, novel, groups = _columns(work.data[self.train])
        test_tokens, test_novel, _ = _columns(data)
        possible = [shots for shots in self.shots if _enough(novel, groups, shots)]
        if not possible or not 0 < int(test_novel.sum()) < len(test_novel):
            raise BadData(
                "transfer: too few functions with and without the new type; choose another "
                "(--set novel=...), fewer labels (--set shots=...), or none (--set novel=)"
            )
        names = [
            f"{way}-{shots}-{seed}"
            for shots in possible
            for way in WAYS
            for seed in range(self.seeds)
        ]

        def train(name: str, work: Work) -> State:
            way, shots, seed = name.split("-")
            index = _drawn(novel, groups, int(shots), int(seed))
            rows = TensorData({"tokens": tokens[index], "novel": novel[index]})
            network = self.moved(models[self.role], way, work)
            objective = supervised(
                "student",
                self.lr,
                grouping=Only(patterns=TAUGHT if way == "frozen" else ("*",)),
                column="novel",
            )
            given = {"student": network}
            train_inside(
                objective, given, rows, steps=self.steps, batch=min(32, int(shots)), work=work
            )
            logits = logits_in_parts(network.eval(), test_tokens)
            return {}, dict(type_scores(logits, test_novel, ("novel",))["novel"])

        found: dict[str, list[Mapping[str, float]]] = {}
        for name, (_, record) in trainings(names, train, of=self, work=work):
            way, shots, _ = name.split("-")
            found.setdefault(f"{shots} labels, {way}", []).append(record)
        return {
            (row, score): float(np.mean([record[score] for record in records]))
            for row, records in found.items()
            for score in SHOWN
        }

    def scores(self) -> Sequence[Score]:
        return declared_scores(SHOWN)

    def uncounted(self, models: Models, data: Data, *, work: Work) -> Mapping[str, Sequence[str]]:
        _, novel, groups = _columns(work.data[self.train])
        left = [f"{n} labels: too few" for n in self.shots if not _enough(novel, groups, n)]
        return {"f1": left} if left else {}

    def moved(self, student: nn.Module, way: str, work: Work) -> nn.Module:
        """The network with fresh weights; but for "scratch" all of the student's, save the head."""
        network = drawn(self.model, work.seed)
        if way != "scratch":
            kept = {k: v for k, v in student.state_dict().items() if not k.startswith("head.")}
            network.load_state_dict({k: v.cpu() for k, v in kept.items()}, strict=False)
        return network


def _columns(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    batches = list(data.batches(1024, rng=None))
    names = ("tokens", "novel", "group")
    tokens, novel, groups = (torch.cat([batch[name] for batch in batches]) for name in names)
    return tokens, novel, groups


def _first(groups: Tensor) -> Tensor:
    """The first row of each group, in order: a text counts once."""
    seen = dict[int, int]()
    for row, group in enumerate(groups.tolist()):
        seen.setdefault(group, row)
    return torch.tensor(list(seen.values()))


def _enough(novel: Tensor, groups: Tensor, shots: int) -> bool:
    truth = novel[_first(groups), 0] > 0
    half = shots // 2
    return int(truth.sum()) >= half and int((~truth).sum()) >= shots - half


def _drawn(novel: Tensor, groups: Tensor, shots: int, seed: int) -> Tensor:
    """Rows of `shots` distinct texts, half with the type."""
    rng = torch.Generator().manual_seed(seed)
    rows = _first(groups)
    rows = rows[torch.randperm(len(rows), generator=rng)]
    truth, half = novel[rows, 0] > 0, shots // 2
    return torch.cat([rows[truth][:half], rows[~truth][: shots - half]])
