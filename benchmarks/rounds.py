"""Contestants in processes of their own, kept alive and measured in turn, round after round.

A contestant trains from a `Feed`, which holds back the next batch until the driver asks for more
steps over a pipe. So one long training is measured in slices, its start-up in none of them, and the
slices of all contestants alternate: a busy machine slows them alike.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

Batch = TypeVar("Batch")
State = Mapping[str, Any]  # Any: JSON


class Feed(Generic[Batch]):
    """Endless batches, handed out as the driver asks; answers with what the steps cost.

    `clock` gives the seconds that count; `state` is asked for between two steps.
    """

    def __init__(
        self, items: Sequence[Batch], clock: Callable[[], float], state: Callable[[], State]
    ) -> None:
        self.items, self.clock, self.state = items, clock, state
        self.given = 0
        self.answers = _private_stdout()

    def __iter__(self) -> Iterator[Batch]:
        for line in sys.stdin:
            command = json.loads(line)
            match command["do"]:
                case "time":
                    start = self.clock()
                    yield from self._next(command["steps"])
                    self._answer({"seconds": (self.clock() - start) / command["steps"]})
                case "calls":
                    profile = _Calls()
                    yield from profile.counting(self._next(command["steps"]))
                    self._answer({"calls": profile.count / command["steps"]})
                case _:
                    self._answer(self.state())
        # the driver has closed the pipe: the training ends here, however long it was meant to be
        raise SystemExit

    def _next(self, steps: int) -> Iterator[Batch]:
        start, self.given = self.given, self.given + steps
        return (self.items[step % len(self.items)] for step in range(start, start + steps))

    def _answer(self, record: State) -> None:
        self.answers.write(json.dumps(record) + "\n")
        self.answers.flush()


class Passes(Generic[Batch]):
    """A feed as stillhouse Data: a pass is `count` batches of `size`."""

    def __init__(self, feed: Iterator[Batch], *, size: int, count: int) -> None:
        self.feed, self.size, self.count = feed, size, count

    def __len__(self) -> int:
        return self.size * self.count

    def batches(self, _size: int, *, rng: object) -> Iterator[Batch]:
        assert rng is not None
        return itertools.islice(self.feed, self.count)


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant by round; a first round is not counted."""
    names, found = list(contestants), {name: list[float]() for name in contestants}
    for number in range(1 + rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            found[name].append(contestants[name]())
    return {name: values[1:] for name, values in found.items()}


def _private_stdout() -> TextIO:
    """The pipe to the driver; whatever a library prints goes to stderr instead."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


class _Calls:
    """Counts calls of Python functions (built-in ones are not counted)."""

    def __init__(self) -> None:
        self.count = 0

    def _seen(self, _frame: object, event: str, _argument: object) -> None:
        self.count += event == "call"

    def counting(self, items: Iterator[Batch]) -> Iterator[Batch]:
        sys.setprofile(self._seen)
        yield from items
        sys.setprofile(None)


class Worker:
    """The driver's end of a contestant's process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )

    def ask(self, do: str, steps: int = 0) -> State:
        """Have it do `steps` steps, or tell its state; ends this program when it has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, "steps": steps}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: contestant '{self.name}' died; its own error is above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def interleaved(workers: Sequence[Worker], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each contestant in each round; who begins changes from round to round."""
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        shift = number % len(workers)
        for worker in [*workers[shift:], *workers[:shift]]:
            seconds[worker.name].append(worker.ask("time", steps)["seconds"])
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median with its 95 % interval (by order statistics), quartiles and range."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    ordered, count = sorted(values), len(values)
    outside = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return {
        "median": statistics.median(values),
        "median_low": ordered[outside],
        "median_high": ordered[count - 1 - outside],
        "quartile_low": low,
        "quartile_high": high,
        "min": min(values),
        "max": max(values),
    }


def paired(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Ratios round by round: both of a pair saw the same machine."""
    return [value / other for value, other in zip(values, base, strict=True)]


def rounded(value: Any) -> Any:  # Any: JSON
    """Floats to six significant digits; the rest as it is."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {name: rounded(part) for name, part in value.items()}
        case list() | tuple():
            return [rounded(part) for part in value]
        case _:
            return value


def write(path: Path, record: Mapping[str, Any]) -> None:  # Any: JSON
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(dict(record)), indent=1, sort_keys=True) + "\n")
