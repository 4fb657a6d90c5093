"""What DVC's run cache still holds of a pipeline, brought back by one process for all of it.

`python -m stillhouse_flows.stages.kept ROOT STAGES.json RESULTS [FOLDER...]` writes a line of
RESULTS for each stage it brings back. A stage whose command would have to run is left, with all
that wait for it, to a process of its own (child.py).
"""

import contextlib
import copy
import json
import os
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.errors import StillhouseError
from stillhouse.leftovers import temporary
from stillhouse_flows.processes.hush import hush_dvc
from stillhouse_flows.processes.process_group import die_with_parent
from stillhouse_flows.stages.child import (
    REFUSED,
    ChildError,
    StageResult,
    reproduced,
    result_from,
)
from stillhouse_flows.stages.process import Children, Say
from stillhouse_flows.stages.project import INPUTS, StageSpec
from stillhouse_flows.workspace.sources import check_code


class _WouldRunError(Exception):
    """DVC has no earlier result of a stage."""


def bring_back(root: Path, stages: Sequence[StageSpec]) -> Iterator[StageResult]:
    """Each stage that DVC finds done, or has in its run cache, once its outputs are there. The
    stage `inputs`, which says what the others read, must have run.
    """
    from dvc.repo import Repo

    hush_dvc()
    # DVC takes the paths of its run cache from the working directory
    with (
        chdir(root),
        _no_commands(),
        _parsed_once(),
        Repo(str(root), _wait_for_lock=True) as repo,
    ):
        done = {INPUTS}
        for spec in stages:
            if spec.name == INPUTS or not done.issuperset(spec.upstream):
                continue
            try:
                result = reproduced(repo, spec.address)
            except ChildError:  # a process of its own will say what is wrong, if anything is
                continue
            done.add(spec.name)
            yield result


@contextlib.contextmanager
def _no_commands() -> Generator[None]:
    """Have DVC stop where it would run a stage's command."""
    from dvc.stage import run

    def refuse(*_: Any, **__: Any) -> None:  # Any: DVC's functions are untyped
        raise _WouldRunError

    cold = run._run  # pyright: ignore
    run._run = refuse  # pyright: ignore
    try:
        yield
    finally:
        run._run = cold  # pyright: ignore


@contextlib.contextmanager
def _parsed_once() -> Generator[None]:
    """Have DVC parse and check a file again only where it changed: of a pipeline of hundreds of
    stages it would spend nearly all its time on that, three times a stage.
    """
    from dvc.dvcfile import FileMixin

    cold: Any = FileMixin._load_yaml  # pyright: ignore  # Any: DVC's functions are untyped
    known: dict[str, tuple[str, Any]] = {}

    def load(file: Any, **options: Any) -> Any:
        if options:  # to be written back, with its comments
            return cold(file, **options)
        text = Path(file.path).read_text(encoding="utf-8")
        if file.path not in known or known[file.path][0] != text:
            data, text = cold(file)
            known[file.path] = text, data
        return copy.deepcopy(known[file.path][1]), text

    FileMixin._load_yaml = load  # pyright: ignore
    try:
        yield
    finally:
        FileMixin._load_yaml = cold  # pyright: ignore


class Kept:
    """The results that need no stage to run, found when the first of them is wanted."""

    def __init__(
        self,
        children: Children,
        stages: Sequence[StageSpec],
        *,
        root: Path,
        env: Mapping[str, str],
        folders: Sequence[str],
    ) -> None:
        self.children, self.stages, self.root = children, stages, root
        self.env, self.folders = env, folders
        self.lock = threading.Lock()  # the first to come looks for all
        self.found: dict[str, StageResult] | None = None

    def take(self, stage: str, say: Say) -> StageResult | None:
        """The result of a stage whose outputs are back; None once, and where it has to run."""
        with self.lock:
            if self.found is None:
                self.found = self._find(say)
            return self.found.pop(stage, None)

    def _find(self, say: Say) -> dict[str, StageResult]:
        """As far as the process got: what is missing is looked at by each stage's own."""
        with temporary() as scratch:
            stages, results = scratch / "stages.json", scratch / "results"
            stages.write_text(json.dumps([asdict(spec) for spec in self.stages]))
            module = "stillhouse_flows.stages.kept"
            words = [str(self.root), str(stages), str(results), *self.folders]
            command = [sys.executable, "-m", module, *words]
            self.children.run(command, env=self.env, cwd=self.root, say=say)
            lines = results.read_text().splitlines(keepends=True) if results.is_file() else []
        found = [result_from(line) for line in lines if line.endswith("\n")]
        return {result.name: result for result in found}


def main(argv: Sequence[str]) -> int:
    root, stages, target, *folders = argv
    die_with_parent()
    os.chdir(root)
    try:
        check_code(Path(root), folders)
    except StillhouseError:  # the first stage's own process says it
        return REFUSED
    specs = [StageSpec(**record) for record in json.loads(Path(stages).read_text())]
    with Path(target).open("w", buffering=1) as stream:
        for count, result in enumerate(bring_back(Path(root), specs), 1):
            stream.write(json.dumps(asdict(result)) + "\n")
            print(f"{count} of {len(specs)} stages are kept", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
