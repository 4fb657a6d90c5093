"""AutoDistil's task-agnostic search: subnets scored by their relation loss on held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Built, Model
from stillhouse.data.data import RowData
from stillhouse.errors import BadData, BadSetting, ContractError
from stillhouse.objectives.inputs import named
from stillhouse.search.space import SearchSpace
from stillhouse.work import Work
from stillhouse_language.architecture import Architecture
from stillhouse_language.encoder import Encoder, Tensors
from stillhouse_language.relations import Kind
from stillhouse_language.sandwich import relation_sum, teacher_relations
from stillhouse_language.subnets import subnet

Weights = tuple[float, float, float]


def superlm_port(space: str) -> str:
    """The port that holds the SuperLM of a sub-space."""
    return f"superlm-{space}"


@dataclass(frozen=True, kw_only=True)
class RelationScore:
    """Minus the relation loss (Xu et al. 2022, arXiv 2201.12507, sec. 3.4) of a candidate of
    `Spaces`, run in its SuperLM in eval mode, on the first `rows` rows of the port "data"; higher
    is better. Losses of different sub-spaces compare: the relations have one shape.

    The ports are "data" (held-out text), "teacher", and "superlm-<sub-space>" of each sub-space.
    The teacher's relations of all rows are computed once for all candidates.
    """

    rows: int
    heads: int
    batch: int = 32
    kind: Kind = "mse_softmax"
    weights: Weights = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.batch < 1:
            raise BadSetting(
                f"relation score: rows and batch must be >= 1 (got {self.rows} and {self.batch})"
            )

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, work: Work
    ) -> "PreparedRelations":  # Any: what each input's opener returns
        data = named(inputs, "data", what="input", where="relation score")
        teacher: Built = named(inputs, "teacher", what="input", where="relation score")
        superlms = {
            port: encoder_of(built, port).to(work.device)
            for port, built in inputs.items()
            if port.startswith(superlm_port(""))
        }
        return self.prepared(teacher.module.to(work.device), superlms, data, work=work)

    def prepared(
        self, teacher: Any, superlms: Mapping[str, Encoder], data: Any, *, work: Work
    ) -> "PreparedRelations":  # Any: a module; data
        """The score with the teacher's relations known; raises BadData for too little text."""
        if not isinstance(data, RowData) or len(data) < self.rows:
            raise BadData(
                f"relation score: {self.rows} held-out rows are wanted, and there are {len(data)}"
            )
        batches = list[Tensors]()
        targets = list[Tensors]()
        with torch.no_grad():
            for index in torch.arange(self.rows).split(self.batch):
                batch = {name: v.to(work.device) for name, v in data.rows(index).items()}
                batches.append({"tokens": batch["tokens"], "mask": batch["mask"]})
                targets.append(
                    teacher_relations(teacher.eval(), batch, heads=self.heads, kind=self.kind)
                )
        return PreparedRelations(
            score=self, superlms=superlms, batches=tuple(batches), targets=tuple(targets)
        )


@dataclass(frozen=True, kw_only=True)
class PreparedRelations:
    """A `RelationScore` where it runs."""

    score: RelationScore
    superlms: Mapping[str, Encoder]
    batches: Sequence[Tensors]
    targets: Sequence[Tensors]

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        port = superlm_port(candidate.kwargs["space"])
        model = named(self.superlms, port, what="input", where="relation score")
        return -self.loss(model, Architecture.of(candidate.kwargs["architecture"]))

    def loss(self, model: Encoder, architecture: Architecture) -> float:
        """The relation loss of a subnet of `model`, mean over the rows."""
        cut, total, rows = subnet(model, architecture).eval(), 0.0, 0
        score = self.score
        with torch.no_grad():
            for batch, targets in zip(self.batches, self.targets, strict=True):
                found: dict[str, Tensor] = cut.projections(batch)
                loss = relation_sum(
                    targets,
                    found,
                    batch["mask"],
                    heads=score.heads,
                    kind=score.kind,
                    weights=score.weights,
                )
                total += float(loss) * len(batch["mask"])
                rows += len(batch["mask"])
        return total / rows


def encoder_of(built: Built, where: str) -> Encoder:
    """The Encoder of a port; raises ContractError for another network."""
    if not isinstance(built.module, Encoder):
        raise ContractError(f"{where}: an Encoder is needed (got {type(built.module).__name__})")
    return built.module
