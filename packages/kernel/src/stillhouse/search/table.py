"""All scores of a list of architectures, in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Model
from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.search.proxies import (
    COMPARISON,
    METHODS,
    Similarities,
    combined,
    distillation_score,
    diswot_score,
    seen,
    views,
)
from stillhouse.search.ranking import ranked_last
from stillhouse.search.scores import labelled_batch
from stillhouse.search.space import SearchSpace
from stillhouse.training import mix
from stillhouse.work import Work

DISWOT = ("diswot", "semantic", "relation")


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A `make`: a row an architecture of the port "trials" (a search's), with the search's own
    score under the name `target` and a column a proxy.

    "diswot" is the z-score combination over these rows of "semantic" and "relation", its parts.
    `proxies` are names of `COMPARISON`; `methods` of the losses at initialisation
    (`distillation_score`), each in a column "<method>_init". Every candidate, and for the methods
    the teacher too, has fresh weights of the default initialisation, the same for all its proxies.
    A proxy that gives -inf, a dead network, is stored as the lowest finite value of the column
    minus 1: the last rank. Ports: "trials", "data" (images, labels), "teacher". Leaves "table".
    """

    space: SearchSpace
    target: str = "accuracy"
    proxies: tuple[str, ...] = tuple(COMPARISON)
    methods: tuple[str, ...] = ()
    batch: int = 64
    inits: int = 4

    def __post_init__(self) -> None:
        for name in self.proxies:
            named(COMPARISON, name, what="proxy", where="table of scores")
        for name in self.methods:
            named(METHODS, name, what="method", where="table of scores")
        if self.batch < 2 or self.inits < 1:
            raise BadSetting(
                "a table of scores needs batch >= 2 and inits >= 1 "
                f"(got {self.batch} and {self.inits})"
            )

    @property
    def lines(self) -> tuple[str, ...]:
        """The columns that hold proxies."""
        return (*DISWOT, *self.proxies, *(f"{name}_init" for name in self.methods))

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Columns]:  # Any: what each input's opener returns
        trials: RowData = named(inputs, "trials", what="input", where="table of scores")
        encodings, target = trials.columns["encoding"], trials.columns["score"]
        assert isinstance(encodings, list)
        assert isinstance(target, Tensor)
        met = _Seen.of(self, inputs, work.rng)
        candidates = [self.space.model(json.loads(text)) for text in encodings]
        scores = [met.diswot(candidate) for candidate in candidates]
        found: dict[str, Sequence[float]] = {
            "diswot": combined(scores),
            "semantic": [score.semantic for score in scores],
            "relation": [score.relation for score in scores],
        }
        rows = [met.others(candidate, row) for row, candidate in enumerate(candidates)]
        found |= {name: [row[name] for row in rows] for name in rows[0]}
        columns = {
            name: ranked_last(torch.tensor(v, dtype=torch.float64)) for name, v in found.items()
        }
        return {"table": {"encoding": encodings, self.target: target, **columns}}


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The batch and the teacher that all candidates meet."""

    table: ScoreTable
    images: Tensor
    labels: Tensor
    seed: int
    teacher: nn.Module
    views: Any  # Any: tuple[View, ...], whose tensors' shapes differ from teacher to teacher

    @classmethod
    def of(cls, table: ScoreTable, inputs: Mapping[str, Any], rng: Generator) -> "_Seen":
        images, labels = labelled_batch(inputs, "data", table.batch, rng, "cpu")
        seed = int(torch.randint(2**62, (), generator=rng))
        built = named(inputs, "teacher", what="input", where="table of scores")
        return cls(
            table=table,
            images=images,
            labels=labels,
            seed=seed,
            teacher=_fresh(built.spec, mix(seed, 0)),
            views=views(built.module, images, labels, inits=table.inits, seed=seed),
        )

    def diswot(self, candidate: Model) -> Similarities:
        return diswot_score(
            self.views,
            candidate.new(),
            self.images,
            self.labels,
            inits=self.table.inits,
            combine="zscore",
            seed=self.seed,
        )

    def others(self, candidate: Model, row: int) -> dict[str, float]:
        student = _fresh(candidate, mix(self.seed, row + 1))
        found = {n: COMPARISON[n](student, self.images, self.labels) for n in self.table.proxies}
        if self.table.methods:
            once = seen(student, self.images, self.labels)  # one forward serves them all
            for name in self.table.methods:
                found[f"{name}_init"] = distillation_score(
                    self.teacher, once, self.images, self.labels, method=name
                )
        return found


def _fresh(spec: Model, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec.new()
