"""`fit`: trains the roles of an objective on mmengine's Runner. The only file that imports
mmengine.

One step is one global batch: every phase that is due makes one optimizer update. All that a step
needs beyond the weights is a pure function of (seed, epoch, step), so that a killed run resumes to
the same bits. mmengine gives the run its life cycle (Runner, loop, hooks, mixed-precision
wrappers); its checkpoints, schedulers and samplers are not used, because they do not resume
exactly.
"""

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import DefaultScope
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from stillhouse import parallel, refreshing, training
from stillhouse.checkpoint import Checkpoints, check_fingerprint
from stillhouse.checksums import bits_of
from stillhouse.data.data import Data, Rows, TensorData
from stillhouse.errors import ContractError
from stillhouse.fingerprint import fingerprint
from stillhouse.leftovers import temporary
from stillhouse.objectives.objective import Objective, Phase, Tensors
from stillhouse.recipe import Context, Event
from stillhouse.resuming import Progress
from stillhouse.training import Place, Precision, Setup
from stillhouse.turns import Curves, Turn
from stillhouse.work import Work

CURVE_POINTS = 200
NO_CONTEXT = contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class _Job:
    objective: Objective
    models: MutableMapping[str, nn.Module]
    data: Data
    setup: Setup
    ctx: Context
    frozen: Mapping[str, Mapping[str, str]]  # checksums of each role that no phase trains

    def fingerprint(self) -> dict[str, Any]:  # Any: JSON values
        return fingerprint(self.objective, self.frozen, self.data, setup=self.setup, ctx=self.ctx)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training says of itself: the means of the loss terms since the last row of the
    curves and that row, a row a logged step, what each refresh chose, where it went on.
    """

    last: Mapping[str, float]
    curves: Sequence[Mapping[str, float]]
    refreshes: Sequence[refreshing.Told]
    resumed_at: int | None


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
    learners = {role for phase in objective.phases.values() for role in phase.trains}
    before = {role: bits_of(module) for role, module in models.items() if role not in learners}
    job = _Job(objective=objective, models=models, data=data, setup=setup, ctx=ctx, frozen=before)
    with torch.random.fork_rng(), temporary() as place, _runner(job, place) as (runner, loop):
        runner.train()
        for role, bits in before.items():  # where they are, before they leave the device
            if bits_of(models[role]) != bits:
                raise ContractError(
                    f"stage '{ctx.stage}': frozen role '{role}' changed during training; "
                    "an objective must not put it in train mode or write to its buffers"
                )
    return Fitted(
        last=loop.curves.last,
        curves=tuple(loop.curves.rows),
        refreshes=tuple(loop.refreshes),
        resumed_at=loop.resumed_at,
    )


def _wrap(phase: Phase, precision: Precision) -> Callable[[torch.optim.Optimizer], OptimWrapper]:
    clip = None if phase.clip_norm is None else {"max_norm": phase.clip_norm}
    if precision == "fp32":
        return functools.partial(OptimWrapper, clip_grad=clip)
    # bf16 has the range of fp32 and needs no loss scaling
    scaling: Any = {"enabled": precision == "fp16"}  # Any: annotated too narrowly by mmengine
    name = "bfloat16" if precision == "bf16" else "float16"
    return lambda optimizer: AmpOptimWrapper(
        loss_scale=scaling, dtype=name, optimizer=optimizer, clip_grad=clip
    )


class _Shell(nn.Module):
    """What mmengine takes for the model: the roles stay with the caller, so that it moves and wraps
    nothing.
    """

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """mmengine asks that it exists; `_Loop` runs the phases itself."""
        raise NotImplementedError


class _NoPictures:
    """Stands for mmengine's Visualizer, which opens a matplotlib figure for every run."""

    def add_config(self, config: object) -> None:
        """All that the Runner asks of it."""


class _Runner(Runner):
    """mmengine's Runner without its slow habits: probing compilers, dumping a config that we do not
    use, opening a figure that nobody draws into.
    """

    def build_visualizer(self, visualizer: Any = None) -> Any:
        return _NoPictures()

    def _log_env(self, env_cfg: Any) -> None:
        return

    def dump_config(self) -> None:
        return

    def take(self, loop: BaseLoop) -> None:
        """A loop needs its runner and a runner its loop: the loop comes later."""
        self._train_loop = loop


