"""A process that has imported what a run's stages need, and forks them: none of them imports torch.

`python -P -m stillhouse_flows.processes.zygote SERVER CLIENT ROOM`: two ends of a socket pair that
the flow made, so nobody else can query (see `warm`); the spaces of ROOM are for what `ps` shows.

It imports, forks and waits, and does nothing else: no thread of a parallel region, no CUDA, no open
repository. At first it knows packages of others alone, and what it forks imports the code that is
installed. A message then says where the code of a run lies, and it imports that. A request is one
message of JSON with the files of the new process; its answers are the new process's id and, when it
has ended, how.

It ends with the flow, in whatever way that goes, and every group that it started with it.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse_flows.processes.process_group import PR_SET_PDEATHSIG, kill_group

LARGEST = 1 << 20  # bytes of a message
FILES = 16  # of a message, at most
PROBE_SECONDS = 20.0
# these act when a process starts to work; all others are read while modules are imported
FREE = {"CUDA_VISIBLE_DEVICES", "DVC_ROOT", "DVC_STAGE", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
OURS = "STILLHOUSE_"
# the end of the pair that a process which the zygote forked asks by
CLIENT = "STILLHOUSE_ZYGOTE"
# else a module that asks for a GPU while it is imported would set up CUDA, which no fork survives
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
# of others: the most of the time, and the same wherever the run's own code lies
FIRST = (
    *("torch", "pydantic", "pyarrow", "typer"),
    *("dvc.repo", "dvc.repo.reproduce", "dvc.stage.cache", "dvc.stage.run"),
    *("dvc.stage.serialize", "dvc.logger", "dvc.utils.serialize", "dvc_data.hashfile.cache"),
)
PRELOADED = (
    *("stillhouse.cli.app", "stillhouse.cli.target", "stillhouse.runs", "stillhouse.reach"),
    *("stillhouse_flows.runs.prepare", "stillhouse_flows.runs.registering"),
    *("stillhouse_flows.stages.child", "stillhouse_flows.stages.kept"),
)
# imported while others work
REPORT = ("stillhouse.report.pages", "stillhouse.report.terminal", "stillhouse.cli.tables")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one new process does."""

    module: str  # whose `main` takes the arguments and returns the exit code
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    leader: int = 0  # of the group it joins; 0 for one of its own
    learn: bool = False  # whether later ones will want what it imports


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process that is not waited for yet, and who wants to know of it."""

    pid: int
    leads: bool
    reply: socket.socket


@dataclass(kw_only=True)
class Zygote:
    """The processes, by the descriptor that signals their end, and the modules still to import."""

    server: socket.socket
    client: socket.socket
    env: Mapping[str, str]
    poll: Any = field(default_factory=select.poll)  # Any: a type without a name
    running: dict[int, Running] = field(default_factory=dict[int, Running])
    ended: dict[int, Running] = field(default_factory=dict[int, Running])  # by their reply's file
    learned: deque[str] = field(default_factory=deque[str])
    recipe: str = ""  # whose code is still to read
    safe: bool = True


def main(argv: Sequence[str]) -> int:
    server, client = (socket.socket(fileno=int(number)) for number in argv[:2])
    client.set_inheritable(False)
    _die_with(os.getppid(), signal.SIGTERM)
    zygote = Zygote(server=server, client=client, env=dict(os.environ))

    def end(_signal: int, _frame: object) -> None:
        _end(zygote)

    signal.signal(signal.SIGTERM, end)
    os.environ[NVML] = "1"
    for name in FIRST:
        importlib.import_module(name)
    _settle(zygote)
    zygote.poll.register(server, select.POLLIN)
    while True:
        job = _serve(zygote)
        if job is not None:  # this is the new process
            _finish(_work(zygote, *job))


def _settle(zygote: Zygote) -> None:
    """After imports: see that a fork works, and have collections in forks copy no page."""
    zygote.safe = zygote.safe and _probe()
    gc.collect()
    gc.freeze()


def _move(zygote: Zygote, *, recipe: str, env: Mapping[str, str], cwd: str) -> None:
    """Become a zygote of the code that `env` leads to, with what `recipe` needs imported."""
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    # this module was found where the flow's own code is, which may be another
    for name in [name for name in sys.modules if name.partition(".")[0] == "stillhouse_flows"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    os.environ.clear()
    os.environ.update({**env, NVML: "1"})
    zygote.env = dict(env)
    os.chdir(cwd)
    _preload(recipe)
    _settle(zygote)


def _preload(recipe: str) -> None:
    from stillhouse.domain import recipe_function

    for name in PRELOADED:
        importlib.import_module(name)
    recipe_function(recipe)


def warm_code(recipe: str) -> None:
    """Read the code that stages of a recipe can reach: the half of computing their keys."""
    from stillhouse.code.sources import sources
    from stillhouse.domain import recipe_function

    code = sources().code
    package = recipe_function(recipe).__module__.partition(".")[0]
    code.digest(code.reached([*code.whole(package), "stillhouse.runs"]))


def _probe() -> bool:
    """Whether a fork can compute: a library that has begun a parallel region, or CUDA, would have
    it wait for ever, or fail.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            os.environ.pop(NVML, None)
            import torch

            torch.ones(512, 512).mm(torch.ones(512, 512)).add(1).sum().item()
            torch.arange(1 << 18, dtype=torch.float32).exp().sum().item()
            if torch.cuda.is_available():
                torch.cuda.init()
            code = 0
        os._exit(code)
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], PROBE_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(descriptor)


