"""One DVC stage in a process group of its own.

`python -m stillhouse_flows.stages.child ROOT STAGE RESULT.json [FOLDER...]` leaves RESULT.json and
one of these exit codes: 0 done, 3 the stage failed, 4 another process holds a lock, 5 DVC refused,
6 its inputs changed while it ran. FOLDERs are those that the code must come from.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.errors import StillhouseError
from stillhouse_flows.processes.hush import hush_dvc
from stillhouse_flows.processes.process_group import die_with_parent
from stillhouse_flows.processes.warm import APP, inherited, words_of
from stillhouse_flows.stages.outside import stale
from stillhouse_flows.workspace.sources import check_code

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

Status = Literal["ran", "unchanged", "restored", "failed"]
FAILED, LOCKED, REFUSED, CHANGED = 3, 4, 5, 6


@dataclass(frozen=True, kw_only=True)
class Out:
    """What a stage left: path relative to the root, DVC's hash, bytes."""

    path: str
    hash: str
    size: int


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How one stage ended. `key` covers its command, parameters and the hashes of what it reads."""

    stage: str
    status: Status
    key: str = ""
    seconds: float = 0.0
    outs: tuple[Out, ...] = ()
    error: str = ""
    exit_status: int | None = None  # of the stage's command where it failed; negative for a signal

    @property
    def name(self) -> str:
        """Within its pipeline."""
        return self.stage.rpartition(":")[2]


def result_from(text: str) -> StageResult:
    """The result that a child left."""
    record = json.loads(text)
    return StageResult(**record | {"outs": tuple(Out(**out) for out in record["outs"])})


class ChildError(Exception):
    """Carries the exit code to `main`."""

    def __init__(self, code: int, reason: str, *, exit_status: int | None = None) -> None:
        super().__init__(reason)
        self.code, self.exit_status = code, exit_status


def main(argv: Sequence[str]) -> int:
    root, address, target, *folders = argv
    die_with_parent()
    os.chdir(root)
    started, code = time.monotonic(), 0
    try:
        check_code(Path(root), folders)
        result = run_stage(Path(root), address)
    except ChildError as error:
        code = error.code
        result = _failed(address, error, error.exit_status)
    except StillhouseError as error:
        code = REFUSED
        result = _failed(address, error)
    record = asdict(result) | {"seconds": round(time.monotonic() - started, 3)}
    Path(target).write_text(json.dumps(record, indent=1) + "\n")
    return code


def _failed(address: str, error: Exception, exit_status: int | None = None) -> StageResult:
    return StageResult(stage=address, status="failed", error=str(error), exit_status=exit_status)


def run_stage(root: Path, address: str) -> StageResult:
    """Reproduce one stage, waiting for DVC's lock; raises ChildError."""
    from dvc.repo import Repo

    hush_dvc()
    _fork_commands()
    # without waiting, a finished training is thrown away when another DVC holds the lock at its end
    with Repo(str(root), _wait_for_lock=True) as repo:
        return reproduced(repo, address)


def reproduced(repo: "Repo", address: str) -> StageResult:
    """One stage as DVC leaves it; raises ChildError."""
    started, root = time.monotonic(), Path(repo.root_dir)
    _, before = _read(repo, address)
    watch = _watching(repo)
    done = _reproduce(repo, address)
    repo._reset()  # pyright: ignore[reportPrivateUsage]
    # DVC hashes what a stage reads again after it ran: its lock names inputs that were not used
    stage, after = _read(repo, address)
    outs = tuple(_out(repo, out) for out in stage.outs)
    moved = stale(root, [Path(dep.fs_path) for dep in stage.deps])
    if moved or after != before:
        what = ", ".join(moved) or "its inputs"
        raise ChildError(CHANGED, f"{address}: {what} changed while it ran; nothing it left counts")
    status: Status = ("restored" if watch() else "ran") if done else "unchanged"
    seconds = round(time.monotonic() - started, 3)
    return StageResult(stage=address, status=status, key=before, seconds=seconds, outs=outs)


def _fork_commands() -> None:
    """Have DVC's `stillhouse` commands forked from the zygote that this process is of."""
    warm = inherited()
    if warm is None:
        return
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    cold: Any = run._run  # pyright: ignore  # Any: DVC's functions are untyped

    def command(executable: Any, line: str, **options: Any) -> None:  # Any: as for Popen
        env, cwd = options["env"], Path(options["cwd"])
        words, me = words_of(line, env), os.getpid()
        if words is None or not (
            forked := warm.fork(APP, words, env=env, cwd=cwd, files=(1, 2), leader=me, learn=True)
        ):
            cold(executable, line, **options)
            return
        code = forked.wait()
        forked.close()
        if code:
            raise StageCmdFailedError(line, code if code > 0 else 128 - code)  # as a shell has it

    run._run = command  # pyright: ignore


def _reproduce(
    repo: Any, address: str
) -> bool:  # Any: DVC binds its methods in a way no checker sees
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.lock import LockError
    from dvc.stage.exceptions import StageCmdFailedError

    try:
        return bool(repo.reproduce(_absolute(repo, address), single_item=True))
    except DvcException as error:
        cause = error.__cause__ if isinstance(error, ReproductionError) else error
        reason = _one_line(cause or error)
        if isinstance(cause, StageCmdFailedError):
            status = re.search(r"exited with (-?\d+)$", reason)
            number = int(status[1]) if status else None
            raise ChildError(FAILED, reason, exit_status=number) from error
        if isinstance(cause, LockError):
            raise ChildError(LOCKED, reason) from error
        raise ChildError(REFUSED, reason) from error


def _watching(repo: "Repo") -> Any:  # Any: a callable; DVC's classes are untyped
    """Has `repo` answer whether its run cache gave a stage's outputs; DVC itself only logs it."""
    from dvc.stage.cache import StageCache

    restored: list[str] = []

    class Watched(StageCache):
        def restore(self, stage: Any, *args: Any, **options: Any) -> None:
            super().restore(stage, *args, **options)
            restored.append(stage.addressing)

    repo.stage_cache = Watched(repo)
    return lambda: bool(restored)


def _absolute(repo: "Repo", address: str) -> str:
    """DVC takes an address relative to the working directory."""
    return str(Path(repo.root_dir) / address)


def _one(repo: "Repo", address: str) -> "Stage":
    (stage,) = repo.stage.collect(_absolute(repo, address))
    return stage


def _read(repo: "Repo", address: str) -> tuple["Stage", str]:
    """The stage, and the sha256 of its command, parameters and dependencies as they are now."""
    from dvc.exceptions import DvcException
    from dvc.stage.serialize import to_single_stage_lockfile

    try:
        stage = _one(repo, address)
        stage.save_deps()
        lock = dict(to_single_stage_lockfile(stage))
    except DvcException as error:
        raise ChildError(REFUSED, _one_line(error)) from error
    lock.pop("outs", None)
    return stage, hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def _out(repo: "Repo", out: Any) -> Out:  # Any: DVC's Output is untyped
    path = Path(out.fs_path).relative_to(repo.root_dir).as_posix()
    size = (out.meta.size if out.meta else None) or 0
    return Out(path=path, hash=(out.hash_info.value if out.hash_info else None) or "", size=size)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
