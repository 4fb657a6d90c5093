"""The objective protocol: phases (one optimizer update each within a step) and named loss terms.

Letters: `step` counts optimizer steps from 0, `steps` is the run's length.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe, BadSetting, ContractError
from stillhouse.metrics.scores import Score
from stillhouse.objectives.groups import Grouping, one_group
from stillhouse.objectives.inputs import pick
from stillhouse.objectives.term import BATCH, Term, check_name, outputs_of, owner_of

if TYPE_CHECKING:
    from stillhouse.work import Work

Tensors = Mapping[str, Tensor]  # a batch; a model's outputs; an objective's loss terms
Models = Mapping[str, nn.Module]  # by role: "teacher", "student", "generator", "client/3"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A torch optimizer class, its base learning rate and its other arguments."""

    build: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    lr: float
    kwargs: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  # Any: the optimizer's own arguments

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise BadSetting(f"lr must be > 0 (got {self.lr})")

    def new(self, groups: Iterable[Mapping[str, Any]]) -> torch.optim.Optimizer:
        return self.build(list(groups), lr=self.lr, **self.kwargs)


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate factor as a pure function of the step, so that a resumed run has the same
    one.
    """

    def factor(self, step: int, steps: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """1 after a linear warm-up over the first `warmup` fraction of the run."""

    warmup: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        return _warm(step, steps, self.warmup) if self.warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 to `final` after a linear warm-up over the first `warmup` fraction of
    the run.
    """

    warmup: float = 0.0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        start = self.warmup * steps
        if step < start:
            return _warm(step, steps, self.warmup)
        done = (step - start) / max(1.0, steps - start)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class Step:
    """`gamma` to the power of the milestones passed; `at` are epochs out of `of`, rescaled to the
    run's length.
    """

    at: tuple[float, ...]
    of: float
    gamma: float = 0.1
    warmup: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        passed = sum(step >= milestone / self.of * steps for milestone in self.at)
        return self.gamma**passed * _warm(step, steps, self.warmup)


