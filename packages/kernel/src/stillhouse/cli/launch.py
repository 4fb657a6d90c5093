"""A training stage spread over processes by torchrun; its progress and its error come back."""

import json
import os
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

from stillhouse.cli.progress import event_from
from stillhouse.errors import StillhouseError
from stillhouse.recipe import SHARD, Observer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stillhouse.cli.target import Target

ERROR = "error: "


class ChildError(RuntimeError):
    """A child that failed in a way no user caused; its traceback has been printed."""


def run_distributed(
    target: "Target",
    stage: str,
    *,
    device: str,
    nproc: int,
    observe: Observer,
    shard: "Sequence[str]" = (),
) -> None:
    """Run one stage of a target in `nproc` processes, with the target's own settings; each holds a
    part of the frozen roles in `shard`.

    Raises StillhouseError with the child's own error line, ChildError for any other failure.
    """
    command = [
        *(sys.executable, "-m", "stillhouse.cli.ranks", str(os.getpid())),
        *("--standalone", f"--nproc-per-node={nproc}"),
        *("-m", "stillhouse", "stage", target.name, stage, "--device", device, "--json"),
        # settings.json is of the last run, which may be another one by now
        *("--settings", json.dumps(target.settings.model_dump(mode="json"))),
    ]
    threads = max(1, (os.cpu_count() or 1) // nproc)
    environ = {"OMP_NUM_THREADS": str(threads)} | os.environ
    environ |= {SHARD: ",".join(shard)} if shard else {}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        # both pipes must be read, or a talkative child would block
        reader = threading.Thread(target=_collect, args=(child.stderr, lines), daemon=True)
        reader.start()
        try:
            for line in child.stdout:
                if event := event_from(line):
                    observe(event)
        except BaseException:
            child.terminate()  # torchrun passes it on to the ranks
            child.wait()
            raise
        reader.join()
    if child.returncode:
        _fail(stage, lines)


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


def _fail(stage: str, lines: list[str]) -> None:
    for line in lines:
        if line.startswith(ERROR):
            raise StillhouseError(line.removeprefix(ERROR).strip())
    sys.stderr.writelines(lines)
    raise ChildError(f"stage '{stage}': its processes failed; their errors are above")
