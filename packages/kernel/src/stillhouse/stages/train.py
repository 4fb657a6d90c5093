"""Train: roles and data in, roles out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.assets import assets_of
from stillhouse.cache import Cache, CachedRole, stored
from stillhouse.data.data import Data, RowData, TensorData, is_stored
from stillhouse.data.loader import start_early
from stillhouse.data.sampling import Beside, Mix, NoData
from stillhouse.digest import digest, known_digest
from stillhouse.engine import fit
from stillhouse.errors import BadRecipe, OutOfMemory, UnknownName
from stillhouse.loading import copy_into
from stillhouse.objectives.objective import Objective, Refreshing, roles_read
from stillhouse.packing import check_reads
from stillhouse.profile import process_peak_mib
from stillhouse.recipe import MICRO_BATCHES, BaseStage, Context, Resource, Result
from stillhouse.refreshing import declared
from stillhouse.stages.ports import Roles, open_role, open_set
from stillhouse.subsets import Base, base_places
from stillhouse.training import Augment, PlainView, Precision, Setup

Sampling = Mix | Beside | NoData


@dataclass(frozen=True, kw_only=True)
class Train(BaseStage):
    """Trains the roles of an objective for `steps` optimizer steps of global batches of `batch`
    samples.

    The port "data" is the training data, every other port a role; or `data` says which ports are
    data and how batches are made of them (a Mix, a Beside), or that there are none (NoData: the
    objective draws what it trains on). `fresh` roles are built here,
    their weights drawn from torch's generator seeded with `seed`; roles in `reinit` come from a
    port but start from such fresh weights. Outputs: every role that a phase trains, and
    "<role>-ema" for each average. `cache` names the outputs of frozen roles that are computed once
    (see stillhouse.cache); `views` is how many augmented views a sample has. Frozen roles in
    `plain` read their batches as they were before augmentation.

    `micro_batch` is the smallest slice of a batch that may be trained at a time where memory does
    not suffice for the whole (`Context.micro_batches`): same effective batch, one update. None:
    never. Only for losses that are means over samples; BatchNorm sees micro-batches then.

    A role keeps the assets that it came with. `assets` names, for a role, the ports whose assets it
    gets as well: those of a model, or a file or folder (no role) under the port's name.

    `bases` maps a trained role to the port of the model that it is trained on: the role is saved
    without what that has already (stillhouse.subsets). A fresh role begins with the base's tensors;
    a port that is a base alone is no role.
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
    data: Sampling | None = None
    plain: tuple[str, ...] = ()
    assets: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    bases: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        where = f"stage '{self.name}'"
        for port in self.data_ports:
            if port not in self.inputs:
                raise BadRecipe(
                    f"{where}: no port '{port}'; training reads it (data=NoData() where the "
                    "objective needs no data)"
                )
        roles = {*self.fresh, *self.inputs} - {*self.data_ports}
        for role in self.outputs:
            if role.removesuffix("-ema") not in roles:
                raise UnknownName("role", role, roles, where=f"{where}: trains")
        bases = {port for role, port in self.bases.items() if port != role} - {*self.fresh}
        for role in roles_read(self.objective):
            if role not in roles - bases:
                raise UnknownName("role", role, roles - bases, where=f"{where}: a term reads")
        for what, names in (("cache", tuple(self.cache)), ("plain", self.plain)):
            for role in names:
                if role not in roles & {*self.inputs} or role in self.outputs:
                    raise BadRecipe(
                        f"{where}: {what} names '{role}', which is not a frozen role from a port"
                    )
        self._check_assets(where)
        self._check_sampling(where)
        for role, cache in self.cache.items():
            check_reads(role, cache, self.objective, where=where)
        self.setup()

    def _check_assets(self, where: str) -> None:
        """Raises UnknownName for a role or port of `assets` or `bases` that is none."""
        models = {*self.inputs} - {*self.data_ports}
        based = {role: (port,) for role, port in self.bases.items()}
        trained = {role for phase in self.objective.phases.values() for role in phase.trains}
        for what, named in (("assets", self.assets), ("bases", based)):
            for role, ports in named.items():
                if role not in trained:
                    raise UnknownName("trained role", role, trained, where=f"{where}: {what}")
                for port in ports:
                    if port not in models:
                        raise UnknownName("port", port, models, where=f"{where}: {what}")

    def _check_sampling(self, where: str) -> None:
        """Raises BadRecipe for what cannot be done with batches of several sets or of none."""
        if self.data is not None and isinstance(self.objective, Refreshing):
            raise BadRecipe(f"{where}: an objective that re-selects its data needs one set of them")
        if self.cache and isinstance(self.data, Beside | NoData):
            kind = type(self.data).__name__
            raise BadRecipe(f"{where}: a cache needs rows by id; batches of {kind} have none")

    @property
    def data_ports(self) -> tuple[str, ...]:
        """The ports that hold data; every other one holds a role."""
        return ("data",) if self.data is None else self.data.ports

    @property
    def distributed(self) -> bool:
        return True

    @property
    def resource(self) -> Resource:
        return "gpu"

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
            plain=bool(self.plain),
        )

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        data, ctx = self._opened(inputs, ctx)
        if is_stored(data):
            start_early()  # while the roles are loaded
        built = self._roles(inputs)
        models = Roles({role: b.module for role, b in built.items()}, stage=self.name)
        setup, selects = self.setup(), isinstance(self.objective, Refreshing)
        cached: dict[str, CachedRole] = {}
        for role, cache in self.cache.items():
            seen = replace(setup, augment=None, views=1) if role in self.plain else setup
            cached[role] = stored(
                role, built[role], data, setup=seen, cache=cache, ctx=ctx, selects=selects
            )
        models |= cached
        models |= {role: PlainView(models[role]) for role in self.plain}
        start = time.perf_counter()
        try:
            fitted = fit(self.objective, models, data, setup=setup, ctx=ctx)
        except torch.OutOfMemoryError as error:
            raise self._too_large(ctx) from error
        seconds = time.perf_counter() - start
        if ctx.rank:
            return Result(outputs={})
        records = {role: module.record for role, module in cached.items()}
        trained = {role: built[role.removesuffix("-ema")] for role in self.outputs}
        return Result(
            outputs={
                role: save_model(
                    ctx.out / role,
                    replace(b, module=models[role]),
                    base=self._base(role.removesuffix("-ema"), inputs),
                )
                for role, b in trained.items()
            },
            curves=fitted.curves,
            measured=self._measured(ctx, seconds, fitted.resumed_at or 0)
            | ({"refreshes": list(fitted.refreshes)} if fitted.refreshes else {})
            | ({"teacher_cache": records} if records else {})
            | ({"fast": fitted.fast} if fitted.fast else {}),
            resumed_at=fitted.resumed_at,
            declared=declared(self.objective),
        )

    def _opened(self, inputs: Mapping[str, Artifact], ctx: Context) -> tuple[Data, Context]:
        """What batches are made of, and a context with its digest as that of "data"."""
        if self.data is None:
            return open_set("data", inputs["data"], stage=self.name), ctx
        sets = dict[str, RowData]()
        for port in self.data_ports:
            one = open_set(port, inputs[port], stage=self.name)
            assert isinstance(one, RowData)
            sets[port] = one
        data: Data = TensorData({"id": torch.arange(self.batch)})  # what no data give: ids
        if not isinstance(self.data, NoData):
            data = self.data.open(sets)
        given = {port: ctx.digests.get(port, "") for port in self.data_ports}
        whole = digest({"sampling": self.data, "digests": given})
        return data, replace(ctx, digests={**ctx.digests, "data": whole})

    def _too_large(self, ctx: Context) -> OutOfMemory:
        found = f"stage '{self.name}': batch {self.batch} does not fit the memory of {ctx.device}"
        if ctx.micro_batches > 1:
            found += f" in {ctx.micro_batches} micro-batches"
        share, more = self.batch // ctx.nproc, 2 * ctx.micro_batches
        if self.micro_batch is None or share // more < self.micro_batch:
            why = (
                "its losses"
                if self.micro_batch is None
                else f"micro-batches under {self.micro_batch}"
            )
            reason = f"{found}, and {why} forbid smaller micro-batches; choose a smaller batch"
            return OutOfMemory(reason, again=False)
        return OutOfMemory(f"{found}; run again with {MICRO_BATCHES}={more}", again=True)

    def _measured(self, ctx: Context, seconds: float, before: int) -> dict[str, Any]:  # Any: JSON
        done = self.steps - before
        return {
            "steps": self.steps,
            "batch": self.batch,
            "micro_batches": ctx.micro_batches,
            "seconds_per_step": seconds / done,
            "samples_per_second": self.batch * done / seconds,
            "peak_memory_mib": process_peak_mib(ctx.device),
        }

    def _roles(self, inputs: Mapping[str, Artifact]) -> dict[str, Built]:
        none = {*self.data_ports, *(p for role, p in self.bases.items() if p != role)}
        given = {port for ports in self.assets.values() for port in ports}
        none |= {port for port in given if inputs[port].kind != "model"}
        roles = {
            port: open_role(port, artifact, stage=self.name)
            for port, artifact in inputs.items()
            if port not in none
        }
        specs = {role: roles[role].spec for role in self.reinit} | dict(self.fresh)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            # the student first: its first weights are the same whatever is built beside it
            for role, spec in specs.items():
                assets = roles[role].assets if role in roles else {}
                roles[role] = Built(spec=spec, module=spec.new(), assets=assets)
        for role in self.bases:
            self._on_base(role, roles, inputs)
        for role, ports in self.assets.items():
            for port in ports:
                roles[role] = self._with_assets(role, roles[role], port, inputs[port])
        return roles

    def _on_base(
        self, role: str, roles: Mapping[str, Built], inputs: Mapping[str, Artifact]
    ) -> None:
        """Give a fresh role its base's tensors. Raises BadRecipe for a base that does not fit: not
        only when the trained role is saved.
        """
        base = self._base(role, inputs)
        if base is None:
            return
        module = roles[role].module
        places = base_places(module, base)
        if role not in self.fresh:
            return
        try:
            copy_into(module, places)
        except RuntimeError as error:
            raise BadRecipe(
                f"stage '{self.name}': role '{role}' does not fit its base '{base.ref}': {error}"
            ) from error

    def _with_assets(self, role: str, built: Built, port: str, artifact: Artifact) -> Built:
        """A role with those of a port as well; raises BadRecipe for two of one name."""
        try:
            more = assets_of(port, artifact)
        except BadRecipe as error:
            raise BadRecipe(f"stage '{self.name}': assets of '{role}': {error}") from error
        for name, path in more.items():
            had = built.assets.get(name, path)
            if had != path and known_digest(had) != known_digest(path):
                raise BadRecipe(
                    f"stage '{self.name}': role '{role}' gets two assets '{name}' of different "
                    f"bytes, {had} and, from port '{port}', {path}; leave one out"
                )
        return replace(built, assets={**built.assets, **more})

    def _base(self, role: str, inputs: Mapping[str, Artifact]) -> Base | None:
        if role not in self.bases:
            return None
        port = self.bases[role]
        found = inputs[port]
        if found.kind != "model":
            raise BadRecipe(f"stage '{self.name}': port '{port}' is no model to train '{role}' on")
        return Base(folder=found.path, digest=found.digest, ref=self.inputs[port])


def before_training(
    stage: Train, inputs: Mapping[str, Artifact], ctx: Context
) -> tuple[Data, dict[str, Built]]:
    """What a training reads, opened anew: its data, and its roles as they are at its first step."""
    data, _ = stage._opened(inputs, ctx)  # pyright: ignore[reportPrivateUsage]
    return data, stage._roles(inputs)  # pyright: ignore[reportPrivateUsage]
