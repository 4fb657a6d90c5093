"""Train: roles and data in, roles out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.cache import Cache, stored
from stillhouse.errors import BadRecipe, OutOfMemory, UnknownName
from stillhouse.objectives.objective import Objective, Refreshing
from stillhouse.profile import process_peak_mib
from stillhouse.recipe import SLICES, Context
from stillhouse.training import Augment, Precision, Setup


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains the roles of an objective for `steps` optimizer steps of global batches of `batch`
    samples.

    The port "data" is the training data, every other port a role. `fresh` roles are built here,
    their weights drawn from torch's generator seeded with `seed`; roles in `reinit` come from a
    port but start from such fresh weights. Outputs: every role that a phase trains, and
    "<role>-ema" for each average. `cache` names the outputs of frozen roles that are computed once
    (see stillhouse.cache); `views` is how many augmented views a sample has.

    `micro_batch` is the smallest slice of a batch that may be trained at a time where memory does
    not suffice for the whole (`Context.slices`): same effective batch, one update. None: never.
    Only for losses that are means over samples; BatchNorm sees slices then.
    """

    name: str
    objective: Objective
    inputs: Mapping[str, str]
    steps: int
    batch: int
    fresh: Mapping[str, Model] = field(default_factory=dict[str, Model])
    seed: int = 0
    augment: Augment | None = None
    views: int = 4
    cache: Mapping[str, Cache] = field(default_factory=dict[str, Cache])
    precision: Precision = "fp32"
    reinit: tuple[str, ...] = ()
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        where = f"stage '{self.name}'"
        if "data" not in self.inputs:
            raise BadRecipe(f"{where}: no port 'data'; training needs one")
        roles = {*self.fresh, *self.inputs} - {"data"}
        for role in self.outputs:
            if role.removesuffix("-ema") not in roles:
                raise UnknownName("role", role, roles, where=f"{where}: trains")
        for role in self.cache:
            if role not in self.inputs or role in self.outputs:
                raise BadRecipe(
                    f"{where}: cache names '{role}', which is not a frozen role from a port"
                )
        self.setup()

    @property
    def distributed(self) -> bool:
        return True

    @property
    def outputs(self) -> tuple[str, ...]:
        phases = self.objective.phases.values()
        trained = [role for phase in phases for role in phase.trains]
        averaged = [f"{role}-ema" for phase in phases for role in phase.ema]
        return tuple(dict.fromkeys([*trained, *averaged]))

    def setup(self) -> Setup:
        return Setup(
            steps=self.steps,
            batch=self.batch,
            seed=self.seed,
            augment=self.augment,
            views=self.views,
            precision=self.precision,
        )

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        from stillhouse.engine import (
            fit,
        )  # mmengine takes seconds to import; recipes are built without it

        data = inputs["data"].open()
        built = self._roles(inputs)
        models: dict[str, nn.Module] = {role: b.module for role, b in built.items()}
        setup, selects = self.setup(), isinstance(self.objective, Refreshing)
        for role, cache in self.cache.items():
            models[role] = stored(
                role, built[role], data, setup=setup, cache=cache, ctx=ctx, selects=selects
            )
        start = time.perf_counter()
        try:
            fit(self.objective, models, data, setup=setup, ctx=ctx)
        except torch.OutOfMemoryError as error:
            raise self._too_large(ctx) from error
        if ctx.rank:
            return {}
        self._measure(ctx, time.perf_counter() - start)
        specs = {role: built[role.removesuffix("-ema")].spec for role in self.outputs}
        return {
            role: save_model(ctx.out / role, Built(spec=s, module=models[role]))
            for role, s in specs.items()
        }

    def _too_large(self, ctx: Context) -> OutOfMemory:
        found = f"stage '{self.name}': batch {self.batch} does not fit the memory of {ctx.device}"
        if ctx.slices > 1:
            found += f" in {ctx.slices} slices"
        share, more = self.batch // ctx.nproc, 2 * ctx.slices
        if self.micro_batch is None or share // more < self.micro_batch:
            why = "its losses" if self.micro_batch is None else f"slices under {self.micro_batch}"
            reason = f"{found}, and {why} forbid smaller slices; choose a smaller batch"
            return OutOfMemory(reason, again=False)
        return OutOfMemory(f"{found}; run again with {SLICES}={more}", again=True)

    def _measure(self, ctx: Context, seconds: float) -> None:
        done = self.steps - int(ctx.measured.get("resumed_at", 0))
        ctx.measured.update(
            steps=self.steps,
            batch=self.batch,
            slices=ctx.slices,
            seconds_per_step=seconds / done,
            samples_per_second=self.batch * done / seconds,
            peak_memory_mib=process_peak_mib(ctx.device),
        )

    def _roles(self, inputs: Mapping[str, Artifact]) -> dict[str, Built]:
        roles: dict[str, Built] = {r: a.open() for r, a in inputs.items() if r != "data"}
        specs = {role: roles[role].spec for role in self.reinit} | dict(self.fresh)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            # the student first: its first weights are the same whatever is built beside it
            for role, spec in specs.items():
                roles[role] = Built(spec=spec, module=spec.new())
        return roles