class _Loop(BaseLoop):
    """For each global batch, every phase that is due."""

    def __init__(self, runner: Runner, turns: Sequence[Turn], job: _Job) -> None:
        data: Any = job.data  # Any: mmengine passes on whatever yields batches
        super().__init__(runner, data)
        self.turns, self.job = turns, job
        self.place = Place()
        self.chosen: Data = job.data
        self.rng = torch.Generator()
        self.refreshes: list[refreshing.Told] = []
        self.resumed_at: int | None = None
        self.curves = Curves([turn.name for turn in turns], job.ctx.nproc)
        self.learners = list({p: None for turn in turns for p in turn.parameters})
        self.plain = job.setup.precision == "fp32"
        self.share = self._share()

    @property
    def iter(self) -> int:
        """mmengine's word for the step."""
        return self.place.step

    @property
    def max_iters(self) -> int:
        """mmengine's word for the length of the run."""
        return self.job.setup.steps

    def run(self) -> None:
        job, place = self.job, self.place
        # a role no phase trains gets no gradient at all
        for module in job.models.values():
            module.requires_grad_(False)
        self.turns[0].enter(self.learners)
        batches = training.batches_from(place, self.chosen, job.setup, job.ctx)
        while place.step < job.setup.steps:
            if refreshing.due(job.objective, place):
                self._refresh()
                batches = training.batches_from(place, self.chosen, job.setup, job.ctx)
            self.run_step(next(batches))
            place.step += 1
            self.runner.call_hook("after_train_iter", batch_idx=place.step)

    def run_step(self, batch: Tensors) -> None:
        step, ctx = self.place.step, self.job.ctx
        rng = self.rng.manual_seed(training.mix(self.job.setup.seed, training.STEP, step, ctx.rank))
        for turn in self.turns:
            if step % turn.phase.every:
                continue
            if len(self.turns) > 1:
                turn.enter(self.learners)
            self._gradients(turn, batch, step, rng)
            if ctx.nproc > 1:
                parallel.average_gradients(turn.parameters, share=self.share)
                parallel.share_buffers(turn.awake)
            turn.update(step, self.job.setup.steps)
            for role, average in turn.averages.items():
                average.update_parameters(self.job.models[role])

    def _gradients(self, turn: Turn, batch: Tensors, step: int, rng: torch.Generator) -> None:
        job = self.job
        parts = turn.phase.accumulate * job.ctx.slices
        for part, share in training.micro_batches(batch, parts):
            with NO_CONTEXT if self.plain else turn.wrapper.optim_context(self.runner.model):
                found = job.objective.terms(
                    turn.name, job.models, part, step=step, steps=job.setup.steps, rng=rng
                )
            if isinstance(found, Mapping):
                terms, loss = found, training.total(found)
                turn.wrapper.backward(loss if share == 1 else loss * share)
            else:
                terms, loss = self._partial_gradients(turn, found, share)
            self.curves.add(turn.name, terms, loss, share * self.share)
        for role, module in turn.frozen.items():
            if module.training:
                raise ContractError(
                    f"stage '{job.ctx.stage}': phase '{turn.name}' put frozen role '{role}' "
                    "in train mode"
                )

    def _partial_gradients(
        self, turn: Turn, partials: Iterator[Tensors], share: float
    ) -> tuple[Tensors, Tensor]:
        """Sum the gradients of partial losses, each computed when the graph of the one before is
        gone; terms of the same name are summed.
        """
        summed: dict[str, Tensor] = {}
        while True:
            with NO_CONTEXT if self.plain else turn.wrapper.optim_context(self.runner.model):
                terms = next(partials, None)
            if terms is None:
                break
            loss = training.total(terms)
            turn.wrapper.backward(loss if share == 1 else loss * share)
            for name, value in terms.items():
                summed[name] = summed[name] + value.detach() if name in summed else value.detach()
        if not summed:
            stage = self.job.ctx.stage
            raise ContractError(f"stage '{stage}': phase '{turn.name}' gave no partial loss")
        return summed, training.total(summed)

    def _refresh(self) -> None:
        job, place = self.job, self.place
        step, stage = place.step, job.ctx.stage
        work = Work.of(job.ctx, job.setup.seed, training.REFRESH, step)
        rows = refreshing.choose(job.objective, job.models, job.data, step=step, work=work)
        place.restart(
            parallel.agree(rows.index), training.pass_length(self.chosen, job.setup.batch)
        )
        self._choose(place.index)
        told = refreshing.tell(job.objective, self.chosen, job.data, step=step, stage=stage)
        self.refreshes.append(told)
        self.turns[0].enter(self.learners)

    def _choose(self, index: Tensor | None) -> None:
        if index is not None:
            assert isinstance(self.job.data, TensorData)
            self.chosen = Rows(self.job.data, index)
            self.share = self._share()

    def _share(self) -> float:
        """This process's part of each batch's rows."""
        rows = min(self.job.setup.batch, len(self.chosen))
        training.check_rows(rows, self.job.ctx)
        return parallel.share(rows, rank=self.job.ctx.rank, nproc=self.job.ctx.nproc)

    def save(self) -> None:
        """Write a checkpoint; every rank takes part, rank 0 writes."""
        job = self.job
        tensors, record = self._progress().state(job.ctx)
        if job.ctx.rank == 0:
            record["fingerprint"] = job.fingerprint()
            Checkpoints(ctx=job.ctx).save(self.place.step, tensors, record)

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
        self._choose(self.place.index)
        done = self.place.step
        self.resumed_at = done
        text = f"resumed at step {done}"
        ctx.observe(Event(stage=ctx.stage, text=text, done=done, total=job.setup.steps))

    def _progress(self) -> Progress:
        return Progress(
            turns=self.turns,
            models=self.job.models,
            place=self.place,
            curves=self.curves,
            refreshes=self.refreshes,
        )


