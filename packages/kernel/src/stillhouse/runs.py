"""Runs: one folder a stage, written aside and renamed, skipped while its key holds, safe for two
processes.

runs/<domain>/<recipe>/<variant>/settings.json
                                 <stage>/stage.json      input key and output digests: reproducible
                                 bytes only
                                 <stage>/<port>/...      the artifacts
                                 <stage>.run.json        seconds, environment, measurements
                                 <stage>.scores.json     scores of an evaluation
                                 <stage>.main.json       the first of them: DVC's metric
                                 <stage>.curves.tsv      loss terms by step of a training
"""

import contextlib
import datetime
import json
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse import parallel
from stillhouse.artifact import Artifact
from stillhouse.code import builds_in, changed_code, code_key, stage_modules, value_code
from stillhouse.digest import digest, reported
from stillhouse.environment import environment
from stillhouse.errors import ContractError, CorruptArtifact, MissingData, StaleInput
from stillhouse.files import storage, write_text, writing
from stillhouse.heap import allocate_as_the_system, trim_grown
from stillhouse.inputs import OPEN_BUILTIN, check_present, outside
from stillhouse.leftovers import remove_asides, remove_temporaries, temporary
from stillhouse.places import home, project_root
from stillhouse.recipe import OUTSIDE, Context, Event, Observer, Recipe, Result, Stage, silent
from stillhouse.records import StageRecord, differs, record_of
from stillhouse.settings import Settings
from stillhouse.training import Watch
from stillhouse.trusted import covered
from stillhouse.variants import same_elsewhere, take

__all__ = [
    "Runs",
    "StageRecord",
    "finished",
    "home",
    "input_of",
    "project_root",
    "run_recipe",
    "run_stage",
    "stage_key",
]
MIB = 1 << 20
SLOW_TO_READ = 512 * MIB  # bytes of inputs, from which on hashing them is reported


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where one variant of a recipe runs, on what, and who watches."""

    root: Path
    recipe: str  # "domain/recipe"
    variant: str
    device: str = "cpu"
    micro_batches: int = 1  # of each training batch, where memory does not suffice for all of it
    shard: tuple[str, ...] = ()  # frozen roles of which each process holds a part
    engine: str = "local"  # of the federations among the stages
    observe: Observer = silent
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    watch: Watch | None = None  # who watches each step of a training

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.recipe / self.variant

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    def note_settings(self, settings: Settings) -> None:
        """Write settings.json, from which RECIPE@variant is found again."""
        record = {
            "recipe": self.recipe,
            "variant": self.variant,
            "scale": settings.scale,
            "settings": settings.overrides(),
        }
        write_text(self.settings, json.dumps(record, indent=1, sort_keys=True) + "\n")


def finished(stage: Stage, runs: Runs) -> StageRecord | None:
    """The record of a stage that has run; None where it has not. Raises CorruptArtifact for an
    unreadable record.
    """
    return record_of(runs.folder / stage.name)


def run_stage(recipe: Recipe, stage: Stage, runs: Runs) -> Mapping[str, Artifact]:
    """Run one stage, or skip it while its key holds, or take it from another variant of the recipe
    where it has the same key; returns its outputs by port.

    The key covers the stage, the digests of its inputs and the code it can reach (stillhouse.code).
    Raises MissingData when an input's stage has not run, CorruptArtifact when an input's bytes
    differ from their digest, StaleInput when data or code changed while the stage ran (nothing it
    left is kept), StorageError when the file system refuses.
    """
    rank, nproc = parallel.world()
    if nproc > 1:
        parallel.join(runs.device)
    allocate_as_the_system()
    with _held(_stage_lock(stage, runs, rank), stage, runs):
        if rank == 0:  # whoever held the lock before is gone
            remove_asides(runs.folder, stage.name)
            remove_temporaries()
        with reported(_inputs_read(stage, runs)):
            found = _found(recipe, stage, runs)
        key = found.key
        if key != parallel.agree(key):
            raise StaleInput(
                f"stage '{stage.name}': data or code changed while its processes began"
            )
        done = finished(stage, runs)
        if parallel.agree(done is not None and done.key == key and done.whole):
            runs.observe(Event(stage=stage.name, text="up to date"))
            return done.outputs if done else {}
        if parallel.agree(rank == 0 and _taken(stage, key, runs)):
            taken = finished(stage, runs)
            return taken.outputs if taken else {}
        stage_run = _StageRun(
            runs=runs,
            stage=stage,
            inputs=found.inputs,
            key=key,
            modules=found.modules,
            builds=found.builds,
            rank=rank,
            nproc=nproc,
        )
        outputs = stage_run.run()
        # the other ranks must not look for what rank 0 has not written yet
        parallel.agree(None)
        trim_grown()
        return outputs


def _inputs_read(stage: Stage, runs: Runs) -> Callable[[int, int], None]:
    """Reports to observers of the run how much of many bytes was hashed."""

    def report(read: int, size: int) -> None:
        if size >= SLOW_TO_READ:
            total = max(1, size // MIB)
            done = total if read == size else min(read // MIB, total - 1)  # whole once
            text = "MiB of its inputs read"
            runs.observe(Event(stage=stage.name, text=text, done=done, total=total))

    return report


def _taken(stage: Stage, key: str, runs: Runs) -> bool:
    """Whether the stage was taken from another variant that has it by the same key."""
    with storage(runs.folder):
        source = take(runs.folder, stage.name, key)
    if source:
        runs.observe(Event(stage=stage.name, text=f"taken from {source}, where it is the same"))
    return bool(source)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a stage would run on: its inputs by port, the modules it can reach, and its key."""

    inputs: Mapping[str, Artifact]
    builds: tuple[str, ...]
    modules: frozenset[str]
    key: str


