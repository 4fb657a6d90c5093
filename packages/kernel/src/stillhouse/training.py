"""What decides the bits of a training run: its setup, its seeds, its position in the data."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stillhouse.data.data import OFFSETS, Data, Plan, PlannedData, is_stored, plans_of, rows_of
from stillhouse.data.loader import batches_of
from stillhouse.data.sampling import REPEAT, DataBeside, MixedData
from stillhouse.digest import text_digest
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.objectives.objective import Objective, Tensors, roles_read
from stillhouse.recipe import Context, silent

PLAIN = "plain."  # begins the name of a column as it was before augmentation
# "fast": fp32, bf16 on CUDA, and forms of the roles that compute the same faster (see fast.py)
Precision = Literal["fp32", "bf16", "fp16", "fast"]


class Training(Protocol):
    """A training as those see it who watch."""

    @property
    def models(self) -> Mapping[str, nn.Module]: ...
    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By phase."""
        ...

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...


class Watcher(Protocol):
    """Gets each step of a training, and changes nothing."""

    def before(self, step: int, batch: Tensors) -> None:
        """Before the step's first phase."""
        ...

    def after(self, step: int, batch: Tensors, outputs: Tensors) -> None:
        """After the step's last optimizer update; `outputs` are its loss terms."""
        ...


Watch = Callable[[Training], AbstractContextManager[Watcher]]


