"""Checksums of tensors where they are, without a copy on the CPU: whether anything changed.

A checksum is the sum, modulo 2**64, of each 32-bit word times an odd number of its place. Integers
alone: the same on every device, in whatever order it adds.
"""

import functools
from collections.abc import Collection

import torch
from torch import Tensor, nn

from stillhouse import parallel

ROW = 1 << 16  # words that share a table of places; each row of them has a factor of its own
CPU_ROWS, GPU_ROWS = 4, 64  # at a time: what a cache holds; what keeps a GPU busy
# odd, as signed 64-bit numbers: the golden ratio, and the multiplier of MurmurHash3's finaliser
STEP, MIX = -0x61C8864680B583EB, -0x00AE502812AA7333


def bits_of(module: nn.Module, names: Collection[str] | None = None) -> dict[str, str]:
    """A checksum of each parameter and stored buffer, or of those of these names, with dtype and
    shape.

    A change within one 32-bit word always shows, and so any single bit. Words in each other's place
    and any other change show but for one case in 2**32 at worst (two words that differ in their
    highest bits alone), one in 2**63 as a rule.
    """
    state: dict[str, Tensor] = module.state_dict()
    chosen = state if names is None else sorted(names)
    return {name: checksum(parallel.whole(state[name])) for name in chosen}


@torch.no_grad()
def checksum(tensor: Tensor) -> str:
    """The sum over rows r and places i of word[r, i] * place[i] * factor[r]; what is left behind
    the last whole row has factor 1.
    """
    words, places = _words(tensor.detach()), _odd_numbers(tensor.device)
    count = len(words) // ROW
    rest = words[count * ROW :]
    total = (rest * places[: len(rest)]).sum()
    step = CPU_ROWS if tensor.device.type == "cpu" else GPU_ROWS
    for first in range(0, count, step):
        last = min(first + step, count)
        rows = words[first * ROW : last * ROW].view(-1, ROW)
        sums = rows.to(torch.int64).mul_(places).sum(1)
        factors = _odd(torch.arange(ROW + first, ROW + last, device=tensor.device))
        total += sums.mul_(factors).sum()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{int(total.item()) & 0xFFFFFFFFFFFFFFFF:016x} {kind} {list(tensor.shape)}"


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as 32-bit integers; where that takes a copy, it is on the same device."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    if missing := -len(raw) % 4:
        raw = torch.cat([raw, raw.new_zeros(missing)])
    if raw.storage_offset() % 4:
        raw = raw.clone()
    return raw.view(torch.int32)


@functools.cache
def _odd_numbers(device: torch.device) -> Tensor:
    return _odd(torch.arange(ROW, device=device))


def _odd(numbers: Tensor) -> Tensor:
    """An odd number for each, as if drawn (splitmix64 with MurmurHash3's multiplier)."""
    mixed = (numbers + 1) * STEP
    for shift in (33, 29):
        # shifts of signed numbers keep the sign: the mask makes them those of unsigned ones
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * MIX
    return (mixed ^ (mixed >> 32 & 0xFFFFFFFF)) | 1