def _found(
    recipe: Recipe, stage: Stage, runs: Runs, before: Mapping[str, StageRecord] | None = None
) -> _Found:
    inputs = {port: input_of(recipe, ref, runs, before) for port, ref in stage.inputs.items()}
    builds = builds_of(stage, inputs)
    modules = stage_modules(recipe, stage, builds)
    digests = {port: artifact.digest for port, artifact in inputs.items()}
    key = stage_key(stage, digests, code_key(modules))
    return _Found(inputs=inputs, builds=builds, modules=modules, key=key)


def already(
    recipe: Recipe, stage: Stage, runs: Runs, before: Mapping[str, StageRecord]
) -> StageRecord | None:
    """What `run_stage` would skip or take from another variant, None where it would run the stage.
    What the stages that it reads have left is in `before`, by name. Raises as `run_stage` does for
    inputs that cannot be read.
    """
    done, key = finished(stage, runs), _found(recipe, stage, runs, before).key
    if done is not None and done.key == key and done.whole:
        return done
    same = next(same_elsewhere(runs.folder, stage.name, key), None)
    return None if same is None else record_of(same)


def run_recipe(recipe: Recipe, runs: Runs) -> None:
    """Run every stage of a recipe in order, skipping what is up to date. Raises MissingData before
    the first where a file that any of them reads is missing.
    """
    check_present(outside_refs(recipe), runs.root)
    for stage in recipe.stages:
        run_stage(recipe, stage, runs)


def outside_refs(recipe: Recipe) -> list[str]:
    """What the stages read from outside the recipe, each once, in order."""
    refs = (ref for stage in recipe.stages for ref in stage.inputs.values())
    return list(dict.fromkeys(ref for ref in refs if ref.startswith(OUTSIDE)))


def builds_of(stage: Stage, inputs: Mapping[str, Artifact]) -> tuple[str, ...]:
    """The modules that models from outside the recipe name as their builders."""
    paths = [inputs[port].path for port, ref in stage.inputs.items() if ref.startswith(OUTSIDE)]
    return tuple(sorted({name for path in paths for name in builds_in(path)}))


def stage_key(stage: Stage, digests: Mapping[str, str], code: str) -> str:
    """The key of a stage: what it says, its inputs' digests by port, and the code it can reach."""
    return digest({"stage": stage, "inputs": digests, "code": code})


def input_of(
    recipe: Recipe, ref: str, runs: Runs, before: Mapping[str, StageRecord] | None = None
) -> Artifact:
    """What a port's reference names; raises MissingData or CorruptArtifact as `run_stage` does.
    Records in `before`, by stage, stand for what is in the run's folder.
    """
    if ref.startswith(OUTSIDE):
        return outside(ref, runs.root)
    name, _, port = ref.partition(".")
    record = (before or {}).get(name) or finished(recipe.stage(name), runs)
    if record is None or port not in record.outputs:
        raise MissingData(
            f"'{ref}': stage '{name}' has not run. Run: stillhouse run {runs.recipe}@{runs.variant}"
        )
    artifact = record.outputs[port]
    if differs(artifact):
        raise CorruptArtifact(
            f"{artifact.path}: its bytes differ from the digest in stage.json; "
            f"delete {runs.folder / name} and run stillhouse run {runs.recipe}@{runs.variant} again"
        )
    return artifact


def _stage_lock(stage: Stage, runs: Runs, rank: int) -> FileLock:
    folder = runs.folder / ".locks"
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # torchrun's other ranks belong to the process that holds the lock
        return FileLock(
            folder / (f"{stage.name}.lock" if rank == 0 else f"{stage.name}.{rank}.lock")
        )


