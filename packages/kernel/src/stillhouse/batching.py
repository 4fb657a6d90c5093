"""Frozen networks over many rows, in batches that fit the memory.

What is scored must not depend on how many rows a network computes at a time, so a batch may be
smaller than requested: on the CPU where the tensors of a forward would take more than
STILLHOUSE_EVALUATION_MIB (256), on a GPU where its memory has run out. Only the last bits of what a
network gives may differ then. Trainings, and caches of what a training reads, keep their batch.
"""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from stillhouse.data.data import Data, PlannedData, rows_of
from stillhouse.data.notes import note
from stillhouse.errors import BadSetting, OutOfMemory
from stillhouse.objectives.objective import Tensors

BOUND, DEFAULT_MIB = "STILLHOUSE_EVALUATION_MIB", 256
NO_ROOM = "can't allocate memory"  # in the message of torch's allocator on the CPU

Found = TypeVar("Found")


def each_batch(
    data: Data, compute: Callable[[Tensors], Found], *, most: int, device: torch.device | str
) -> Iterator[Found]:
    """What `compute` gives of each batch of `data`, in order, without gradient; `most` rows a
    batch, or as many as fit the memory of `device`, where `compute` runs its networks; nothing of
    data without rows.

    `compute` is a pure function of the rows: to see what they take, it is also called with the
    first row once and twice. Raises OutOfMemory where a single row does not fit.
    """
    size = most
    first = first_rows(data, 1) if most > 1 and torch.device(device).type == "cpu" else {}
    if first and len(first["id"]):
        size = fitting(compute, first, most)
    for batch in data.batches(size, rng=None):
        waiting = micro_batches(batch, size)
        while waiting:
            found = _computed(compute, waiting[0], device)
            if found is None:  # and from here on
                size = -(-len(waiting[0]["id"]) // 2)
                waiting = [rows for each in waiting for rows in micro_batches(each, size)]
                continue
            del waiting[0]
            yield found[0]


def first_rows(data: Data, size: int) -> Tensors:
    """The first `size` rows, or as many as there are, read in this process; empty without any."""
    if isinstance(data, PlannedData):
        return next((data.read(plan) for plan in data.plan(size, rng=None)), {})
    return next(iter(data.batches(size, rng=None)), {})


def micro_batches(batch: Tensors, size: int) -> list[Tensors]:
    """The rows of a batch, `size` at a time, in order; the last may be fewer."""
    count = len(batch["id"])
    if count <= size:
        return [batch]
    return [rows_of(batch, index) for index in torch.arange(count).split(size)]


def fitting(compute: Callable[[Tensors], object], first: Tensors, most: int) -> int:
    """How many rows, 1 to `most`, `compute` may be given on the CPU so that the tensors it makes
    stay below the bound. They are taken to grow by the same bytes a row: it is called with the row
    `first` once, and twice. What operators need beside their results is not seen.
    """
    one, two = (peak_bytes(compute, rows_of(first, torch.zeros(n).long())) for n in (1, 2))
    row = max(two - one, 1)
    return max(1, min(most, (bound_bytes() - max(one - row, 0)) // row))


def bound_bytes() -> int:
    """STILLHOUSE_EVALUATION_MIB in bytes; raises BadSetting where it is no number."""
    text = os.environ.get(BOUND, str(DEFAULT_MIB))
    if not text.isdecimal() or int(text) < 1:
        raise BadSetting(f"{BOUND}={text}: expected a whole number of MiB >= 1")
    return int(text) << 20


def peak_bytes(compute: Callable[[Tensors], object], rows: Tensors) -> int:
    """The most bytes alive at once of the tensors that `compute` makes of these rows, without
    gradient; torch's global random numbers are as before.
    """
    live = _Live()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), live:
        compute(rows)
    return live.most


class _Live(TorchDispatchMode):
    """While entered, counts the bytes of the storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; True imports the compiler, for seconds

    def __torch_dispatch__(
        self,
        func: Any,  # Any: torch gives it no type; the arguments are the operator's
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        for each in tree_leaves((args, given)):
            if isinstance(each, Tensor):  # weights, rows: what was there before
                self.known.setdefault(each.untyped_storage(), True)
        found = func(*args, **given)
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and each.untyped_storage() not in self.known:
                self._count(each.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.known[storage] = True
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False

    def _freed(self, size: int) -> None:
        self.now -= size


def _computed(
    compute: Callable[[Tensors], Found], rows: Tensors, device: torch.device | str
) -> tuple[Found] | None:
    """What `compute` gives; None where the memory does not suffice for so many rows."""
    count = len(rows["id"])
    try:
        with torch.no_grad():
            return (compute(rows),)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_ROOM not in str(error):
            raise
        if count == 1:
            reason = f"evaluation: one row does not fit the memory of {device}"
            raise OutOfMemory(f"{reason}; use another device", again=False) from error
    # outside of the handler, whose traceback holds the tensors of the failed forward
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    note(f"evaluation: {count} rows do not fit the memory of {device}; half of them at a time")
    return None
