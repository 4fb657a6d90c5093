"""A phase at run time, and the running means of its loss terms."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillhouse import parallel
from stillhouse.checkpoint import pack_optimizer, unpack_optimizer
from stillhouse.errors import ContractError
from stillhouse.objectives.groups import optimizer_groups
from stillhouse.objectives.objective import Optimizer, Phase, Tensors
from stillhouse.training import Precision, finite

Given = ParamSpec("Given")
Value = TypeVar("Value")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_of(precision: Precision, device: str) -> torch.dtype | None:
    """What a training's arithmetic is in where that is not fp32."""
    return HALVES.get("bf16" if precision == "fast" and device != "cpu" else precision)


def fused(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer as one kernel for all parameters, where torch has that; else as it is."""
    takes = inspect.signature(optimizer.build).parameters
    if "fused" in takes and not {"fused", "foreach"} & optimizer.kwargs.keys():
        with contextlib.suppress(RuntimeError):  # not of these parameters, or on this device
            return replace(optimizer, kwargs={**optimizer.kwargs, "fused": True}).new(groups)
    return optimizer.new(groups)


class PhaseState:
    """A phase at run time: its optimizer at a precision, what it trains and what it freezes."""

    def __init__(
        self,
        name: str,
        phase: Phase,
        models: Mapping[str, nn.Module],
        *,
        precision: Precision = "fp32",
        device: str = "cpu",
    ) -> None:
        self.name, self.phase = name, phase
        self.trainable = [models[role] for role in phase.trains]
        self.frozen = {role: module for role, module in models.items() if role not in phase.trains}
        rates = {r: phase.optimizer.lr * phase.lr_scale.get(r, 1.0) for r in phase.trains}
        groups = [
            group
            for role, rate in rates.items()
            for group in optimizer_groups(phase.grouping, role, models[role], rate)
        ]
        fast = precision == "fast"
        self.optimizer = fused(phase.optimizer, groups) if fast else phase.optimizer.new(groups)
        self.base = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kind = device.partition(":")[0]
        self.autocast: AbstractContextManager[Any] = contextlib.nullcontext()
        if half := half_of(precision, device):
            self.autocast = torch.autocast(kind, half)
        # bf16 has the range of fp32 and needs no loss scaling
        self.scaler = torch.amp.GradScaler(kind) if precision == "fp16" else None
        self.averages = {
            role: AveragedModel(models[role], multi_avg_fn=get_ema_multi_avg_fn(decay))
            for role, decay in phase.ema.items()
        }

    def cast(self, compute: Callable[Given, Value]) -> Callable[Given, Value]:
        """The function at this precision; in fp32 it is the function itself, so that no step pays
        for a context that does nothing.
        """
        return self.autocast(compute) if isinstance(self.autocast, torch.autocast) else compute

    def enter(self, learners: Sequence[nn.Parameter]) -> None:
        """Freeze what this phase does not train (eval mode, no gradient to it) and unfreeze what it
        does.
        """
        for module in self.frozen.values():
            module.eval()
        for module in self.trainable:
            module.train()
        for parameter in learners:
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def update(self, step: int, steps: int) -> None:
        """One optimizer step at the schedule's learning rate."""
        factor = self.phase.schedule.factor(step, steps)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        optimizer, clip = self.optimizer, self.phase.clip_norm
        if self.scaler is not None and clip is not None:
            self.scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, scaled where the precision needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's state as named tensors and JSON values, with that of the loss scaler."""
        tensors, record = pack_optimizer(self.optimizer, f"optim/{self.name}")
        if self.scaler is not None:
            record["scaler"] = self.scaler.state_dict()
        return tensors, record

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        unpack_optimizer(self.optimizer, f"optim/{self.name}", tensors, record)
        if self.scaler is not None:
            self.scaler.load_state_dict(record["scaler"])


class Curves:
    """Means of the loss terms between two rows of the curves, summed where the terms are; over the
    rows of all processes.
    """

    def __init__(self, phases: Sequence[str], processes: int) -> None:
        self.several, self.processes = len(phases) > 1, processes
        self.counts = dict.fromkeys(phases, 0.0)
        self.sums: dict[str, Tensor] = {}
        self.rows: list[Mapping[str, float]] = []
        self.last: Mapping[str, float] = {}
        self.newest: dict[str, Tensor] = {}  # of the last micro-batch

    def add(self, phase: str, terms: Tensors, loss: Tensor, share: float) -> None:
        prefix, sums = f"{phase}/" if self.several else "", self.sums
        for name, value in (("loss", loss), *terms.items()):
            key, value = prefix + name, value.detach()
            self.newest[key] = value
            value = value if share == 1 else value * share
            sums[key] = sums[key] + value if key in sums else value
        self.counts[phase] += share

    def row(self, step: int, stage: str) -> None:
        """One row of means; a value that is not finite ends the run. Every process takes part."""
        sums, counts = self._of_all()
        if not sums:
            return
        first = next(iter(counts))
        means = {
            key: value / counts[key.partition("/")[0] if self.several else first]
            for key, value in sums.items()
        }
        self.sums, self.counts = {}, dict.fromkeys(self.counts, 0.0)
        if name := finite(means):
            raise ContractError(
                f"stage '{stage}': term '{name}' is {means[name]} by step {step}; "
                "lower the learning rate or clip the gradient"
            )
        self.last = means
        self.rows.append({"step": float(step), **means})

    def _of_all(self) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and counts of all processes."""
        sums, counts = dict[str, float](), dict.fromkeys(self.counts, 0.0)
        own = {key: float(value) for key, value in self.sums.items()}
        every = [(own, self.counts)]
        # a stage may train alone in a process that belongs to a group
        for theirs, counted in parallel.gather(every[0]) if self.processes > 1 else every:
            for key, value in theirs.items():
                sums[key] = sums.get(key, 0.0) + value
            for phase, count in counted.items():
                counts[phase] += count
        return sums, counts
