"""Batches read from plans, in this process or by worker processes: the same bits either way.

Workers are torch's DataLoader with forkserver. The first batches are read here while they start; a
worker that dies costs a line, and this process reads what it owed. Stored data are read with one
thread wherever that is, since the number of threads changes the last bits of floating operations.
"""

import contextlib
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stillhouse.data.notes import note
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.recipe import WORKERS

Request = TypeVar("Request")
Batch = Mapping[str, Tensor]
Read = Callable[[Request], Batch]

MOST_WORKERS = 8
AHEAD = 2  # batches that each worker has ready
SHARED = "/dev/shm"
SHARED_SHARE = 0.8  # of what is free there
STARTED = ["torch", "stillhouse.data.loader"]  # what the server of forks has imported


def batches_of(
    read: Read[Request], requests: Iterable[Request], *, stored: bool, pinned: bool = False
) -> Iterator[Batch]:
    """The batch of each request, in order; by worker processes where `stored` data make that worth
    it. `pinned`: in page-locked memory, for copies to a GPU.
    """
    count = workers() if stored else 0
    if count == 0:
        return map(read, requests) if not stored else _read_here(read, requests)
    return _Workers(read, iter(requests), count, pinned=pinned).batches()


def workers() -> int:
    """How many processes read batches: $STILLHOUSE_WORKERS, else one less than the processors that
    this process may use, its share of them where torchrun has started several.

    None in a process that may have no children, nor in a script, which a worker would run again.
    """
    if multiprocessing.current_process().daemon:
        return 0
    if chosen := os.environ.get(WORKERS):
        if not chosen.isdecimal():
            raise BadSetting(f"{WORKERS}={chosen}: expected a whole number, 0 or more")
        return int(chosen)
    if _is_script():
        return 0
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    share = (processors or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(MOST_WORKERS, max(0, share - 1))


def start_early() -> None:
    """Start the server that forks workers, which imports torch meanwhile."""
    if workers():
        from multiprocessing.forkserver import ensure_running

        _context()
        ensure_running()


def _is_script() -> bool:
    import __main__ as main  # as it is now: a test runner may have changed it

    named = getattr(getattr(main, "__spec__", None), "name", None)
    path = str(getattr(main, "__file__", "") or "")
    return named is None and path.endswith(".py")


def _context() -> Any:  # Any: multiprocessing's contexts have no public type
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(STARTED)
    return context


@contextlib.contextmanager
def one_thread() -> Generator[None]:
    """While torch's operations use one thread."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_here(read: Read[Request], requests: Iterable[Request]) -> Iterator[Batch]:
    for request in requests:
        with one_thread():
            batch = read(request)
        yield batch


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """An error of a worker that is one line."""

    error: StillhouseError


class _Reading(Dataset[Any]):  # Any: a batch, or why there is none
    """What a worker has: how to read."""

    def __init__(self, read: Callable[[Any], Batch]) -> None:
        self.read = read

    def __getitem__(self, request: Any) -> Any:  # Any: as above
        try:
            return self.read(pickle.loads(request))
        except StillhouseError as error:
            return _Refusal(error=error)


class _Drawn(Sampler[Any], Generic[Request]):
    """Requests, drawn by this process until the workers draw the first; then by them alone."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self.requests, self.lock = requests, threading.Lock()
        self.taken = False
        self.owed: deque[Request] = deque()  # drawn for the workers, and not come back

    def here(self) -> Iterator[Request]:
        while True:
            with self.lock:
                if self.taken:
                    return
                request = next(self.requests, None)
            if request is None:
                return
            yield request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self.lock:
            self.taken = True
            request = next(self.requests)
            self.owed.append(request)
            # as bytes: multiprocessing would open a file for each tensor of it
            return pickle.dumps(request)

    def rest(self) -> Iterator[Request]:
        """What has not come back, and what nobody drew yet."""
        while self.owed:
            yield self.owed.popleft()
        yield from self.requests


class _Workers(Generic[Request]):
    """One reading by worker processes."""

    def __init__(
        self, read: Read[Request], requests: Iterator[Request], count: int, *, pinned: bool
    ) -> None:
        self.read, self.count, self.pinned = read, count, pinned
        self.drawn = _Drawn(requests)
        self.loaded: Iterator[Any] | None = None  # Any: a batch or a refusal
        self.error: BaseException | None = None

    def batches(self) -> Iterator[Batch]:
        here = _read_here(self.read, self.drawn.here())
        first = next(here, None)
        if first is None:
            return
        self.count = min(self.count, _room(first, self.count))
        if self.count == 0:
            yield first
            yield from here
            return
        starting = threading.Thread(target=self._start, daemon=True)
        starting.start()
        try:
            yield first
            yield from here
            starting.join()
            yield from self._from_workers()
        finally:
            starting.join()
            self.loaded = None  # ends the workers

    def _start(self) -> None:
        try:
            self.loaded = iter(
                DataLoader(
                    _Reading(self.read),
                    batch_size=None,
                    sampler=self.drawn,
                    num_workers=self.count,
                    prefetch_factor=AHEAD,
                    collate_fn=_as_it_is,
                    multiprocessing_context=_context(),
                    worker_init_fn=_begin,
                    pin_memory=self.pinned,
                    # its own: the global one must not move by how often reading begins
                    generator=torch.Generator(),
                )
            )
        except Exception as error:  # whatever forbids other processes here
            self.error = error

    def _from_workers(self) -> Iterator[Batch]:
        while self.loaded is not None:
            try:
                found = next(self.loaded)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self.error = error
                break
            if isinstance(found, _Refusal):
                raise found.error
            self.drawn.owed.popleft()
            yield found
        note(
            f"reading goes on in one process: {' '.join(str(self.error).split())[:160]}"
            f"{_rows(self.drawn.owed)}"
        )
        self.loaded = None
        yield from _read_here(self.read, self.drawn.rest())


def _rows(owed: Iterable[Any]) -> str:  # Any: requests
    """The rows of the first request, where it names rows."""
    first = next(iter(owed), None)
    plan: Any = first[0] if isinstance(first, tuple) else first
    rows = next(iter(plan.values()), None) if isinstance(plan, Mapping) else None
    if not isinstance(rows, Tensor) or not len(rows):
        return ""
    return f" (it was to read rows {int(rows.min())} to {int(rows.max())})"


def _as_it_is(batch: Any) -> Any:  # Any: a batch or a refusal
    return batch


def _begin(_number: int) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        # each tensor on its way is an open file
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _room(batch: Batch, wanted: int) -> int:
    """How many workers the shared memory has room for, with a line where it is fewer."""
    with contextlib.suppress(OSError):
        found = os.statvfs(SHARED)
        free = found.f_bavail * found.f_frsize * SHARED_SHARE
        size = sum(value.nbytes for value in batch.values())
        fit = int(free // max(1, size * (AHEAD + 1)))
        if fit < wanted:
            note(
                f"{SHARED} has {found.f_bavail * found.f_frsize >> 20} MiB free and a batch is "
                f"{size / 2**20:.1f} MiB: {fit} worker(s) instead of {wanted}; enlarge it "
                "(docker run --shm-size) or choose a smaller batch"
            )
        return fit
    return wanted
