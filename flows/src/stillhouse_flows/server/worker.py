"""A worker's lines: each with its time, in a file that stays, and an outage in one line.

Prefect's worker tells of a server that does not answer by a traceback at every poll.
"""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import IO

from stillhouse_flows.processes.process_group import die_with_parent, kill_group

TRACEBACK = "Traceback (most recent call last):"
# between two tracebacks of one outage
LINKS = ("During handling of the above", "The above exception was")
# what Prefect says around them
AROUND = ("Failed the last", "Examples of recent errors", "Backing off due to")
END_SECONDS = 30.0  # to tell the server
LARGEST = 8 * 2**20  # bytes; then the file before it goes


def log_file(home: Path, pool: str) -> Path:
    """Where the lines of a pool's worker are kept."""
    return home / "logs" / f"worker-{pool.replace('/', '-')}.log"


def condensed(lines: Iterable[str]) -> Iterator[str]:
    """The lines without empty ones, of tracebacks the last line alone, and none twice in a row."""
    inside, error, last = False, "", ""
    for line in map(str.rstrip, lines):
        if TRACEBACK in line or line.startswith(LINKS):
            inside, error = True, ""
        # frames, their code and the rulers of exception groups
        elif not line or (inside and line[0] in " |+"):
            continue
        elif inside:
            inside, error = False, line
        else:
            for each in (error, "" if line.startswith(AROUND) else line):
                if each and each != last:
                    last = each
                    yield each
            error = ""
    if error and error != last:
        yield error


def stamped(line: str, now: datetime) -> str:
    """The line with the local time."""
    return f"{now.astimezone().isoformat(sep=' ', timespec='seconds')}  {line}"


def relay(stream: IO[str], file: Path, say: Callable[[str], None]) -> None:
    """Pass a worker's lines on until it ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for line in condensed(stream):
        text = stamped(line, datetime.now().astimezone())
        say(text)
        if file.is_file() and file.stat().st_size > LARGEST:
            file.replace(file.with_suffix(".log.1"))
        with file.open("a") as out:
            out.write(f"{text}\n")


@contextmanager
def condensing() -> Generator[None]:
    """What the block prints, line by line as `condensed` has it."""
    target, (read, write) = sys.stdout, os.pipe()

    def pass_on() -> None:
        with os.fdopen(read, errors="replace") as lines:
            for line in condensed(lines):
                print(line, file=target, flush=True)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        with (
            os.fdopen(write, "w", buffering=1) as out,
            redirect_stdout(out),
            warnings.catch_warnings(),
        ):
            # Prefect's own, where it stops for an outage
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        thread.join(END_SECONDS)


def run_worker(words: Sequence[str], file: Path) -> int:
    """Run Prefect's worker until it ends, or until this process is stopped; its exit code."""
    child = subprocess.Popen(
        [sys.executable, "-m", "stillhouse_flows.server.worker", *words],
        env={**os.environ, "COLUMNS": "1000"},  # no line is broken
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches it once, by this process
    )
    try:
        assert child.stdout is not None
        relay(child.stdout, file, lambda text: print(text, flush=True))
        return child.wait()
    finally:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            kill_group(child.pid)
            child.wait()


def main(words: Sequence[str]) -> None:
    """Become Prefect's worker, which goes when the process that started it goes."""
    die_with_parent()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", *words])


if __name__ == "__main__":
    main(sys.argv[1:])
