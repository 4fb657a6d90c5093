"""Recipes: a frozen list of stages with the paper they come from, and what a stage is given when it
runs.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from stillhouse.artifact import Artifact
from stillhouse.bounds import check_bound
from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.metrics.scores import Declaration, Declared, check_once
from stillhouse.references import Ref, reference

Scale = Literal["tiny", "small", "paper"]
Kind = Literal["teacher", "baseline", "student", "compressed"]
Resource = Literal["cpu", "gpu"]
SCALES: tuple[Scale, ...] = ("tiny", "small", "paper")
OUTSIDE = ("data:", "file:", "builtin:", "hub:", "package:")
# the environment variable that says in how many micro-batches each training batch goes
MICRO_BATCHES = "STILLHOUSE_MICRO_BATCHES"
OLDER_MICRO_BATCHES = "STILLHOUSE_SLICES"  # as it was called; still read
# the one that names the roles whose weights are shared out among the processes
SHARD = "STILLHOUSE_SHARD"
# how many processes read the batches of data that are decoded row by row
WORKERS = "STILLHOUSE_WORKERS"
# and the one that says how often a training stage writes a checkpoint
CHECKPOINT_SECONDS = "STILLHOUSE_CHECKPOINT_SECONDS"
# where the clients of a federation run, unless the command line says it
ENGINE = "STILLHOUSE_FEDERATED_ENGINE"
# the folder of an evaluation's drawings that show numbers only
PLOTS = "plots"
NOTE = "note: "  # what an event's text begins with that a person should see, and can read later
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a running stage reports to observers: a note, or `done` of `total` with the last
    scores.
    """

    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    scores: Mapping[str, float] = field(default_factory=dict[str, float])


Observer = Callable[[Event], None]


def silent(event: Event) -> None:
    """The observer that shows nothing."""


def no_code(value: object) -> str:  # noqa: ARG001
    """Where no run keeps account of code."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and on what a stage runs. Nothing here is part of the stage's key."""

    stage: str
    out: Path  # the folder being written, moved into place on success
    checkpoints: Path  # this input key's checkpoints, outside the outputs
    caches: Path  # teacher caches
    device: str = "cpu"
    rank: int = 0
    nproc: int = 1
    micro_batches: int = 1  # in so many a batch is trained where it does not fit the memory
    shard: tuple[str, ...] = ()  # frozen roles of which each process holds a part
    engine: str = "local"  # of the federations among the stages
    recipe: str = ""  # "domain/recipe", with `settings` what another host builds the stage from
    settings: Path | None = None  # settings.json of the variant; None outside a run
    # digest of the code that a value can reach, part of teacher-cache keys
    code: Callable[[object], str] = no_code
    digests: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # port -> digest of the input
    observe: Observer = silent
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    # who watches each step of a training, such as mmengine's hooks (stillhouse.hooks)
    watch: Callable[[Any], Any] | None = None  # Any: stillhouse.training.Watch


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage returns: its `outputs` by port, and what is recorded beside them, since it may
    differ from machine to machine: `scores` (<stage>.scores.json), `curves`, a row a logged step
    (<stage>.curves.tsv), and `measured`, JSON values (<stage>.run.json).
    """

    outputs: Mapping[str, Artifact]
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    curves: Sequence[Mapping[str, float]] = ()
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    resumed_at: int | None = None  # the step, round or candidate behind which it went on
    declared: Declared = field(default_factory=Declared)  # what scores and refreshes are


@runtime_checkable
class Stage(Protocol):
    """The unit of caching, retry, resumption and report. Implementations are frozen dataclasses,
    as a rule of `BaseStage`.
    """

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def inputs(self) -> Mapping[str, str]:
        """Port -> "stage.port", "data:<path>", "file:<path>", "builtin:<module:function>",
        "hub:<id>" or "package:<name>==<version>/<member>#sha256=<digest>".
        """
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the ports this stage leaves."""
        ...

    @property
    def distributed(self) -> bool:
        """Whether torchrun's processes share the work; otherwise rank 0 does it alone."""
        ...

    @property
    def resource(self) -> Resource:
        """What it is worth waiting for: flows give GPU stages a slot on a GPU."""
        ...

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result: ...


@runtime_checkable
class Scoring(Protocol):
    """A stage that gives scores, such as an Evaluate; `declarations` are who declares each."""

    def declarations(self) -> Sequence[Declaration]: ...


class BaseStage:
    """What most stages have in common: one process, no GPU, references by port."""

    @property
    def distributed(self) -> bool:
        return False

    @property
    def resource(self) -> Resource:
        return "cpu"

    def __getitem__(self: Stage, port: str) -> Ref:
        """The reference to an output, for another stage's inputs; raises UnknownName."""
        return reference(self, port)


