"""Evaluate: roles and data in, scores and figures out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from stillhouse.artifact import Artifact
from stillhouse.data.data import Data, TensorData
from stillhouse.digest import path_digest
from stillhouse.errors import BadData, BadRecipe
from stillhouse.json_files import read_json
from stillhouse.metrics.declarations import declarations
from stillhouse.metrics.metric import Metric, check_metric, uncounted
from stillhouse.metrics.scores import Declaration, Declared, Score, by_name, check_once
from stillhouse.objectives.objective import Models
from stillhouse.recipe import PLOTS, BaseStage, Context, Resource, Result, resource_of
from stillhouse.stages.ports import Roles, open_role, open_set
from stillhouse.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

OPEN_SCORES = "stillhouse.stages.evaluate:load_scores"
DECLARED = "declared.json"  # beside scores.json: what each of them is


@runtime_checkable
class Figure(Protocol):
    """A figure of roles on data, saved as <name>.png; a frozen dataclass."""

    @property
    def name(self) -> str: ...
    def __call__(self, models: Models, data: Data, *, work: Work) -> "Drawing": ...


@dataclass(frozen=True, kw_only=True)
class Evaluate(BaseStage):
    """Scores from `metrics` (reproducible: part of the artifact) and from `measures` (timings:
    beside it), and drawings: `figures` show samples of the data, `plots` numbers only, so that a
    published report may hold them whatever the data's licence.

    The port "data" is the data, every other port a role; or `data` names the ports that hold data,
    none where a metric needs none. Metrics and figures are called with the first of them (empty
    data, where there is none), and find all by port in `work.data`.
    """

    name: str
    metrics: tuple[Metric, ...]
    inputs: Mapping[str, str]
    measures: tuple[Metric, ...] = ()
    figures: tuple[Figure, ...] = ()
    plots: tuple[Figure, ...] = ()
    seed: int = 0
    data: tuple[str, ...] = ("data",)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise BadRecipe(f"stage '{self.name}': an evaluation needs at least one metric")
        for port in self.data:
            if port not in self.inputs:
                raise BadRecipe(
                    f"stage '{self.name}': no port '{port}'; the evaluation reads it (data=() "
                    "where the metrics need no data)"
                )
        for metric in (*self.metrics, *self.measures):
            check_metric(metric, where=f"stage '{self.name}'")
        check_once(self.declarations(), where=f"stage '{self.name}'")

    def declarations(self) -> Sequence[Declaration]:
        """Each score that it may give, with who declares it."""
        every = (*self.metrics, *self.measures)
        return [each for metric in every for each in declarations(metric)]

    @property
    def data_ports(self) -> tuple[str, ...]:
        """The ports that hold data; every other one holds a role."""
        return self.data

    @property
    def resource(self) -> Resource:
        return resource_of((*self.metrics, *self.measures, *self.figures, *self.plots))

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("scores",)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        sets = {port: open_set(port, inputs[port], stage=self.name) for port in self.data}
        data = next(iter(sets.values()), TensorData({}))
        built = {
            role: open_role(role, artifact, stage=self.name)
            for role, artifact in inputs.items()
            if role not in self.data
        }
        placed = {r: b.module.requires_grad_(False).to(ctx.device) for r, b in built.items()}
        models = Roles(placed, stage=self.name)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            assets = {role: each.assets for role, each in built.items()}
            work = replace(Work.of(ctx, self.seed), data=sets, assets=assets)
            kept = _all(self.metrics, models, data, work)
            out = ctx.out / "scores"
            out.mkdir()
            (out / "scores.json").write_text(json.dumps(kept.values, indent=1) + "\n")
            known = json.dumps(kept.declared.record(), indent=1)
            (out / DECLARED).write_text(known + "\n")
            _draw(self.figures, models, data, out, work)
            _draw(self.plots, models, data, out / PLOTS, work)
            beside = _all(self.measures, models, data, work)
            left = uncounted((*self.metrics, *self.measures), models, data, work=work)
        written = Artifact(kind="scores", path=out, digest=path_digest(out), opener=OPEN_SCORES)
        return Result(
            outputs={"scores": written},
            scores=kept.values | beside.values,
            measured={"uncounted": left} if left else {},
            declared=Declared(
                scores=tuple(by_name(kept.scores + beside.scores).values()),
                cells=kept.cells | beside.cells,
            ),
        )


def _draw(
    figures: tuple[Figure, ...], models: Models, data: Data, folder: Path, work: Work
) -> None:
    for figure in figures:
        folder.mkdir(exist_ok=True)
        # no version or date inside: the same figure is the same bytes
        figure(models, data, work=work.again()).savefig(
            folder / f"{figure.name}.png", dpi=110, metadata={"Software": None}
        )


@dataclass(kw_only=True)
class _Given:
    """What metrics gave: values as they are stored, what they are, and which are a table's."""

    values: dict[str, float] = field(default_factory=dict[str, float])
    scores: list[Score] = field(default_factory=list[Score])
    cells: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    @property
    def declared(self) -> Declared:
        return Declared(scores=tuple(by_name(self.scores).values()), cells=self.cells)


def _all(metrics: tuple[Metric, ...], models: Models, data: Data, work: Work) -> _Given:
    given, where = _Given(), work.ctx.stage
    for metric in metrics:
        declared, kind = by_name(metric.scores()), type(metric).__name__
        for key, value in metric(models, data, work=work.again()).items():
            row, name = ("", key) if isinstance(key, str) else key
            stored = f"{row}/{name}" if row else name
            if not math.isfinite(value):
                raise BadData(f"stage '{where}': {kind} gave {stored} = {value}")
            if stored in given.values:
                raise BadRecipe(f"stage '{where}': two metrics give '{stored}'; rename one")
            if name not in declared:
                raise _undeclared(where, kind, name)
            given.values[stored] = float(value)
            given.scores.append(declared[name])
            if row:
                given.cells[stored] = row, name
    return given


def _undeclared(where: str, kind: str, name: str) -> BadRecipe:
    return BadRecipe(
        f"stage '{where}': {kind} gave '{name}', which it does not declare; add "
        f'Score(name="{name}", better="higher"), or "lower", to its scores()'
    )


class StoredScores(dict[str, Any]):  # Any: numbers
    """Scores by their stored names, and what they are: nothing is known of older ones."""

    declared: Declared = Declared()


def load_scores(path: Path) -> StoredScores:
    """The scores of a folder with `scores.json`."""
    redo = "run the stage that made it again"
    found = StoredScores(read_json(path / "scores.json", dict[str, Any], redo=redo))
    if (path / DECLARED).is_file():
        found.declared = read_json(path / DECLARED, Declared, redo=redo)
    return found