def _warm(step: int, steps: int, warmup: float) -> float:
    length = warmup * steps
    return min(1.0, (step + 1) / length) if length > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer update within a step.

    Roles outside `trains` are frozen while the phase runs: eval mode, no gradient to their
    parameters.
    `lr_scale` multiplies the learning rate of a role; `clip_norm` bounds the gradient's 2-norm;
    `accumulate` splits each batch into that many micro-batches (same effective batch);
    the phase runs when step % every == 0; `ema` maps a role to the decay of its average, left as
    "<role>-ema". `grouping` says which parameters of a role decay and how fast each layer learns
    (stillhouse.objectives.groups).
    """

    trains: tuple[str, ...]
    optimizer: Optimizer
    schedule: Schedule = Constant()
    lr_scale: Mapping[str, float] = field(default_factory=dict[str, float])
    clip_norm: float | None = None
    accumulate: int = 1
    every: int = 1
    ema: Mapping[str, float] = field(default_factory=dict[str, float])
    grouping: Grouping = one_group

    def __post_init__(self) -> None:
        if not self.trains:
            raise BadSetting("phase: trains names no role")
        if self.accumulate < 1 or self.every < 1:
            raise BadSetting(
                f"phase: accumulate and every must be >= 1 (got {self.accumulate}, {self.every})"
            )
        for name in (*self.lr_scale, *self.ema):
            if name not in self.trains:
                raise BadSetting(
                    f"phase: '{name}' is not among the trained roles {', '.join(self.trains)}"
                )


@runtime_checkable
class Objective(Protocol):
    """Phases in running order, and the loss terms of each; a phase minimises the sum of its terms.

    Implementations are frozen dataclasses. Randomness comes only from `rng`, a CPU generator whose
    state depends on the stage's seed and the step.

    `terms` gives all terms at once, or yields partial losses (subnets of a supernet): each is
    back-propagated before the next is computed, so that one graph is in memory at a time; their
    gradients are summed before the one clip and the one optimizer step.
    """

    @property
    def phases(self) -> Mapping[str, Phase]: ...

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors | Iterator[Tensors]: ...


@runtime_checkable
class Refreshing(Protocol):
    """Re-selects its training data every `refresh_every` steps, from step 0 on; an objective."""

    @property
    def refresh_every(self) -> int: ...

    def refresh(self, models: Models, data: Data, *, step: int, work: "Work") -> Data: ...


@runtime_checkable
class Describing(Refreshing, Protocol):
    """Says in finite numbers what it has `chosen` of `data`, for the report; how many it chose is
    recorded in any case. It is called once a refresh, after `refresh`, and draws nothing.
    `quantities` declares these numbers.
    """

    def describe(self, chosen: Data, data: Data, *, step: int) -> Mapping[str, float]: ...
    def quantities(self) -> Sequence[Score]: ...


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A term times its weight; the weight grows linearly from 0 over the first `warmup` fraction of
    the run, of which `progress` is done.
    """

    term: Term
    weight: float = 1.0
    warmup: float = 0.0

    def at(self, progress: float) -> float:
        return self.weight * min(1.0, progress / self.warmup) if self.warmup > 0 else self.weight


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Runs each role once a phase and adds up weighted terms: one forward, one BatchNorm update,
    however many terms.

    What the terms read says which roles there are. A role in `feeds` reads outputs of other roles
    beside the batch: its forward gets each of its names, "<role>.<output>", and "seed" (int64, []),
    drawn from the step's generator, for any noise it needs; the columns of the batch are there
    without being named. A role that is not trained in the phase
    runs without a graph, unless it is fed by a trained one. Raises BadRecipe for a role that is
    trained or fed and read by no term, and for a feed that names none's output.
    """

    phases: Mapping[str, Phase]
    losses: Mapping[str, Weighted]
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __post_init__(self) -> None:
        for role, names in self.feeds.items():
            _check_feed(role, names)
        roles = self.roles
        used = {
            role: f"phase '{name}' trains" for name, p in self.phases.items() for role in p.trains
        }
        for role, does in {**dict.fromkeys(self.feeds, "feeds give to"), **used}.items():
            if role not in roles:
                raise BadRecipe(
                    f"{does} '{role}', which no term reads; they read {', '.join(roles)}"
                )

    @functools.cached_property  # read each step; no field, so neither equality nor a digest sees it
    def roles(self) -> tuple[str, ...]:
        """The roles that the terms read, and those that feed them, in running order: what is not
        trained first, then each behind what feeds it.
        """
        read = dict.fromkeys(map(owner_of, self._reads()))
        trained = {role for phase in self.phases.values() for role in phase.trains}
        found: list[str] = []
        for role in sorted(read, key=lambda role: role in trained):
            self._place(role, found, ())
        return tuple(found)

    def _place(self, role: str, found: list[str], ahead: tuple[str, ...]) -> None:
        if role in ahead:
            raise BadRecipe(f"feeds: '{role}' is fed by itself ({' <- '.join((*ahead, role))})")
        for name in self.feeds.get(role, ()):
            self._place(owner_of(name), found, (*ahead, role))
        if role not in found and role != BATCH:  # of a term
            found.append(role)

    def _reads(self) -> tuple[str, ...]:
        return tuple(name for loss in self.losses.values() for name in loss.term.names)

    def outputs_of(self, role: str) -> tuple[str, ...]:
        """What terms and fed roles read of a role: what a cache must hold, and a pretrained teacher
        must have; of "batch" the columns.
        """
        fed = (name for names in self.feeds.values() for name in names)
        return outputs_of(role, (*self._reads(), *fed))

    @functools.cached_property
    def _forwards(self) -> Mapping[str, tuple[tuple[str, tuple[str, ...], bool], ...]]:
        """By phase, in running order: a role, what feeds it, and whether it runs with a graph."""
        found: dict[str, tuple[tuple[str, tuple[str, ...], bool], ...]] = {}
        for name, phase in self.phases.items():
            live = dict[str, bool]()
            for role in self.roles:
                fed = (live.get(owner_of(each), False) for each in self.feeds.get(role, ()))
                live[role] = role in phase.trains or any(fed)
            found[name] = tuple((r, self.feeds.get(r, ()), graph) for r, graph in live.items())
        return found

    @property
    def sample_mean(self) -> bool:
        """Whether every term is a mean over samples, so that a batch may go in micro-batches."""
        return all(loss.term.sample_mean for loss in self.losses.values())

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        outputs: dict[str, Tensors] = {}
        for role, names, graph in self._forwards[phase]:
            given = _fed(outputs, names, batch, rng) if names else batch
            if graph:
                found = models[role](given)
            else:
                with torch.no_grad():
                    found = models[role](given)
            # dict first: checking whether something is a Mapping is a call of Python
            if not isinstance(found, (dict, Mapping)):
                raise _unnamed(role, found, self.outputs_of(role))
            outputs[role] = found
        progress, terms = step / steps, dict[str, Tensor]()
        for name, loss in self.losses.items():
            weight = loss.at(progress) if loss.warmup else loss.weight
            terms[name] = weight * loss.term(outputs, batch)
        return terms


@runtime_checkable
class Composing(Protocol):
    """An objective that makes the terms of a `Composed` itself, and runs their roles."""

    @property
    def composed(self) -> Composed: ...


def roles_read(objective: object) -> tuple[str, ...]:
    """The roles that the terms of an objective read, where it is composed of terms."""
    match objective:
        case Composed():
            return objective.roles
        case Composing():
            return objective.composed.roles
        case _:
            return ()


def _check_feed(role: str, names: object) -> None:
    where = f"feeds: '{role}'"
    if not isinstance(names, tuple | list):
        raise BadRecipe(f"{where}: give a tuple of names, as in ('student.hint2',) (got {names!r})")
    for name in names:  # pyright: ignore[reportUnknownVariableType]
        check_name(name, where=where)
        if owner_of(str(name)) == BATCH:  # pyright: ignore[reportUnknownArgumentType]
            raise BadRecipe(
                f"{where}: '{name}' need not be fed: a role gets every column of the batch by its "
                f"own name; read '{outputs_of(BATCH, (str(name),))[0]}' there"  # pyright: ignore[reportUnknownArgumentType]
            )


def _fed(
    outputs: Mapping[str, Tensors], names: tuple[str, ...], batch: Tensors, rng: Generator
) -> dict[str, Tensor]:
    fed = {name: pick(outputs, *name.split(".", maxsplit=1)) for name in names}
    return {**batch, **fed, "seed": torch.randint(2**62, (), generator=rng)}


def _unnamed(role: str, found: object, names: Sequence[str]) -> ContractError:
    name = names[0] if names else "logits"
    return ContractError(
        f"role '{role}': its forward returned a {type(found).__name__}; a role maps a batch of "
        f"named tensors to named tensors: wrap it in a module whose forward(batch) returns "
        f'{{"{name}": self.network(batch["image"])}}'
    )