def resource_of(parts: Iterable[object]) -> Resource:
    """ "gpu" where one of the parts (a make, a metric) declares `resource = "gpu"`."""
    return "gpu" if any(getattr(part, "resource", "cpu") == "gpu" for part in parts) else "cpu"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the report: names of its Evaluate stages, one a seed, and what its models are.

    The other rows are compared with that of kind "baseline"; "compressed" is a student made
    smaller, in few bits for instance.
    """

    stages: tuple[str, ...]
    kind: Kind = "student"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A score that the rows' primary score is held against: the mean of `score` over `stages`.

    `score` is the primary score's name, `row` that of a study's table that holds it, if one does;
    where another score is the primary one there is no bound. `counts` names scores of the same
    stages that are printed beside it (how many objects the test data have). `enough` is for a
    ceiling: with a worse one the scores say nothing.
    """

    name: str  # as it stands in a sentence: "the filled box", "a perfect detector"
    stages: tuple[str, ...]
    score: str
    row: str = ""
    counts: tuple[str, ...] = ()
    enough: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method as a list of stages in running order.

    `rows` are the report's, by title, one of them of kind "baseline"; `method` names the row that
    is the system itself: the headline is about it.
    `control` is what needs no model (rows below it make no headline), `ceiling` what a perfect
    model scores on the test data. `notes` are printed in every report (what is official, what is a
    reconstruction); `caution` follows the headline wherever that stands: why it may mislead.
    `studies` maps a heading of the report to Evaluate stages, one a seed, that are about the method
    and not about one model; a table's scores have a row and a name.
    Raises BadRecipe or UnknownName when stages, ports, rows or bounds do not fit together.
    """

    name: str
    reference: str
    stages: Sequence[Stage]
    rows: Mapping[str, Row] = field(default_factory=dict[str, Row])
    notes: tuple[str, ...] = ()
    studies: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    method: str = ""
    control: Bound | None = None
    ceiling: Bound | None = None
    caution: str = ""

    def __post_init__(self) -> None:
        ports: set[str] = set()
        seen: set[str] = set()
        for stage in self.stages:
            _check_stage(stage, seen, ports)
            seen.add(stage.name)
            ports |= {f"{stage.name}.{port}" for port in stage.outputs}
        self._check_names(seen)
        self._check_scores()

    @property
    def baseline(self) -> str:
        """The title of the row that the others are compared with; "" without rows."""
        return next((title for title, row in self.rows.items() if row.kind == "baseline"), "")

    def _check_names(self, stages: set[str]) -> None:
        """Raises UnknownName for a row, study or bound that names what the recipe has not."""
        bounds = {"control": self.control, "ceiling": self.ceiling}
        listed = [(f"row '{title}'", row.stages) for title, row in self.rows.items()]
        listed += [(f"study '{title}'", names) for title, names in self.studies.items()]
        listed += [(what, bound.stages) for what, bound in bounds.items() if bound is not None]
        for where, names in listed:
            for name in names:
                if name not in stages:
                    raise UnknownName("stage", name, stages, where=where)
        for what, bound in bounds.items():
            if bound is not None:
                check_bound(bound, map(self.stage, bound.stages), where=what)
        where = f"recipe '{self.name}'"
        baselines = [title for title, row in self.rows.items() if row.kind == "baseline"]
        if self.rows and len(baselines) != 1:
            found = " and ".join(f"'{title}'" for title in baselines) or "none is"
            raise BadRecipe(f'{where}: one row must be of kind "baseline" (found: {found})')
        if self.method and self.method not in self.rows:
            raise UnknownName("method's row", self.method, self.rows, where=where)

    def _check_scores(self) -> None:
        """Raises BadRecipe where a score of the rows, or of a study, is declared in two ways."""
        rows = [name for row in self.rows.values() for name in row.stages]
        listed = [
            ("the rows", rows),
            *((f"study '{t}'", names) for t, names in self.studies.items()),
        ]
        stages = {stage.name: stage for stage in self.stages}
        for where, names in listed:
            check_once(
                (
                    (f"{owner} of stage '{name}'", score)
                    for name in dict.fromkeys(names)
                    if isinstance(stage := stages[name], Scoring)
                    for owner, score in stage.declarations()
                ),
                where=f"recipe '{self.name}': {where}",
            )

    def stage(self, name: str) -> Stage:
        """The stage of that name; raises UnknownName with the nearest."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownName("stage", name, [s.name for s in self.stages], where=self.name)

    def upstream(self, stage: Stage) -> tuple[str, ...]:
        """Names of the stages `stage` reads, in order, each once."""
        refs = (ref for ref in stage.inputs.values() if not ref.startswith(OUTSIDE))
        return tuple(dict.fromkeys(ref.partition(".")[0] for ref in refs))


def _check_stage(stage: Stage, seen: set[str], ports: set[str]) -> None:
    if not STAGE_NAME.fullmatch(stage.name):
        raise BadRecipe(f"stage '{stage.name}': a name has only letters, digits, '-' and '_'")
    if stage.name in seen:
        raise BadRecipe(f"stage '{stage.name}': two stages have this name")
    for port, ref in stage.inputs.items():
        if ref.startswith(OUTSIDE):
            continue
        if "/" in ref or "\\" in ref or ref.startswith(("~", ".")):
            raise BadRecipe(
                f"stage '{stage.name}': port '{port}': '{ref}' begins with none of "
                f"{', '.join(OUTSIDE)}; for a file or folder say file:{ref}"
            )
        if ref not in ports:
            where = f"stage '{stage.name}': port '{port}'"
            raise UnknownName("output", ref, ports, where=where)
