"""`fit`: trains the roles of an objective, in a plain loop.

One step is one global batch: every phase that is due makes one optimizer update. All that a step
needs beyond the weights is a pure function of (seed, epoch, step), so that a killed run resumes to
the same bits.
"""

import contextlib
import operator
import time
from collections.abc import Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse import parallel, refreshing, training
from stillhouse.checkpoint import Checkpoints, check_fingerprint
from stillhouse.data.data import Data, RowData, Rows
from stillhouse.errors import ContractError
from stillhouse.fingerprint import fingerprint
from stillhouse.frozen import Bits, check_frozen, frozen_bits
from stillhouse.objectives.objective import Objective, Refreshing, Tensors
from stillhouse.phase_state import Curves, PhaseState
from stillhouse.recipe import Context, Event
from stillhouse.resuming import Progress
from stillhouse.speeding import Speed, undo
from stillhouse.training import Position, Setup, Watcher
from stillhouse.work import Work

CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class _Job:
    objective: Objective
    models: MutableMapping[str, nn.Module]
    data: Data
    setup: Setup
    ctx: Context
    frozen: Bits  # of what no phase trains

    def fingerprint(self) -> dict[str, Any]:  # Any: JSON values
        return fingerprint(self.objective, self.frozen, self.data, setup=self.setup, ctx=self.ctx)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Record of a training: the means of the loss terms since the last row of the
    curves and that row, a row a logged step, what each refresh chose, where it went on, and how
    roles ran in precision "fast".
    """

    last: Mapping[str, float]
    curves: Sequence[Mapping[str, float]]
    refreshes: Sequence[refreshing.Refresh]
    resumed_at: int | None
    fast: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values


def fit(
    objective: Objective,
    models: MutableMapping[str, nn.Module],
    data: Data,
    *,
    setup: Setup,
    ctx: Context,
) -> Fitted:
    """Train `models` in place for `setup.steps` optimizer steps.

    Adds "<role>-ema" to `models` for each averaged role. Resumes from a checkpoint in
    `ctx.checkpoints` that was made under the same conditions: device, threads, processes,
    micro-batches, torch. Leaves every module on the CPU in eval mode.
    Raises BadSetting, UnknownName or BadData for what cannot be trained, BadSetting for a
    checkpoint of another objective, data, frozen role or setup; ContractError when the
    weights or buffers of
    a role that no phase trains changed, when an objective puts a frozen role in train mode, or a
    loss is not finite.
    """
    training.check(objective, models, data, setup, ctx)
    before = frozen_bits(objective, models)
    job = _Job(objective=objective, models=models, data=data, setup=setup, ctx=ctx, frozen=before)
    with torch.random.fork_rng(), _loop(job) as loop:
        loop.run()
        check_frozen(before, models, stage=ctx.stage)  # on the device, before they leave it
        if loop.speed:
            loop.speed.check()
    return Fitted(
        last=loop.curves.last,
        curves=tuple(loop.curves.rows),
        refreshes=tuple(loop.refreshes),
        resumed_at=loop.resumed_at,
        fast=loop.speed.record if loop.speed else {},
    )


class _Loop:
    """For each global batch, every phase that is due."""

    watcher: Watcher | None = None

    def __init__(self, job: _Job) -> None:
        setup, ctx = job.setup, job.ctx
        self.job = job
        self.phases = [
            PhaseState(name, phase, job.models, precision=setup.precision, device=ctx.device)
            for name, phase in job.objective.phases.items()
        ]
        self.terms = self.phases[0].cast(job.objective.terms)
        self.roles = dict(job.models)  # as they run
        self.speed: Speed | None = None
        if setup.precision == "fast":
            self.speed = Speed(objective=job.objective, phases=self.phases, ctx=ctx)
        self.position = Position()
        self.chosen: Data = job.data
        self.rng = torch.Generator()
        self.refreshes: list[refreshing.Refresh] = []
        self.resumed_at: int | None = None
        self.curves = Curves([state.name for state in self.phases], ctx.nproc)
        self.learners = list({p: None for state in self.phases for p in state.parameters})
        self.share = self._share()
        self.every = max(1, setup.steps // CURVE_POINTS)
        self.saved = time.monotonic()

    @property
    def models(self) -> Mapping[str, nn.Module]:
        return self.job.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {state.name: state.optimizer for state in self.phases}

    @property
    def step(self) -> int:
        return self.position.step

    @property
    def steps(self) -> int:
        return self.job.setup.steps

    def run(self) -> None:
        job, position = self.job, self.position
        # a role no phase trains gets no gradient at all
        for module in job.models.values():
            module.requires_grad_(False)
        self.phases[0].enter(self.learners)
        batches = training.batches_from(position, self.chosen, job.setup, job.ctx)
        # checked once: whether something is of a runtime protocol takes nine calls
        watcher, selects = self.watcher, isinstance(job.objective, Refreshing)
        waiting = self.speed is not None
        try:
            while position.step < job.setup.steps:
                if selects and refreshing.due(job.objective, position):
                    self._refresh()
                    batches.close()
                    batches = training.batches_from(position, self.chosen, job.setup, job.ctx)
                batch = next(batches)
                if waiting and self.speed:
                    waiting = False
                    self._begin(self.speed, batch)
                if watcher:
                    watcher.before(position.step, batch)
                self._step(batch)
                if watcher:
                    watcher.after(position.step, batch, self.curves.newest)
                position.step += 1
                self._watch(position.step)
        finally:
            batches.close()  # ends the workers

    def _begin(self, speed: Speed, batch: Tensors) -> None:
        """Run roles in fast forms from here on."""
        speed.begin(self.job.models, batch, steps=self.steps - self.step)
        self.roles |= speed.forms

    def _step(self, batch: Tensors) -> None:
        step, ctx = self.position.step, self.job.ctx
        rng = self.rng.manual_seed(training.mix(self.job.setup.seed, training.STEP, step, ctx.rank))
        for state in self.phases:
            if step % state.phase.every:
                continue
            if len(self.phases) > 1:
                state.enter(self.learners)
            self._gradients(state, batch, step, rng)
            if ctx.nproc > 1:
                parallel.average_gradients(state.parameters, share=self.share)
                parallel.share_buffers(state.trainable)
            state.update(step, self.job.setup.steps)
            for role, average in state.averages.items():
                average.update_parameters(self.job.models[role])

    def _gradients(
        self, state: PhaseState, batch: Tensors, step: int, rng: torch.Generator
    ) -> None:
        job = self.job
        parts = state.phase.accumulate * job.ctx.micro_batches
        pieces = training.micro_batches(batch, parts) if parts > 1 else ((batch, 1.0),)
        for part, share in pieces:
            found = self.terms(
                state.name, self.roles, part, step=step, steps=job.setup.steps, rng=rng
            )
            if isinstance(found, (dict, Mapping)):  # dict first: no call of Python
                if not found:
                    raise self._no_term(state)
                terms, loss = found, reduce(operator.add, found.values())
                state.backward(loss if share == 1 else loss * share)
            else:
                terms, loss = self._partial_gradients(state, found, share)
            self.curves.add(state.name, terms, loss, share * self.share)
        for role, module in state.frozen.items():
            if module.training:
                raise ContractError(
                    f"stage '{job.ctx.stage}': phase '{state.name}' put frozen role '{role}' "
                    "in train mode"
                )

    def _partial_gradients(
        self, state: PhaseState, partials: Iterator[Tensors], share: float
    ) -> tuple[Tensors, Tensor]:
        """Sum the gradients of partial losses, each computed when the graph of the one before is
        gone; terms of the same name are summed.
        """
        summed: dict[str, Tensor] = {}
        while True:
            with state.autocast:
                terms = next(partials, None)
            if terms is None:
                break
            if not terms:
                raise self._no_term(state)
            loss = reduce(operator.add, terms.values())
            state.backward(loss if share == 1 else loss * share)
            for name, value in terms.items():
                summed[name] = summed[name] + value.detach() if name in summed else value.detach()
        if not summed:
            stage = self.job.ctx.stage
            raise ContractError(f"stage '{stage}': phase '{state.name}' gave no partial loss")
        return summed, reduce(operator.add, summed.values())

    def _no_term(self, state: PhaseState) -> ContractError:
        return ContractError(
            f"stage '{self.job.ctx.stage}': phase '{state.name}' gave no loss term; an objective's "
            "terms() returns at least one, by name"
        )

    def _refresh(self) -> None:
        job, position = self.job, self.position
        step, stage = position.step, job.ctx.stage
        work = Work.of(job.ctx, job.setup.seed, training.REFRESH, step)
        rows = refreshing.choose(job.objective, job.models, job.data, step=step, work=work)
        position.restart(
            parallel.agree(rows.index), training.pass_length(self.chosen, job.setup.batch)
        )
        self._choose(position.index)
        entry = refreshing.record(job.objective, self.chosen, job.data, step=step, stage=stage)
        self.refreshes.append(entry)
        self.phases[0].enter(self.learners)

    def _choose(self, index: Tensor | None) -> None:
        if index is not None:
            assert isinstance(self.job.data, RowData)
            self.chosen = Rows(self.job.data, index)
            self.share = self._share()

    def _share(self) -> float:
        """This process's part of each batch's rows."""
        rows = min(self.job.setup.batch, len(self.chosen))
        training.check_rows(rows, self.job.ctx)
        return parallel.share(rows, rank=self.job.ctx.rank, nproc=self.job.ctx.nproc)

    def _watch(self, step: int) -> None:
        """Curves, progress and checkpoints, when they are due."""
        ctx, steps = self.job.ctx, self.job.setup.steps
        if step % self.every == 0 or step == steps:
            self.curves.row(step, ctx.stage)
            self._report("", self.curves.last)
        if step < steps and self._due(step):
            self.save()
            self.saved = time.monotonic()
            self._report("checkpoint", {})

    def _report(self, text: str, scores: Mapping[str, float]) -> None:
        ctx, steps = self.job.ctx, self.job.setup.steps
        if ctx.rank == 0:
            done = self.position.step
            ctx.observe(Event(stage=ctx.stage, text=text, done=done, total=steps, scores=scores))

    def _due(self, step: int) -> bool:
        ctx = self.job.ctx
        if ctx.checkpoint_steps is not None and step % ctx.checkpoint_steps == 0:
            return True
        late = time.monotonic() - self.saved >= ctx.checkpoint_seconds
        if ctx.nproc == 1:
            return late
        # saving is collective: the ranks agree on rank 0's clock, now and then
        return step % self.every == 0 and bool(parallel.agree(late))

    def save(self) -> None:
        """Write a checkpoint; every rank takes part, rank 0 writes."""
        job = self.job
        tensors, record = self._progress().state(job.ctx)
        if job.ctx.rank == 0:
            record["fingerprint"] = job.fingerprint()
            if self.speed:
                record["fast"] = self.speed.record
            Checkpoints(ctx=job.ctx).save(self.position.step, tensors, record)

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one that leads to the same bits."""
        job, ctx = self.job, self.job.ctx
        found = Checkpoints(ctx=ctx).last()
        if found is None:
            return
        tensors, record = found
        made: Mapping[str, Any] = record.get("fingerprint", {})  # Any: JSON values
        check_fingerprint(ctx.stage, ctx.checkpoints, made, job.fingerprint())
        self._progress().restore(tensors, record, ctx)
        if self.speed:
            self.speed.record = record["fast"]
        self._choose(self.position.index)
        done = self.position.step
        self.resumed_at = done
        text = f"resumed at step {done}"
        ctx.observe(Event(stage=ctx.stage, text=text, done=done, total=job.setup.steps))

    def _progress(self) -> Progress:
        return Progress(
            phases=self.phases,
            models=self.job.models,
            position=self.position,
            curves=self.curves,
            refreshes=self.refreshes,
        )


