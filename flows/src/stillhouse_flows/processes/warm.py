"""The flow's end of a zygote: processes that are forked from one which has imported torch.

Each is asked for by a message with the files it writes to. Where a fork cannot be (another system,
an environment that is read at import, a zygote that is gone) the caller starts an interpreter.
"""

import array
import atexit
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse_flows.processes.process_group import kill_group
from stillhouse_flows.processes.zygote import CLIENT, fixed

COLD = "STILLHOUSE_COLD"  # set to anything: every process of a flow starts an interpreter
# what DVC may be told to run without a shell
COMMAND = re.compile(r"stillhouse (stage|flow inputs)( [A-Za-z0-9_./@:=-]+)+")
KILLED = -9
# what a run's environment may have other than the process that began its zygote, beside what any
# fork may: it is set when the workspace is there, or is Prefect's alone
LATE = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "SHELL"}
PREFECT = "PREFECT_"
ZYGOTE = "stillhouse_flows.processes.zygote"
APP = "stillhouse.cli.app"
ROOM = 1024  # bytes of a command line that a fork may show as its own


@dataclass(kw_only=True, eq=False)
class Forked:
    """A process that a zygote has started for this one."""

    pid: int
    reply: socket.socket
    status: int | None = None

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        if self.status is None:  # no answer: the zygote is gone, and with it all it started
            self.status = int(_read(self.reply).get("status", KILLED))
        return self.status

    def close(self) -> None:
        """Free its id, to which signals may be sent until then."""
        self.reply.close()


@dataclass(frozen=True, kw_only=True)
class Warm:
    """One end of a zygote's socket."""

    client: socket.socket

    def fork(
        self,
        module: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        files: Sequence[int],
        leader: int = 0,
        learn: bool = False,
    ) -> Forked | None:
        """A process that runs `module.main(argv)`, its stdout and stderr the first two of the open
        `files`; None where it has to be an interpreter of its own.
        """
        job = {
            "module": module,
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "leader": leader,
            "learn": learn,
        }
        reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            sent = self._send(job, [theirs.fileno(), *files])
        pid = _read(reply).get("pid") if sent else None
        if pid is None:
            reply.close()
            return None
        return Forked(pid=pid, reply=reply)

    def move(self, recipe: str, *, env: Mapping[str, str], cwd: Path) -> None:
        """Have it import the code that `env` leads to: what it forks from now on is of that."""
        self._send({"place": {"recipe": recipe, "env": dict(env), "cwd": str(cwd)}}, [])

    def get_ready(self, recipe: str) -> None:
        """Have it read a recipe's code and import what a report needs, when it has nothing else to
        do.
        """
        self._send({"recipe": recipe}, [])

    def _send(self, record: Mapping[str, Any], files: Sequence[int]) -> bool:  # Any: JSON
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        try:
            self.client.sendmsg([json.dumps(record).encode()], extra)
        except OSError:  # it is gone, or the environment is too large for a message
            return False
        return True


def _read(reply: socket.socket) -> dict[str, Any]:  # Any: JSON
    try:
        text = reply.recv(1 << 16)
    except OSError:
        return {}
    return json.loads(text) if text else {}


def possible() -> bool:
    """Whether processes can be forked here as `Warm` does."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and not os.environ.get(COLD)


@dataclass(frozen=True, kw_only=True)
class _Started:
    """A zygote's process, which knows no code of a run yet, and what it was started with."""

    warm: Warm
    process: "subprocess.Popen[bytes]"
    env: Mapping[str, str]

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether it is there, and has read at import what a process of `env` would read."""
        return self.process.poll() is None and _read_early(self.env) == _read_early(env)

    def end(self) -> None:
        self.process.terminate()  # it ends what it started
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            kill_group(self.process.pid)
            self.process.wait()
        self.warm.client.close()


_ahead: list[_Started] = []  # at most one: begun before the run that will use it


def start_ahead() -> Warm | None:
    """Start the next run's zygote now, since imports take seconds: until there is a workspace, what
    it forks imports the code that this process has. None where none can be.
    """
    if not possible():
        return None
    if not _ahead:
        _ahead.append(_start(os.environ))
        atexit.register(_end_ahead)
    return _ahead[0].warm


def _end_ahead() -> None:
    while _ahead:
        _ahead.pop().end()


@contextlib.contextmanager
def zygote(recipe: str, *, env: Mapping[str, str], cwd: Path) -> Generator[Warm | None]:
    """A zygote of the code that `env` leads to, while the block runs; None where none can be."""
    if not possible():
        yield None
        return
    started = _taken(env) or _start(env)
    try:
        started.warm.move(recipe, env=env, cwd=cwd)
        yield started.warm
    finally:
        started.end()


def _taken(env: Mapping[str, str]) -> _Started | None:
    """The one that was begun before, where it fits."""
    try:
        started = _ahead.pop()
    except IndexError:  # runs side by side: another has taken it
        return None
    if started.fits(env):
        return started
    started.end()
    return None


def _start(env: Mapping[str, str]) -> _Started:
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = (server.fileno(), client.fileno())
    # of the code that this process has: the two ends have to understand each other
    here = {**env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with server:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", ZYGOTE, *map(str, ends), " " * ROOM],
            env=here,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=ends,
        )
    return _Started(warm=Warm(client=client), process=process, env=dict(env))


def _read_early(env: Mapping[str, str]) -> dict[str, str]:
    """What may decide something while packages of others are imported."""
    return {k: v for k, v in fixed(env).items() if k not in LATE and not k.startswith(PREFECT)}


def inherited() -> Warm | None:
    """The zygote that forked this process; None in an interpreter of its own."""
    number = os.environ.pop(CLIENT, "")
    return Warm(client=socket.socket(fileno=int(number))) if number else None


def words_of(command: str, env: Mapping[str, str]) -> list[str] | None:
    """The arguments of a command that is `stillhouse` of this interpreter, with a stage to run, and
    that no shell would read otherwise; None for any other.
    """
    own = Path(sys.executable).with_name("stillhouse")
    if not COMMAND.fullmatch(command) or shutil.which("stillhouse", path=env.get("PATH")) != str(
        own
    ):
        return None
    return shlex.split(command)[1:]


def main_of(command: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The module whose `main` does what a command does, and its arguments; None for a command that
    is not of this interpreter.
    """
    match command:
        case ["stillhouse", *words]:
            return APP, words
        case [interpreter, "-m", module, *words] if interpreter == sys.executable:
            return module, words
        case _:
            return None