def _serve(zygote: Zygote) -> tuple[Job, list[int]] | None:
    """One turn: ends, then a request, else one more module; in a new process alone, its job."""
    busy = bool(zygote.learned or zygote.recipe)
    ready: list[tuple[int, int]] = zygote.poll.poll(0 if busy else None)
    for number, _ in ready:
        if number in zygote.running:
            _report(zygote, number)
        elif number in zygote.ended:
            _reap(zygote, number)
    if any(number == zygote.server.fileno() for number, _ in ready):
        return _request(zygote)
    if busy and not ready:
        _learn(zygote)
    return None


def _request(zygote: Zygote) -> tuple[Job, list[int]] | None:
    found, files = _receive(zygote.server)
    message: Any = found  # Any: JSON
    if "modules" in message:
        zygote.learned.extend(name for name in message["modules"] if name not in sys.modules)
        return None
    if "place" in message:
        _move(zygote, **message["place"])
        return None
    if "recipe" in message:
        zygote.recipe = message["recipe"]
        zygote.learned.extend(REPORT)
        return None
    reply, *files = files
    words: Any = {**message, "argv": tuple(message["argv"])}
    job = Job(**words)
    while job.learn and (zygote.learned or zygote.recipe):
        _learn(zygote)
    with socket.socket(fileno=reply) as answer:
        refused = _refusal(zygote, job)
        if refused or not (pid := _fork(job)):
            if not refused:
                return job, files
            _send(answer, {"cold": refused})
        else:
            _watch(zygote, pid, job, answer.dup())
    for number in files:
        os.close(number)
    return None


def _receive(server: socket.socket) -> tuple[dict[str, Any], list[int]]:  # Any: JSON
    numbers = array.array("i")
    text, extra, _, _ = server.recvmsg(LARGEST, socket.CMSG_SPACE(FILES * numbers.itemsize))
    if not text:
        os._exit(0)
    for _, _, data in extra:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return json.loads(text), list(numbers)


def _send(reply: socket.socket, record: Mapping[str, object]) -> None:
    with suppress(OSError):  # whoever asked may be gone
        reply.send(json.dumps(record).encode())


def _refusal(zygote: Zygote, job: Job) -> str:
    """Why the job needs an interpreter of its own; empty where it does not."""
    if not zygote.safe:
        return "a fork cannot compute here"
    # whoever asked was killed since: nobody would end what joined a group of the dead
    if job.leader and all(each.pid != job.leader for each in zygote.running.values()):
        return "its group has ended"
    mine, theirs = fixed(zygote.env), fixed(job.env)
    differ = [name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)]
    return f"{', '.join(sorted(differ))} differs" if differ else ""