@contextlib.contextmanager
def _held(lock: FileLock, stage: Stage, runs: Runs) -> Generator[None]:
    """The lock, with a word to the observer when another process has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        runs.observe(Event(stage=stage.name, text="waits for another process that runs this stage"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class _StageRun:
    """One run of one stage."""

    runs: Runs
    stage: Stage
    inputs: Mapping[str, Artifact]
    key: str
    modules: frozenset[str]  # that the key covers
    builds: tuple[str, ...]  # those of them that models from outside name
    rank: int
    nproc: int

    def run(self) -> Mapping[str, Artifact]:
        folder = self.runs.folder / self.stage.name
        if self.rank:
            return self._scratch_run() if self.stage.distributed else {}
        lock = FileLock(self._checkpoints().with_suffix(".lock"))
        with _held(lock, self.stage, self.runs), storage(folder):
            with writing(folder) as out:
                ctx, started, clock = self._context(out), time.time(), time.monotonic()
                with covered(self.stage.name, self.modules, value_code):
                    result = self._result(ctx)
                self._check_inputs()
                write_text(
                    out / "stage.json",
                    json.dumps(self._record(result.outputs, out), indent=1, sort_keys=True) + "\n",
                )
                # the clock of the wall may jump while a stage runs
                self._write_beside(result, started, time.monotonic() - clock)
            shutil.rmtree(self._checkpoints(), ignore_errors=True)
        self.runs.observe(Event(stage=self.stage.name, text="done"))
        record = finished(self.stage, self.runs)
        assert record is not None
        return record.outputs

    def _result(self, ctx: Context) -> Result:
        result: Any = self.stage.run(self.inputs, ctx)  # Any: what a third party gives
        if isinstance(result, Result):
            return result
        raise ContractError(
            f"stage '{self.stage.name}': {type(self.stage).__name__}.run returned a "
            f"{type(result).__name__}; return Result(outputs={{...}}) of stillhouse.recipe"
        )

    def _check_inputs(self) -> None:
        """What the stage read must still be what its key says."""
        changed = [
            self.stage.inputs[port]
            for port, artifact in self.inputs.items()
            if artifact.opener != OPEN_BUILTIN and differs(artifact)  # built-in data are code
        ]
        changed += changed_code(self.modules)
        if changed:
            raise StaleInput(
                f"stage '{self.stage.name}': {', '.join(changed)} changed while it ran; what it "
                "left is not kept. Run it again, and leave data and code alone while it runs"
            )

    def _scratch_run(self) -> Mapping[str, Artifact]:
        with temporary() as out, covered(self.stage.name, self.modules, value_code):
            self.stage.run(self.inputs, self._context(out))
        return {}

    def _context(self, out: Path) -> Context:
        runs = self.runs
        return Context(
            stage=self.stage.name,
            out=out,
            checkpoints=self._checkpoints(),
            caches=home() / "teacher-cache",
            device=runs.device,
            rank=self.rank,
            nproc=self.nproc,
            micro_batches=runs.micro_batches,
            shard=runs.shard,
            engine=runs.engine,
            recipe=runs.recipe,
            settings=runs.settings,
            code=value_code,
            digests={port: artifact.digest for port, artifact in self.inputs.items()},
            observe=runs.observe if self.rank == 0 else silent,
            checkpoint_seconds=runs.checkpoint_seconds,
            checkpoint_steps=runs.checkpoint_steps,
            watch=runs.watch,
        )

    def _checkpoints(self) -> Path:
        folder = home() / "checkpoints"
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / self.key

    def _record(self, outputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:  # Any: JSON
        record = {"builds": self.builds} if self.builds else {}
        return record | {
            "stage": self.stage.name,
            "kind": type(self.stage).__name__,
            "key": self.key,
            "inputs": {
                port: {"ref": self.stage.inputs[port], "digest": artifact.digest}
                for port, artifact in self.inputs.items()
            },
            "outputs": {
                port: {
                    "kind": artifact.kind,
                    "path": artifact.path.relative_to(out).as_posix(),
                    "digest": artifact.digest,
                    "opener": artifact.opener,
                }
                for port, artifact in outputs.items()
            },
        }

    def _write_beside(self, result: Result, started: float, seconds: float) -> None:
        base, scores = self.runs.folder / self.stage.name, dict(result.scores)
        record = {
            "stage": self.stage.name,
            "key": self.key,
            "seconds": round(seconds, 3),
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(
                timespec="seconds"
            ),
            "device": self.runs.device,
            "nproc": self.nproc,
            "resumed_at": result.resumed_at,
            "environment": environment(self.runs.device),
            **({"declared": asdict(result.declared)} if result.declared.scores else {}),
            "measured": dict(result.measured),
        }
        write_text(
            base.with_name(f"{base.name}.run.json"),
            json.dumps(record, indent=1, sort_keys=True) + "\n",
        )
        if scores:
            write_text(
                base.with_name(f"{base.name}.scores.json"), json.dumps(scores, indent=1) + "\n"
            )
            main = dict(list(scores.items())[:1])
            write_text(base.with_name(f"{base.name}.main.json"), json.dumps(main, indent=1) + "\n")
        if result.curves:
            write_text(base.with_name(f"{base.name}.curves.tsv"), _tsv(result.curves))


def _tsv(rows: Sequence[Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(f"{row[n]:.10g}" if n in row else "" for n in names) for row in rows]
    return "\n".join(["\t".join(names), *lines]) + "\n"
