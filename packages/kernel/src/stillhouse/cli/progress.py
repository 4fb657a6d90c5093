"""What a run shows: bars on a terminal, calm plain lines in a log, JSON for another program."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from stillhouse.cli.tables import duration
from stillhouse.recipe import NOTE, Event

if TYPE_CHECKING:
    from rich.progress import TaskID

QUIET_SECONDS = 5.0
# notes of the kernel that are shown in another way than word by word
CHECKPOINT, DONE, RESUMED, UP_TO_DATE = "checkpoint", "done", "resumed", "up to date"
SKIPPED = "skipped: up to date"


class Display(Protocol):
    """An observer of stages that begin one after the other."""

    def __call__(self, event: Event) -> None: ...
    def begin(self, stage: str) -> None: ...


def losses(scores: Mapping[str, float]) -> str:
    """The losses of an event ("loss 0.4312", or one a phase); all its scores where it has none."""
    chosen = {k: v for k, v in scores.items() if k == "loss" or k.endswith("/loss")} or scores
    return " ".join(f"{name} {value:.4f}" for name, value in chosen.items())


class Rate:
    """Samples a second since a stage's first step: neither loading nor a resumed part counts.

    `batches` maps a training stage to its samples a step.
    """

    def __init__(self, batches: Mapping[str, int]) -> None:
        self.batches = batches
        self.start: tuple[float, int] | None = None

    def restart(self) -> None:
        self.start = None

    def __call__(self, event: Event) -> str:
        """ "812 samples/s" by this step; empty until there is something to say."""
        batch = self.batches.get(event.stage, 0)
        if event.text or not batch:  # counts something else than steps
            return ""
        now = time.monotonic()
        if self.start is None:
            self.start = (now, event.done)
        began, first = self.start
        if event.done <= first or now <= began:
            return ""
        return f"{(event.done - first) * batch / (now - began):.0f} samples/s"


class Lines:
    """Plain lines: every note; progress at most once in `every` seconds, and when complete."""

    def __init__(
        self,
        batches: Mapping[str, int],
        *,
        every: float = QUIET_SECONDS,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.every, self.write = every, write
        self.rate = Rate(batches)
        self.began = self.last = time.monotonic()

    def begin(self, stage: str) -> None:
        self.rate.restart()
        self.began = self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.text == DONE:
            self.write(f"stage {event.stage}: done in {duration(now - self.began)}")
        elif event.text == UP_TO_DATE:
            self.write(f"stage {event.stage}: {SKIPPED}")
        elif event.total == 0 or event.text.startswith(RESUMED):
            self.rate.restart()
            self.write(f"stage {event.stage}: {event.text}")
        elif event.text != CHECKPOINT:
            self._count(event, now)

    def _count(self, event: Event, now: float) -> None:
        rate = self.rate(event)
        if event.done >= event.total or now - self.last >= self.every:
            self.last = now
            words = (
                event.text or "step",
                f"{event.done}/{event.total}",
                losses(event.scores),
                rate,
            )
            self.write(f"stage {event.stage}: {' '.join(filter(None, words))}")


class Bars:
    """One line a stage on a terminal: bar, step, losses, samples a second, time left."""

    def __init__(self, batches: Mapping[str, int]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.rate = Rate(batches)
        self.tasks: dict[str, TaskID] = {}
        self.began = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(compact=True),
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def begin(self, stage: str) -> None:
        self.rate.restart()
        self.began = time.monotonic()
        self.tasks[stage] = self.bars.add_task(stage, total=None, detail="")

    def __call__(self, event: Event) -> None:
        task = self.tasks[event.stage]
        if event.text == DONE:
            self._complete(task, f"done in {duration(time.monotonic() - self.began)}")
        elif event.text.startswith(RESUMED):
            self.rate.restart()
            self.bars.reset(task, total=event.total, completed=event.done, detail=event.text)
        elif event.text == UP_TO_DATE:
            self._complete(task, SKIPPED)
        elif event.text.startswith(NOTE):
            text = f"stage {event.stage}: {event.text}"
            self.bars.console.print(text, markup=False, soft_wrap=True)  # paths stay whole
        elif not event.total:
            self.bars.update(task, detail=event.text)
        elif event.text != CHECKPOINT:
            text = event.text or losses(event.scores)
            words = (f"{event.done}/{event.total}", text, self.rate(event))
            detail = " ".join(filter(None, words))
            self.bars.update(task, total=event.total, completed=event.done, detail=detail)

    def _complete(self, task: "TaskID", note: str) -> None:
        shown = self.bars.tasks[self.bars.task_ids.index(task)]
        total = shown.total or 1
        detail = ", ".join(filter(None, (str(shown.fields["detail"]), note)))
        self.bars.update(task, total=total, completed=total, detail=detail)


def json_line(event: Event) -> None:
    """Print the event as one line of JSON, at once."""
    print(json.dumps(asdict(event)), flush=True)


class JsonLines:
    """Every event as a line of JSON, for another program."""

    def begin(self, stage: str) -> None:
        pass

    def __call__(self, event: Event) -> None:
        json_line(event)


def event_from(line: str) -> Event | None:
    """The event of a `json_line`; None for any other text."""
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None
