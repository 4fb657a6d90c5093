"""What a reader decides by itself: one line for whoever watches, and for the run's record.

A reader calls `note`. Within a Make stage the line becomes an event of the stage and is kept in
its `<stage>.run.json` under "notes"; elsewhere logging prints it on stderr.
"""

import contextlib
import logging
from collections.abc import Callable, Generator

LOGGER = "stillhouse.data.notes"


def note(text: str) -> None:
    """Log one line: files left out, a part used for another."""
    logging.getLogger(LOGGER).warning(text)


class _Sink(logging.Handler):
    """Hands each line on."""

    def __init__(self, record_line: Callable[[str], None]) -> None:
        super().__init__()
        self.record_line = record_line

    def emit(self, record: logging.LogRecord) -> None:
        self.record_line(record.getMessage())


@contextlib.contextmanager
def noted(record_line: Callable[[str], None]) -> Generator[None]:
    """Lines of `note` go to `record_line` instead of stderr."""
    logger, sink = logging.getLogger(LOGGER), _Sink(record_line)
    logger.addHandler(sink)
    try:
        yield
    finally:
        logger.removeHandler(sink)
