"""Several processes in one run: torchrun's environment, means over all rows, buffers of rank 0."""

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PR_SET_PDEATHSIG = 1


def world() -> tuple[int, int]:
    """(rank, number of processes) as torchrun set them; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process get a signal when `parent`, which started it, goes in whatever way (Linux;
    elsewhere only by a signal of the parent).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # gone before the call
        os.kill(os.getpid(), number)


def join(device: str) -> None:
    """Join torchrun's process group once: nccl on CUDA, gloo on CPU."""
    if world()[1] > 1 and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


def leave() -> None:
    """Leave the process group, if joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(value: Any) -> Any:  # Any: a picklable value of our own making
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:  # Any: a picklable value of our own making
    """Every rank's value, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def share(rows: int, *, rank: int, nproc: int) -> float:
    """A process's part of a batch of `rows`, of which it takes every nproc-th."""
    return len(range(rank, rows, nproc)) / rows


def shard(module: torch.nn.Module, device: str) -> None:
    """Leave each process a part of each parameter of a frozen module (FSDP2); a forward gathers
    those of one block at a time: of what is in a ModuleList or Sequential, and then of the rest.
    Every process must run the same forwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module.requires_grad_(False)
    mesh = init_device_mesh(device.partition(":")[0], (dist.get_world_size(),))
    lists = (torch.nn.ModuleList, torch.nn.Sequential)
    blocks = [b for m in module.modules() if isinstance(m, lists) for b in m.children()]
    for block in reversed(blocks):  # the inner ones first
        if not isinstance(block, lists) and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part; every process must call it."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def average_gradients(parameters: Iterable[Tensor], *, share: float) -> None:
    """Replace each gradient by its mean over all rows of the batch, of which this process had
    `share`; every rank must hold the same set of gradients.
    """
    _flat([p.grad for p in parameters if p.grad is not None], functools.partial(_mean, share=share))


def share_buffers(modules: Iterable[torch.nn.Module]) -> None:
    """Give every rank the buffers of rank 0, as torch's own data parallelism does."""
    _flat([buffer for module in modules for buffer in module.buffers()], _from_first)


def _mean(flat: Tensor, *, share: float) -> None:
    flat *= share
    dist.all_reduce(flat)


def _from_first(flat: Tensor) -> None:
    dist.broadcast(flat, src=0)


def _flat(tensors: Sequence[Tensor], collective: Callable[[Tensor], None]) -> None:
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in group])
        collective(flat)
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