class _Watch(Hook):
    """Curves, progress and checkpoints, when they are due."""

    def __init__(self, ctx: Context, steps: int) -> None:
        self.ctx, self.steps = ctx, steps
        self.every = max(1, steps // CURVE_POINTS)
        self.saved = time.monotonic()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        step, loop = batch_idx, runner.train_loop
        assert isinstance(loop, _Loop)
        if step % self.every == 0 or step == self.steps:
            loop.curves.row(step, self.ctx.stage)
            self._tell("", step, loop.curves.last)
        if step < self.steps and self._due(step):
            loop.save()
            self.saved = time.monotonic()
            self._tell("checkpoint", step, {})

    def _tell(self, text: str, step: int, scores: Mapping[str, float]) -> None:
        if self.ctx.rank == 0:
            ctx = self.ctx
            ctx.observe(
                Event(stage=ctx.stage, text=text, done=step, total=self.steps, scores=scores)
            )

    def _due(self, step: int) -> bool:
        ctx = self.ctx
        if ctx.checkpoint_steps is not None and step % ctx.checkpoint_steps == 0:
            return True
        late = time.monotonic() - self.saved >= ctx.checkpoint_seconds
        if ctx.nproc == 1:
            return late
        # saving is collective: the ranks agree on rank 0's clock, now and then
        return step % self.every == 0 and bool(parallel.agree(late))


@contextlib.contextmanager
def _runner(job: _Job, folder: Path) -> Generator[tuple[Runner, _Loop]]:
    """A Runner and its loop, resumed from a checkpoint; nothing of them is left behind."""
    parallel.join(job.ctx.device)
    for module in job.models.values():
        module.to(job.ctx.device)
    name = f"stillhouse-{uuid.uuid4().hex}"
    known = {kind: set(_instances(kind)) for kind in (MMLogger, MessageHub, DefaultScope)}
    try:
        MessageHub.get_instance(name)  # the optimizer wrappers write to the newest hub
        precision = job.setup.precision
        turns = [
            Turn(n, phase, job.models, _wrap(phase, precision))
            for n, phase in job.objective.phases.items()
        ]
        runner = _new_runner(job, turns, name, folder)
        loop = _Loop(runner, turns, job)
        runner.take(loop)
        torch.manual_seed(training.mix(job.setup.seed, training.GLOBAL, job.ctx.rank))
        loop.resume()
        yield runner, loop
        for turn in turns:
            job.models.update(
                {f"{role}-ema": average.module for role, average in turn.averages.items()}
            )
    finally:
        for module in job.models.values():
            module.to("cpu").requires_grad_(True).eval()
        _forget(known)


def _new_runner(job: _Job, turns: Sequence[Turn], name: str, folder: Path) -> _Runner:
    data: Any = job.data  # Any: mmengine passes on whatever yields batches
    unused = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    wrappers: dict[str, Any] = {turn.name: turn.wrapper for turn in turns}  # Any: OptimWrappers
    none: dict[str, Any] = dict.fromkeys(unused)  # Any: mmengine's way to say no hook
    return _Runner(
        model=_Shell(),
        work_dir=str(folder),
        train_dataloader=data,
        train_cfg={"by_epoch": False},
        optim_wrapper=OptimWrapperDict(**wrappers),
        default_hooks=none,
        custom_hooks=[_Watch(job.ctx, job.setup.steps)],
        log_level="WARNING",
        randomness={"seed": job.setup.seed % 2**32},
        experiment_name=name,
    )


def _instances(
    kind: Any,
) -> dict[str, Any]:  # Any: mmengine's global registries of loggers, hubs and scopes
    return kind._instance_dict


def _forget(known: Mapping[Any, set[str]]) -> None:
    """Take this run's loggers, hubs and scopes out of mmengine's registries; close their files."""
    for kind, names in known.items():
        for name in set(_instances(kind)) - names:
            instance = _instances(kind).pop(name)
            for handler in getattr(instance, "handlers", ()):
                handler.close()
