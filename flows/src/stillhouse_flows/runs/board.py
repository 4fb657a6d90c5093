"""What a run shows on a terminal or in a log: a line a finished stage, and of the stages that go
at most one in ten seconds.
"""

import threading
import time
from collections.abc import Callable

QUIET_SECONDS = 10.0


def say(text: str) -> None:
    """Print at once: a log is followed while it grows."""
    print(text, flush=True)


class Board:
    """Stages report from several threads; their lines never mix."""

    def __init__(self, total: int, *, write: Callable[[str], None] = say) -> None:
        self.total, self.write = total, write
        self.done = 0
        self.lock = threading.Lock()
        self.noted: dict[str, float] = {}

    def note(self, stage: str, line: str) -> None:
        """Pass on a line of a running stage, when its last one is ten seconds old."""
        now = time.monotonic()
        with self.lock:
            if now - self.noted.setdefault(stage, now) >= QUIET_SECONDS:
                self.noted[stage] = now
                self.write(f"           {line}")

    def finish(self, stage: str, outcome: str) -> None:
        """Say how a stage ended."""
        with self.lock:
            self.done += 1
            self.write(f"  {self.done:>3}/{self.total}  {stage:<22} {outcome}")
