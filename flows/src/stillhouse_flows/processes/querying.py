"""A question to a process of its own: one request in JSON, one text or one error line back."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile

from stillhouse.errors import StillhouseError
from stillhouse_flows.processes.warm import Warm

ERROR = "error: "


def answer(make: Callable[[], str]) -> int:
    """The other end of `query`: print what `make` returns, or its error line; the exit code."""
    try:
        print(make())
    except StillhouseError as error:
        print(f"{ERROR}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def query(
    module: str, request: str, *, env: Mapping[str, str], cwd: Path, warm: Warm | None = None
) -> str:
    """What `python -m module REQUEST` prints; raises StillhouseError with its own error line."""
    code, printed, complained = _answer_of(module, request, env, cwd, warm)
    if code == 0:
        return printed
    lines = complained.strip().splitlines() or [f"exit code {code}"]
    named = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if not named:
        sys.stderr.write(complained)
    raise StillhouseError((named or [f"{module}: {lines[-1]}"])[-1])


def _answer_of(
    module: str, request: str, env: Mapping[str, str], cwd: Path, warm: Warm | None
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        files = (out.fileno(), err.fileno())
        forked = warm.fork(module, [request], env=env, cwd=cwd, files=files) if warm else None
        if forked:
            code = forked.wait()
            forked.close()
        else:
            command = [sys.executable, "-m", module, request]
            code = subprocess.run(
                command, cwd=cwd, env=dict(env), stdout=out, stderr=err, check=False
            ).returncode
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()
