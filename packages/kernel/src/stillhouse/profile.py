"""What a model costs: parameters, MACs, size, latency, peak memory."""

import contextlib
import math
import resource
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stillhouse.batching import bound_bytes, first_rows, fitting, micro_batches, peak_bytes
from stillhouse.data.data import Data, rows_of
from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics.known import MACS, MEMORY, PARAMETERS, SIZE, latency
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

# of a timing: rounds that do not count, or those of the first seconds; least rounds that count, and
# the seconds after which no more are made
WARMUP, WARM_SECONDS = 5, 2.0
LEAST, SECONDS = 3, 10.0


def first_batch(data: Data, size: int, device: torch.device) -> Tensors:
    """The first `size` samples, repeated where there are fewer; BadData where there is none."""
    if not (batch := first_rows(data, size)):
        raise BadData("the evaluation data hold no sample")
    rows = torch.arange(size) % len(batch["id"])
    return {name: value.to(device) for name, value in rows_of(batch, rows).items()}


@runtime_checkable
class Counted(Protocol):
    """A network that torch cannot look into: it says itself how many parameters it has, and how
    many multiply-accumulates a sample takes.
    """

    parameter_count: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Multiply-accumulates, and the names of the operators that are not among them."""

    macs: int
    uncounted: tuple[str, ...] = ()


def _matrix_vector(a: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(a)


def _added_matrix_vector(*shapes: Sequence[int], **_: object) -> int:
    return 2 * math.prod(shapes[1])


# products that torch's counter leaves out, by the shapes of their operands, in flops
VECTORS: Mapping[Any, Any] = {  # Any: operators of torch
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _matrix_vector,
    torch.ops.aten.addmv: _added_matrix_vector,
}
# operators of torch that multiply and have no formula here
UNCOUNTED = (
    "_cdist_forward",
    "_trilinear",
    "_fft_",
    "linalg_",
    "_linalg_",
    "mkldnn_",
    "_cudnn_rnn",
)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def macs(module: nn.Module, batch: Tensors) -> int:
    """Multiply-accumulates of one forward on `batch`, as `operations` counts them."""
    return operations(module, batch).macs


def operations(module: nn.Module, batch: Tensors) -> Operations:
    """What one forward on `batch` takes: half of torch's flop count, of convolutions and products
    of matrices and vectors, those of attention and recurrent layers among them.
    """
    if isinstance(module, Counted):
        return Operations(macs=module.macs * len(next(iter(batch.values()))))
    trained = [p for p in module.parameters() if p.requires_grad]
    module.requires_grad_(False)  # the counter hooks into the gradients of what modules give
    names = _Names()
    try:
        with (
            _plain_kernels(),
            names,
            FlopCounterMode(display=False, custom_mapping=dict(VECTORS)) as counter,
            torch.no_grad(),
        ):
            module(batch)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return Operations(macs=counter.get_total_flops() // 2, uncounted=tuple(sorted(names.found)))


@contextlib.contextmanager
def _plain_kernels() -> Generator[None]:
    """Attention and recurrent layers as the matrix products they consist of: the counter does not
    see into fused kernels.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn = torch.backends.mkldnn.set_flags(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.set_flags(onednn[0])


class _Names(TorchDispatchMode):
    """Collects the operators that multiply and that the flop counter passes over: those of other
    libraries, and torch's own in `UNCOUNTED`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = set[str]()

    def __torch_dispatch__(
        self,
        func: Any,  # Any: torch gives it no type; the arguments are the operator's
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        space, _, name = str(func).partition(".")
        own = space not in ("aten", "prim") and func.overloadpacket not in flop_registry
        if own or name.startswith(UNCOUNTED):
            self.found.add(f"{space}.{name.partition('.')[0]}")
        return func(*args, **(kwargs or {}))


def parameters(module: nn.Module) -> int:
    """How many numbers were trained."""
    if isinstance(module, Counted):
        return module.parameter_count
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True, kw_only=True)
class Profile(Metric):
    """parameters, macs (one sample) and size_mib (parameters and buffers as stored) of a role; the
    same everywhere.
    """

    role: str = "student"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        module = models[self.role]
        stored = sum(t.nbytes for t in module.state_dict().values())
        return {
            "parameters": parameters(module),
            "macs": macs(module, first_batch(data, 1, _device(module))),
            "size_mib": stored / 2**20,
        }

    def scores(self) -> Sequence[Score]:
        return (PARAMETERS, MACS, SIZE)

    def uncounted(
        self,
        models: Models,
        data: Data,
        *,
        work: Work,
    ) -> Mapping[str, Sequence[str]]:
        """The operators that `macs` leaves out."""
        module = models[self.role]
        names = operations(module, first_batch(data, 1, _device(module))).uncounted
        return {f"macs of {self.role}": names} if names else {}


@dataclass(frozen=True, kw_only=True)
class Latency(Metric):
    """latency_b<size>_ms: median seconds of `runs` forwards after a warm-up, in milliseconds, at
    each batch size; in micro-batches, one after another, where a batch does not fit the memory
    (see `stillhouse.batching`). Of forwards that take long fewer are made, three at least.
    """

    role: str = "student"
    batches: tuple[int, ...] = (1, 32)
    runs: int = 30

    def __post_init__(self) -> None:
        if self.runs < 1 or min(self.batches) < 1:
            raise BadSetting(
                f"latency: runs and batch sizes must be >= 1 (got {self.runs}, {self.batches})"
            )

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {
            latency(size).name: self._median(models[self.role], data, size) for size in self.batches
        }

    def scores(self) -> Sequence[Score]:
        return [latency(size) for size in self.batches]

    def _median(self, module: nn.Module, data: Data, size: int) -> float:
        batches = _fitting_batches(module, data, size)
        times = [(counts, _timed(module, batches)) for counts in _rounds(self.runs)]
        return 1000 * statistics.median(seconds for counts, seconds in times if counts)


@dataclass(frozen=True, kw_only=True)
class Latencies(Metric):
    """latency_b<size>_ms of several roles, as `Latency`, but in turns: whatever else slows the
    machine meanwhile slows all of them. `lines` maps a row of the study's table to its role.
    """

    lines: Mapping[str, str]
    batches: tuple[int, ...] = (1, 32)
    runs: int = 30

    def __post_init__(self) -> None:
        Latency(batches=self.batches, runs=self.runs)

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        return {
            (line, latency(size).name): median
            for size in self.batches
            for line, median in self._medians(models, data, size).items()
        }

    def scores(self) -> Sequence[Score]:
        return [latency(size) for size in self.batches]

    def rows(self) -> Sequence[str]:
        return tuple(self.lines)

    def _medians(self, models: Models, data: Data, size: int) -> dict[str, float]:
        times: dict[str, list[float]] = {line: [] for line in self.lines}
        batches = {
            line: _fitting_batches(models[role], data, size) for line, role in self.lines.items()
        }
        for counts in _rounds(self.runs, contestants=len(self.lines)):
            for line, role in self.lines.items():
                seconds = _timed(models[role], batches[line])
                if counts:
                    times[line].append(seconds)
        return {line: 1000 * statistics.median(each) for line, each in times.items()}


def _rounds(runs: int, *, contestants: int = 1) -> Generator[bool]:
    """Of each round of a timing, whether it counts: a warm-up, then `runs`, or fewer where they
    take long for each of the `contestants`.
    """
    for _ in _repeats(WARMUP, least=1, seconds=WARM_SECONDS * contestants):
        yield False
    for _ in _repeats(runs, least=LEAST, seconds=SECONDS * contestants):
        yield True


def _repeats(most: int, *, least: int, seconds: float) -> Generator[int]:
    """`most` numbers; after `least` none once the seconds are over."""
    begin = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - begin > seconds:
            return
        yield number


def _fitting_batches(module: nn.Module, data: Data, size: int) -> list[Tensors]:
    """The first `size` samples as one batch, or as micro-batches that fit the memory."""
    batch = first_batch(data, size, _device(module))
    if size > 1 and batch["id"].is_cuda:
        while not _fits(module, batch, size):
            size = -(-size // 2)
    elif size > 1:
        size = fitting(module, rows_of(batch, torch.arange(1)), size)
    if size < (wanted := len(batch["id"])):
        note(f"{latency(wanted).name}: {wanted} samples do not fit the memory; {size} at a time")
    return micro_batches(batch, size)


def _fits(module: nn.Module, batch: Tensors, size: int) -> bool:
    """Whether the GPU's memory suffices for a forward of `size` samples, or it is a single one."""
    try:
        _timed(module, micro_batches(batch, size)[:1])
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        return False
    return True


def _timed(module: nn.Module, batches: Sequence[Tensors]) -> float:
    on_gpu = batches[0]["id"].is_cuda
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Memory(Metric):
    """peak_memory_mib of one forward at `batch` samples: allocated on CUDA, weights and live
    tensors on CPU. What would not fit the memory (see `stillhouse.batching`) is not run on the CPU:
    its peak is that of two samples and what one more adds, for each of the others.
    """

    role: str = "student"
    batch: int = 32

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        module = models[self.role]
        batch = first_batch(data, self.batch, _device(module))
        peak = _cuda_peak(module, batch) if batch["id"].is_cuda else _cpu_peak(module, batch)
        return {MEMORY.name: peak / 2**20}

    def scores(self) -> Sequence[Score]:
        return (MEMORY,)


def _cuda_peak(module: nn.Module, batch: Tensors) -> int:
    torch.cuda.reset_peak_memory_stats()
    _timed(module, [batch])
    return torch.cuda.max_memory_allocated()


def _cpu_peak(module: nn.Module, batch: Tensors) -> int:
    """Weights, buffers and the most bytes of other tensors alive at once."""
    held = {t.untyped_storage() for t in chain(module.parameters(), module.buffers())}
    weights, count = sum(storage.nbytes() for storage in held), len(batch["id"])
    if count < 3:
        return weights + peak_bytes(module, batch)
    one, two = (peak_bytes(module, rows_of(batch, torch.arange(n))) for n in (1, 2))
    whole = two + (count - 2) * (two - one)
    return weights + (whole if whole > bound_bytes() else peak_bytes(module, batch))


def process_peak_mib(device: str) -> float:
    """The most memory this process held so far, in MiB: on the GPU when it trains there, else
    resident.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux
