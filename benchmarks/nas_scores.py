"""Every training-free score of sampled architectures, a line of JSON each as it is made: a run that
is killed goes on after the last whole line.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from nas_tables import FILES, ROOT, Architecture, Name, Table, batch, read_table
from torch import Tensor, nn

from stillhouse import objectives
from stillhouse.digest import file_digest, text_digest
from stillhouse.search import proxies
from stillhouse.search.proxies import (
    COMPARISON,
    METHODS,
    Score,
    Seen,
    View,
    combined,
    distillation_score,
    diswot_score,
    seen,
    views,
    zen,
)
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_vision import models

KEPT = ROOT / ".bench" / "nas-ranking"
CODE = (proxies, objectives, models)  # what a score is computed by
SIZES = ("parameters", "macs")
TEACHER = -1  # the number of the teacher's fresh weights; architectures count from 0

Line = Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a score depends on. `zen_inits` draws of two forwards each: half as many as DisWOT's
    make the two cost as many forwards.
    """

    table: Name
    count: int
    batch: int
    inits: int
    zen_inits: int
    seed: int

    def file(self, data: Path) -> Path:
        """Where the lines are kept: another one for other settings, data, code or torch.

        The number of architectures is not in the name: more of them go on with the same file.
        """
        parts = {
            **{key: value for key, value in asdict(self).items() if key != "count"},
            "data": file_digest(data / "nas-tables" / FILES[self.table]),
            "pictures": file_digest(data / "cifar10-subset" / "train.parquet"),
            "code": [source_digest(module) for module in CODE],
            "torch": torch.__version__,
        }
        return KEPT / f"{self.table}-{text_digest(json.dumps(parts, sort_keys=True))[:16]}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The batch, and what the teacher gives for it: once for all architectures."""

    settings: Settings
    table: Table
    images: Tensor
    labels: Tensor
    views: Sequence[View]
    teacher: Seen
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, settings: Settings, data: Path) -> "Scorer":
        table = read_table(settings.table, data)
        images, labels = batch(data, settings.batch, settings.seed)
        network = table.network(table.best.encoding, mix(settings.seed, TEACHER))
        return cls(
            settings=settings,
            table=table,
            images=images,
            labels=labels,
            views=views(network, images, labels, inits=settings.inits, seed=settings.seed),
            teacher=seen(network, images, labels),
        )

    def __call__(self, number: int, row: Architecture) -> Line:
        """One architecture's scores and the processor seconds of each."""
        network = self.table.network(row.encoding, mix(self.settings.seed, number))
        watch = _Watch()
        diswot = watch("diswot", self._diswot, network)
        values = {name: watch(name, self._proxy, name, network) for name in COMPARISON}
        student = watch("kd forward", seen, network, self.images, self.labels)
        for name in METHODS:
            values[f"kd:{name}"] = watch(f"kd:{name}", self._method, name, student)
        return {
            "architecture": row.text,
            "accuracy": row.accuracy,
            "connected": row.connected,
            "semantics": diswot.semantics,
            "relations": diswot.relations,
            "scores": values,
            "seconds": watch.seconds,
        }

    def _diswot(self, network: nn.Module) -> Score:
        return diswot_score(
            self.views,
            network,
            self.images,
            self.labels,
            inits=self.settings.inits,
            seed=self.settings.seed,
        )

    def _proxy(self, name: str, network: nn.Module) -> float:
        if name == "zen":
            inits, seed = self.settings.zen_inits, self.settings.seed
            return zen(network, self.images, self.labels, inits=inits, seed=seed)
        return COMPARISON[name](network, self.images, self.labels)

    def _method(self, name: str, student: Seen) -> float:
        return distillation_score(self.teacher, student, self.images, self.labels, method=name)


class _Watch:
    """Runs functions and notes their processor seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(
        self, name: str, function: Callable[..., Any], *arguments: object
    ) -> Any:  # Any: what the function gives
        start = time.process_time()
        value = function(*arguments)
        self.seconds[name] = time.process_time() - start
        return value


def scored(settings: Settings, data: Path) -> tuple[Table, list[Line]]:
    """The table, and a line for each sampled architecture; what is kept is not scored again."""
    file = settings.file(data)
    lines = list(_kept(file))
    print(f"{len(lines)} lines in {file}", file=sys.stderr)
    if len(lines) >= settings.count:
        return read_table(settings.table, data), lines[: settings.count]
    scorer = Scorer.of(settings, data)
    rows = scorer.table.sampled(settings.count, settings.seed)
    start, first = time.monotonic(), len(lines)
    # a line that was cut short is written again
    _rewrite(file, lines)
    with file.open("a") as stream:
        for number in range(first, len(rows)):
            lines.append(scorer(number, rows[number], work=Work()))
            stream.write(json.dumps(lines[-1]) + "\n")
            stream.flush()
            _progress(len(lines), len(rows), (time.monotonic() - start) / (len(lines) - first))
    return scorer.table, lines


def _kept(file: Path) -> Iterator[Line]:
    for text in file.read_text().splitlines(keepends=True) if file.is_file() else ():
        if not text.endswith("\n"):
            return
        yield json.loads(text)


def _rewrite(file: Path, lines: Sequence[Line]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text("".join(json.dumps(line) + "\n" for line in lines))
    aside.replace(file)


def _progress(done: int, total: int, seconds: float) -> None:
    if done % 10 == 0 or done == total:
        left = (total - done) * seconds / 60
        print(f"{done}/{total}  {seconds:.2f} s each, {left:.1f} min left", file=sys.stderr)


def source_digest(package: ModuleType) -> str:
    """sha256 over a package's .py files."""
    files = sorted(Path(package.__path__[0]).rglob("*.py"))
    return text_digest("".join(file_digest(file) for file in files))


def columns(lines: Sequence[Line]) -> dict[str, list[float]]:
    """A column a proxy, higher is better: size first, DisWOT's two parts and their combinations
    among these architectures, other zero-cost proxies, losses of distillation at initialisation.
    """
    scores = diswot_scores(lines, len(lines[0]["semantics"]))
    rest = {name: [line["scores"][name] for line in lines] for name in lines[0]["scores"]}
    sizes = {name: rest.pop(name) for name in SIZES}
    diswot = {
        "diswot": list(combined(scores)),
        "diswot semantic": [score.semantic for score in scores],
        "diswot relation": [score.relation for score in scores],
        "diswot sum as released": [score.semantic + score.relation for score in scores],
    }
    return sizes | diswot | rest


def diswot_scores(lines: Sequence[Line], inits: int) -> list[Score]:
    """DisWOT's scores with the first `inits` draws alone."""
    return [
        Score(
            semantics=tuple(line["semantics"][:inits]),
            relations=tuple(line["relations"][:inits]),
            combine="zscore",
        )
        for line in lines
    ]


def dead(values: Sequence[float]) -> int:
    """How many have the lowest score there is."""
    return sum(value == -math.inf for value in values)
