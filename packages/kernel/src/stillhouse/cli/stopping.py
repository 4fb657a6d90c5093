"""Ctrl-C and SIGTERM while a command runs: the first ends it in good order, a second at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While it is entered a signal raises KeyboardInterrupt, whichever of the two it is, and is
    remembered: a library may have swallowed the exception. Only in the main thread.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}  # Any: as `signal.signal` takes handlers

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal has come, whatever became of the first one."""
        if self.signal:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.signal:
            return  # the command is ending: another signal shall end it at once, without words
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(self.exit_code)  # what is left behind is removed by the next run
        self.signal = number
        raise KeyboardInterrupt


def quiet_end() -> None:
    """No signal adds a traceback to what a stopped process has printed; for its last moments."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