@runtime_checkable
class Augment(Protocol):
    """A pure function of batch["id"], batch["view"] and its own fields; a frozen dataclass."""

    def __call__(self, batch: Tensors) -> Tensors: ...


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Length, global batch, seed, augmentation and precision of a run.

    `steps` counts optimizer steps; a sample is seen as view (epoch mod `views`). With `plain` a
    batch also holds, as "plain.<column>", what the augmentation replaced.
    """

    steps: int
    batch: int
    seed: int = 0
    augment: Augment | None = None
    views: int = 4
    precision: Precision = "fp32"
    plain: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "views"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} must be >= 1 (got {getattr(self, name)})")


def mix(*numbers: int) -> int:
    """A seed of 63 bits from several numbers (splitmix64's finaliser, chained)."""
    state = 0
    for number in numbers:
        state = ((state ^ number) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def named_seed(seed: int, name: str) -> int:
    """The seed of what is called `name` under `seed`: the same whatever else there is."""
    return mix(seed, int(text_digest(name)[:15], 16))


# what a seed is for; the same number never serves two purposes
ORDER, STEP, REFRESH, GLOBAL = range(1, 5)


class PlainView(nn.Module):
    """A frozen role that reads its batches as they were before augmentation, as view 0."""

    def __init__(self, role: nn.Module) -> None:
        super().__init__()
        self.role = role

    def forward(self, batch: Tensors) -> Tensors:
        plain = {k.removeprefix(PLAIN): v for k, v in batch.items() if k.startswith(PLAIN)}
        outputs: Tensors = self.role({**batch, **plain, "view": torch.zeros_like(batch["id"])})
        return outputs


@dataclass
class Position:
    """Where in the data a run is: all that a resumed run needs to draw the same batches."""

    step: int = 0
    origin: int = 0  # the step of the last refresh, where the pass over the data began anew
    epochs_before: int = 0  # passes finished before `origin`
    index: Tensor | None = None  # rows a refresh chose

    def restart(self, index: Tensor, length: int) -> None:
        """Begin a pass over newly chosen rows; `length` is the batches a pass had so far."""
        self.epochs_before += (self.step - self.origin) // length
        self.origin, self.index = self.step, index


def pass_length(data: Data, batch: int) -> int:
    """Batches a pass: the incomplete last one is left out, unless it is the only one."""
    return max(1, len(data) // batch)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Reads the batches of a training, in this process or a worker: augmented, on the CPU."""

    data: Data
    augment: Augment | None
    plain: bool
    views: int

    @cached_property
    def _read(self) -> Callable[[Plan], Tensors] | None:
        return self.data.read if isinstance(self.data, PlannedData) else None

    @cached_property
    def _several(self) -> bool:
        return isinstance(self.data, MixedData | DataBeside)

    def __call__(self, request: tuple[Plan, int]) -> Tensors:
        """That of a plan, or of a batch that is read already, at a view."""
        plan, view = request
        batch = self._read(plan) if self._read else plan
        views = (view + batch[REPEAT]) % self.views if self._several else view
        batch = {**batch, "view": torch.zeros_like(batch["id"]) + views}
        if self.augment is None:
            return batch
        augmented = self.augment(batch)
        return {**augmented, **_replaced(batch, augmented)} if self.plain else augmented


def batches_from(
    position: Position, data: Data, setup: Setup, ctx: Context
) -> Generator[Tensors, None, None]:
    """Endless prepared batches from the position on: pass after pass in the order of (seed, origin,
    epoch).
    """
    read = Prepared(data=data, augment=setup.augment, plain=setup.plain, views=setup.views)
    cuda = ctx.device.startswith("cuda")
    requests = _requests(position, data, setup, ctx)
    batches = batches_of(read, requests, stored=is_stored(data), pinned=cuda)
    for batch in batches:
        if ctx.device != "cpu":
            batch = {name: v.to(ctx.device, non_blocking=True) for name, v in batch.items()}
        yield batch


def _requests(
    position: Position, data: Data, setup: Setup, ctx: Context
) -> Iterator[tuple[Plan, int]]:
    """This process's part of each plan, with the view; whole batches of data that plan nothing."""
    length = pass_length(data, setup.batch)
    epoch, skip = divmod(position.step - position.origin, length)
    while True:
        rng = torch.Generator().manual_seed(mix(setup.seed, ORDER, position.origin, epoch))
        view = (position.epochs_before + epoch) % setup.views
        for plan in islice(plans_of(data, setup.batch, rng=rng), skip, length):
            if ctx.nproc == 1:
                yield plan, view
            elif isinstance(data, PlannedData):
                yield data.share(plan, rank=ctx.rank, nproc=ctx.nproc), view
            else:
                yield rows_of(plan, torch.arange(ctx.rank, len(plan["id"]), ctx.nproc)), view
        epoch, skip = epoch + 1, 0


def _replaced(given: Tensors, batch: Tensors) -> Tensors:
    """What an augmentation replaced, as it was, by its plain name; ragged columns whole."""
    names = {name for name, value in given.items() if batch.get(name) is not value}
    return {
        f"{PLAIN}{name}": value
        for name, value in given.items()
        if {name, name.removesuffix(OFFSETS), name + OFFSETS} & names
    }


def check(
    objective: Objective, models: Mapping[str, nn.Module], data: Data, setup: Setup, ctx: Context
) -> None:
    """Refuse what cannot be trained: no data, a phase of an unknown role, a batch or precision that
    does not fit.
    """
    where = f"stage '{ctx.stage}'"
    if len(data) == 0:
        raise BadData(f"{where}: the training data hold no sample")
    for name, phase in objective.phases.items():
        for role in phase.trains:
            if role not in models:
                raise UnknownName("role", role, models, where=f"{where}: phase '{name}'")
    for role in roles_read(objective):
        if role not in models:
            raise UnknownName("role", role, models, where=f"{where}: a term reads")
    if setup.batch % ctx.nproc:
        raise BadSetting(
            f"{where}: batch {setup.batch} cannot be split over {ctx.nproc} processes; "
            "choose a multiple"
        )
    if setup.precision in ("bf16", "fp16") and not ctx.device.startswith("cuda"):
        raise BadSetting(
            f"{where}: precision {setup.precision} needs --device cuda (got {ctx.device}); use fp32"
        )


def sharded(
    objective: Objective, models: Mapping[str, nn.Module], rows: int, ctx: Context
) -> list[str]:
    """The frozen roles that are shared out among the processes; those without parameters are not.
    `rows` are those of a batch. Raises BadSetting where there is one process, or where one would
    have more micro-batches than another: each of them is a forward of all.
    """
    trained = {role for phase in objective.phases.values() for role in phase.trains}
    roles = [
        role
        for role in ctx.shard
        if role in models and role not in trained and any(True for _ in models[role].parameters())
    ]
    where = f"stage '{ctx.stage}': role '{', '.join(roles)}' cannot be sharded"
    if roles and ctx.nproc == 1:
        raise BadSetting(f"{where} in one process; use --nproc 2 or more")
    for phase in objective.phases.values() if roles else ():
        parts = phase.accumulate * ctx.micro_batches
        shares = {len(range(rank, rows, ctx.nproc)) for rank in range(ctx.nproc)}
        if len({len(torch.arange(share).chunk(parts)) for share in shares}) > 1:
            raise BadSetting(
                f"{where}: {rows} rows in {parts} micro-batches are more of them in one process "
                f"than in another; choose a batch that {ctx.nproc * parts} divides"
            )
    return roles


def check_rows(rows: int, ctx: Context) -> None:
    """Raises BadData where a process would have no row of a batch of `rows`."""
    if rows < ctx.nproc:
        raise BadData(
            f"stage '{ctx.stage}': {rows} samples cannot be split over {ctx.nproc} processes; use "
            f"--nproc {rows} or fewer"
        )


def micro_batches(batch: Tensors, parts: int) -> Iterator[tuple[Tensors, float]]:
    """The batch in `parts` micro-batches of rows, each with its share of the rows."""
    if parts == 1:
        yield batch, 1.0
        return
    count = len(batch["id"])
    for index in torch.arange(count).chunk(parts):
        yield rows_of(batch, index), len(index) / count


def finite(means: Mapping[str, float]) -> str | None:
    """The name of the first value that is not finite."""
    return next((name for name, value in means.items() if not math.isfinite(value)), None)


def rng_states() -> dict[str, Tensor]:
    """This process's global random states, which dropout and its like draw from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: Mapping[str, Tensor]) -> None:
    """Put back what `rng_states` took."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def alone(ctx: Context) -> Context:
    """A context for one of the many trainings inside a stage: one process, no checkpoint of its own
    (the stage resumes between trainings), nobody watching.
    """
    return replace(
        ctx,
        checkpoints=ctx.checkpoints / "none",
        rank=0,
        nproc=1,
        shard=(),
        observe=silent,
        checkpoint_seconds=float("inf"),
        checkpoint_steps=None,
        watch=None,
    )
