"""The parent's side of a stage: its process group, log and result, and its end with the run's."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from stillhouse.errors import TRY_AGAIN, StillhouseError
from stillhouse.leftovers import temporary
from stillhouse_flows.processes.process_group import kill_group
from stillhouse_flows.processes.querying import ERROR
from stillhouse_flows.processes.warm import Forked, Warm, main_of
from stillhouse_flows.stages.child import FAILED, LOCKED, StageResult, result_from
from stillhouse_flows.stages.project import StageSpec

Say = Callable[[str], None]
LOCK_TRIES, LOCK_SECONDS = 6, 0.5


class StageFailed(StillhouseError):
    """A stage that ended badly. `crashed`: killed, so that another try may do better. `memory`: it
    may do better with smaller micro-batches. `again`: there is another try.
    """

    def __init__(self, reason: str, *, crashed: bool, memory: bool = False) -> None:
        super().__init__(reason)
        self.crashed, self.memory = crashed, memory
        self.again = False


def share_cores(workers: int) -> None:
    """Processes that this one starts have their part of the CPU's cores each, unless
    OMP_NUM_THREADS says how many threads: with more threads than cores they wait for each other.
    """
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


class Children:
    """The process groups of one run. `kill` ends them all, and no other starts after it.

    With a zygote (`warm`) those of this interpreter are forked from it where they can be.
    """

    def __init__(self, warm: Warm | None = None) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[str] | Forked] = set()
        self.closed = False
        self.warm = warm

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        say: Say,
        timeout: float | None = None,
        files: Sequence[int] = (),
    ) -> int:
        """Run a command in a group of its own, its lines to `say`; the exit code, negative for a
        signal. It inherits the open `files`, and its group ends when it does.
        """
        with self.lock:
            if self.closed:
                raise StageFailed("the run was stopped", crashed=False)
        # a zygote may be importing: `kill` waits for no answer of it
        child, output = self._start(command, env, cwd, files)
        with self.lock:
            self.running.add(child)
            if self.closed:
                kill_group(child.pid)
        if isinstance(child, subprocess.Popen):  # a zygote does it itself
            threading.Thread(target=_end_with, args=[child.pid], daemon=True).start()
        # a thread of Prefect's cannot be interrupted: the clock is kept here
        clock = threading.Timer(timeout, kill_group, [child.pid]) if timeout else None
        try:
            if clock:
                clock.start()
            with output:
                for line in output:
                    say(line.rstrip("\n"))
            return child.wait()
        finally:
            if clock:
                clock.cancel()
            kill_group(child.pid)  # what the command left behind in its group
            child.wait()
            with self.lock:
                self.running.discard(child)
            if isinstance(child, Forked):
                child.close()

    def _start(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, files: Sequence[int]
    ) -> "tuple[subprocess.Popen[str] | Forked, IO[str]]":
        """A process in a group of its own, and what it writes."""
        if self.warm and (found := main_of(command)):
            ours, theirs = os.pipe()
            module, words = found
            try:
                forked = self.warm.fork(
                    module, words, env=env, cwd=cwd, files=(theirs, theirs, *files)
                )
            finally:
                os.close(theirs)
            output = os.fdopen(ours, errors="replace")
            if forked:
                return forked, output
            output.close()
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(files),
        )
        assert child.stdout is not None
        return child, child.stdout

    def kill(self) -> None:
        """End every group at once."""
        with self.lock:
            self.closed = True
            for child in self.running:
                kill_group(child.pid)


def _end_with(leader: int) -> None:
    """End a group when its leader ends: what it started may hold its output open for hours."""
    with contextlib.suppress(ChildProcessError):  # waited for already
        os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
        kill_group(leader)


def run_stage(
    children: Children,
    spec: StageSpec,
    *,
    root: Path,
    env: Mapping[str, str],
    folders: Sequence[str],
    log: Path,
    say: Say,
    files: Sequence[int] = (),
) -> StageResult:
    """Run one stage in a child, waiting out other DVC processes' locks; its output is in `log`.

    The child inherits the open `files`. Raises StageFailed with the command's own error line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with temporary() as scratch, log.open("w") as stream:
        target = scratch / "result.json"
        tail = _Tail(stream.write, say)
        command = [
            sys.executable,
            "-m",
            "stillhouse_flows.stages.child",
            str(root),
            spec.address,
            str(target),
        ]
        code = LOCKED
        for attempt in range(LOCK_TRIES):
            code = children.run(
                [*command, *folders],
                env=env,
                cwd=root,
                say=tail,
                timeout=spec.timeout,
                files=files,
            )
            if code != LOCKED:
                break
            time.sleep(LOCK_SECONDS * 2**attempt)
        result = result_from(target.read_text()) if target.is_file() else None
    if result is not None and code == 0:
        return result
    seconds = time.monotonic() - started
    raise _failure(
        spec, code, result, tail, log, late=bool(spec.timeout and seconds >= spec.timeout)
    )


class _Tail:
    """Passes a command's lines on, and keeps its last words."""

    def __init__(self, write: Callable[[str], object], say: Say) -> None:
        self.write, self.say = write, say
        self.error = self.last = ""

    def __call__(self, line: str) -> None:
        self.write(f"{line}\n")
        self.say(line)
        if line.startswith(ERROR):
            self.error = line.removeprefix(ERROR)
        self.last = line.strip() or self.last


def _failure(
    spec: StageSpec, code: int, result: StageResult | None, tail: _Tail, log: Path, *, late: bool
) -> StageFailed:
    where = f"stage '{spec.name}'"
    if late:
        return StageFailed(
            f"{where}: not done after {spec.timeout:.0f} s; its log is {log}", crashed=False
        )
    if code < 0:
        name = signal.Signals(-code).name
        return StageFailed(f"{where}: killed by {name}; its log is {log}", crashed=True)
    if code == FAILED and tail.error:
        memory = result is not None and result.exit_status == TRY_AGAIN
        return StageFailed(f"{where}: {tail.error}", crashed=False, memory=memory)
    reason = "; ".join(filter(None, [result.error if result else "", tail.last]))
    status = (result.exit_status if result and code == FAILED else None) or 0
    # a signal: negative from the command itself, 128 and it from the shell around it
    crashed = status < 0 or status > 128
    return StageFailed(
        f"{where}: {reason or f'exit code {code}'}; its log is {log}", crashed=crashed
    )
