"""Precision "fast": roles of a training in a form that computes the same faster.

Before the first step each role runs on the real batch, as it is and by one measure more at a time:
BatchNorm folded (frozen roles), channels_last, bf16 where the processor has it (frozen roles),
compiled where it pays. A measure stays where its outputs are near enough the reference and, but for
folding, it took less time. Which stayed is in the checkpoint: a resumed run takes the same.
"""

import contextlib
import copy
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.folding import CONVOLUTIONS, fold, pairs_of
from stillhouse.objectives.logits import kl_terms
from stillhouse.objectives.objective import Tensors

FOLDED, CHANNELS_LAST, BF16, COMPILED = "folded", "channels_last", "bf16", "compiled"
# the largest error of an output, of its largest value
SINGLE, HALF = 1e-5, 1e-2
# of logits in bf16: mean KL(reference || fast) in nats, and the rows of another class
KL, OTHER = 1e-3, 0.005
# what compiling takes a layer, and the part of a forward that it saves: rough, to refuse by
LAYER_SECONDS = 0.3
SAVES = {"cpu": 1 / 6, "cuda": 1 / 2}
TRIES = 3


@dataclass(kw_only=True)
class Chosen:
    """How a role runs: its measures; why others do not; milliseconds of a batch before and now;
    what compiling took.
    """

    measures: list[str] = field(default_factory=list[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    ms: dict[str, float] = field(default_factory=dict[str, float])
    compile_seconds: float | None = None  # with the first forward; None: nothing was compiled

    def line(self, role: str) -> str:
        """What a person should know of it."""
        how = ", ".join(self.measures) or "as it is"
        times = f" ({self.ms['plain']:.1f} -> {self.ms['fast']:.1f} ms a batch)" if self.ms else ""
        if self.compile_seconds is not None:
            times += f", {self.compile_seconds:.0f} s to compile"
        why = "".join(f"; not {name}: {reason}" for name, reason in self.refused.items())
        return f"fast: '{role}' runs {how}{times}{why}"


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role, the batch on which its forms are tried, and what is read of its outputs (nothing:
    all of them). `steps` are those to come.
    """

    module: nn.Module
    batch: Tensors
    reads: Sequence[str] = ()
    device: str = "cpu"
    steps: int = 1
    trained: bool = False

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    @property
    def halved(self) -> bool:
        """Whether the training runs this role in bf16, whatever its form."""
        return self.trained and self.kind == "cuda"

    def choose(self) -> Chosen:
        """Try each measure on top of those that stay. Random numbers are drawn from as before."""
        found = Chosen()
        with torch.random.fork_rng(), torch.no_grad():
            plain = self._tried(())
            if isinstance(plain, str):
                found.refused["tried"] = plain
                return found
            best = plain.seconds
            for measure in self._measures():
                reason = self._pays(best) if measure == COMPILED else ""
                tried = reason or self._tried((*found.measures, measure))
                if not isinstance(tried, str):
                    if measure == COMPILED:
                        found.compile_seconds = tried.first
                    half = self.halved or BF16 in (*found.measures, measure)
                    reason = misfit(plain.outputs, tried.outputs, half=half)
                    if measure != FOLDED and not reason and tried.seconds >= best:
                        reason = f"no faster ({1000 * tried.seconds:.1f} ms a batch)"
                    if not reason:
                        found.measures.append(measure)
                        best = tried.seconds
                        continue
                found.refused[measure] = reason or str(tried)
        found.ms = {"plain": 1000 * plain.seconds, "fast": 1000 * best}
        return found

    def form(self, measures: Sequence[str]) -> nn.Module:
        """The role by these measures, in eval mode: another module of the same class, which shares
        the tensors that are the same.
        """
        tensors = {id(t): t for t in (*self.module.parameters(), *self.module.buffers())}
        made = copy.deepcopy(self.module, dict[int, Any](tensors)).eval()  # Any: deepcopy's memo
        if FOLDED in measures:
            with torch.random.fork_rng(), torch.no_grad():
                fold(made, pairs_of(made, lambda: made(self.batch)))
        for part in made.modules():
            if CHANNELS_LAST in measures and type(part) is nn.Conv2d:
                part.weight = _frozen(part.weight.contiguous(memory_format=torch.channels_last))
            if BF16 in measures and type(part) in (*CONVOLUTIONS, nn.Linear):
                _to_bf16(part)
        if BF16 in measures or (self.kind == "cuda" and not self.trained):
            _cast(made, self.kind, half=BF16 in measures)
        if COMPILED in measures:
            made.compile()
        return made

    def _measures(self) -> tuple[str, ...]:
        if self.trained:  # on CUDA under bf16 already
            return (CHANNELS_LAST, COMPILED) if self.kind == "cuda" else (CHANNELS_LAST,)
        if self.kind == "cuda":  # the last bits of fp32 are TF32's there
            return (BF16, FOLDED, CHANNELS_LAST, COMPILED)
        return (FOLDED, CHANNELS_LAST, *((BF16,) if has_bf16() else ()), COMPILED)

    def no_compiler(self) -> str:
        """Why nothing can be compiled here; "" where it can."""
        if self.kind == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
            return "there is no C++ compiler (g++, or what CXX names)"
        return ""

    def _pays(self, seconds: float) -> str:
        """Why compiling cannot pay; "" where it may."""
        if reason := self.no_compiler():
            return reason
        layers = sum(not any(True for _ in part.children()) for part in self.module.modules())
        costs = LAYER_SECONDS * layers
        saves = SAVES.get(self.kind, 0.0) * seconds * self.steps * (3 if self.trained else 1)
        if saves > costs:
            return ""
        return f"{self.steps} steps would save {saves:.0f} s, compiling costs {costs:.0f} s"

    def _tried(self, measures: Sequence[str]) -> "_Tried | str":
        """Outputs and seconds of a form, or why there are none."""
        try:
            made = self.form(measures)
            with self._autocast(measures):
                start = time.perf_counter()
                outputs: Tensors = made(self.batch)
                _wait(self.kind)
                first = time.perf_counter() - start
                seconds = min(self._timed(made) for _ in range(TRIES))
        except Exception as error:  # a role's forward is anybody's, and so is a compiler
            reason = next(iter(str(error).splitlines()), "")
            return f"{type(error).__name__}: {reason}"[:200]
        named = self.reads or tuple(outputs)
        return _Tried({n: v for n, v in outputs.items() if n in named}, seconds, first)

    def _autocast(self, measures: Sequence[str]) -> contextlib.AbstractContextManager[object]:
        """As the training runs it; the reference of a frozen role is in fp32."""
        if self.kind == "cuda" and (measures or self.trained):
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    def _timed(self, module: nn.Module) -> float:
        _wait(self.kind)
        start = time.perf_counter()
        module(self.batch)
        _wait(self.kind)
        return time.perf_counter() - start


@dataclass(frozen=True)
class _Tried:
    outputs: Tensors
    seconds: float  # of a forward
    first: float  # of the first one


def _wait(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def misfit(reference: Tensors, found: Tensors, *, half: bool) -> str:
    """Why outputs cannot stand in for the reference, of which those in `half` precision may be
    further; "" where they can.
    """
    for name, value in reference.items():
        other = found.get(name)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            return f"its '{name}' is of another shape or type"
        if not value.is_floating_point():
            if not torch.equal(value, other):
                return f"its '{name}' is another"
        elif half and name == "logits" and value.dim() == 2:
            if reason := _other_classes(value.double(), other.double()):
                return reason
        else:
            gap = (other - value).abs().max() / value.abs().max().clamp(min=1e-30)
            limit = HALF if half else SINGLE
            if not float(gap) <= limit:
                return f"its '{name}' is off by {float(gap):.1e}, of at most {limit:.0e}"
    return ""


def _other_classes(value: Tensor, other: Tensor) -> str:
    """Of logits [B, classes]."""
    logp, logq = value.log_softmax(1), other.log_softmax(1)
    kl = float(kl_terms(logq, logp).sum() / len(logp))
    changed = float((value.argmax(1) != other.argmax(1)).double().mean())
    if not kl <= KL:
        return f"its logits are off by {kl:.1e} nats, of at most {KL:.0e}"
    return f"{changed:.1%} of the rows get another class" if changed > OTHER else ""


def has_bf16() -> bool:
    """Whether the processor computes in bf16; without it torch's convolutions in bf16 are up to
    hundreds of times slower. That they are faster is measured.
    """
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in flags)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _to_bf16(part: nn.Module) -> None:
    for name, parameter in [*part.named_parameters(recurse=False)]:
        setattr(part, name, _frozen(parameter.to(torch.bfloat16)))


def _cast(module: nn.Module, kind: str, *, half: bool) -> None:
    """Run a module's forward in bf16 or not, whatever is around it; its outputs are fp32."""
    forward = module.forward

    def cast(batch: Tensors) -> dict[str, Tensor]:
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            outputs: Mapping[str, Tensor] = forward(batch)
        return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in outputs.items()}

    module.forward = cast


def lay_out(module: nn.Module, form: torch.memory_format) -> None:
    """Put the weights of 2-D convolutions into another order of memory, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            for parameter in part.parameters(recurse=False):
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=form)


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Put an optimizer's state into the order of memory of its parameters, as fused kernels, which
    read memory as it lies, need it.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