@contextlib.contextmanager
def _loop(job: _Job) -> Generator[_Loop]:
    """The loop, resumed from a checkpoint; every module is left on the CPU in eval mode."""
    ctx = job.ctx
    parallel.join(ctx.device)
    rows = min(job.setup.batch, len(job.data))
    sharded = training.sharded(job.objective, job.models, rows, ctx)
    whole = [module for role, module in job.models.items() if role not in sharded]
    trainable = [p for module in whole for p in module.parameters() if p.requires_grad]
    for role, module in job.models.items():
        if role in sharded:
            parallel.shard(module, ctx.device)
        else:
            module.to(ctx.device)
    try:
        loop = _Loop(job)
        torch.manual_seed(training.mix(job.setup.seed, training.GLOBAL, ctx.rank))
        loop.resume()
        with ctx.watch(loop) if ctx.watch else contextlib.nullcontext() as loop.watcher:
            yield loop
        for state in loop.phases:
            job.models.update(
                {f"{role}-ema": average.module for role, average in state.averages.items()}
            )
    finally:
        for role, module in job.models.items():
            if job.setup.precision == "fast" and role not in sharded:
                undo(module)
            if role not in sharded:
                module.to("cpu").eval()
        for parameter in trainable:  # as it came; integers have no gradient
            parameter.requires_grad_(True)