def fixed(env: Mapping[str, str]) -> dict[str, str]:
    """What of an environment may be read while modules are imported."""
    return {k: v for k, v in env.items() if k not in FREE and not k.startswith(OURS)}


def _fork(job: Job) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _die_with(parent, signal.SIGKILL)
        try:
            os.setpgid(0, job.leader)
        except OSError:  # its leader is gone
            os._exit(1)
    else:
        with suppress(OSError):  # the new process has done it, or is gone
            os.setpgid(pid, job.leader or pid)
    return pid


def _watch(zygote: Zygote, pid: int, job: Job, reply: socket.socket) -> None:
    number = os.pidfd_open(pid)
    zygote.running[number] = Running(pid=pid, leads=not job.leader, reply=reply)
    zygote.poll.register(number, select.POLLIN)
    _send(reply, {"pid": pid})


def _report(zygote: Zygote, number: int) -> None:
    """Report how a process ended; its id stays taken until its parent has the report."""
    ended = zygote.running.pop(number)
    zygote.poll.unregister(number)
    os.close(number)
    if ended.leads:
        kill_group(ended.pid)  # what it left behind may hold its output open for hours
    found = os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    exited = found.si_code == os.CLD_EXITED
    _send(ended.reply, {"status": found.si_status if exited else -found.si_status})
    zygote.ended[ended.reply.fileno()] = ended
    zygote.poll.register(ended.reply, select.POLLIN)


def _reap(zygote: Zygote, number: int) -> None:
    ended = zygote.ended.pop(number)
    zygote.poll.unregister(number)
    ended.reply.close()
    os.waitpid(ended.pid, 0)


def _learn(zygote: Zygote) -> None:
    """Do one thing that forks need not do then: read the recipe's code, or import a module; after
    the last, see that a fork still works.
    """
    # whoever needs the keys will say what is wrong; some modules are known by another name only
    with suppress(Exception):
        if zygote.recipe:
            recipe, zygote.recipe = zygote.recipe, ""
            warm_code(recipe)
        else:
            importlib.import_module(zygote.learned.popleft())
    if not zygote.learned:
        zygote.safe = zygote.safe and _probe()
        gc.freeze()


def _end(zygote: Zygote) -> None:
    for each in zygote.running.values():
        if each.leads:
            kill_group(each.pid)
    os._exit(0)


def _die_with(parent: int, number: signal.Signals) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _work(zygote: Zygote, job: Job, files: Sequence[int]) -> int:
    """Become the process that the job describes, as a fresh interpreter would be, and do it."""
    before = set(sys.modules)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    zygote.server.close()
    for number in zygote.running:
        os.close(number)
    for each in (*zygote.running.values(), *zygote.ended.values()):
        each.reply.close()
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    for number in files[:2]:
        os.close(number)
    os.environ.clear()
    os.environ.update(job.env)
    if not job.leader:
        os.environ[CLIENT] = str(zygote.client.fileno())
    os.chdir(job.cwd)
    sys.argv = [job.module, *job.argv]
    _rename([sys.executable, "-m", job.module, *job.argv])
    # what is drawn without a seed is each process's own
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()
    try:
        return _call(job)
    finally:
        if job.learn:
            new = sorted(set(sys.modules) - before)
            with suppress(OSError):
                zygote.client.send(json.dumps({"modules": new}).encode())


def _rename(words: Sequence[str]) -> None:
    """Have `ps` show these words, as far as there is room, in place of the zygote's own."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        text = "\0".join(words).encode()[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _call(job: Job) -> int:
    try:
        code: Any = importlib.import_module(job.module).main(list(job.argv))
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        return 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


def _finish(code: int) -> None:
    """End as an interpreter does, but for taking itself to pieces."""
    import atexit

    with suppress(BaseException):
        threading._shutdown()  # pyright: ignore
        atexit._run_exitfuncs()  # pyright: ignore
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
