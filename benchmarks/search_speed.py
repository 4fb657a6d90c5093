"""A search of 1,000 candidates of NAS-Bench-201 without training, with its time.

    uv run python benchmarks/search_speed.py [--trials 1000] [--macs 50e6]

The kernel's Search stage with DisWOT's score, under a budget of MACs, by aging evolution and by
random draws. Its teacher is a ResNet-56 (the weights play no part: DisWOT draws its own), so that
nothing of the benchmark's table is known to the search. The table is read afterwards, to say how
good the found cell is, beside the largest cell that fits and the mean of all that fit. Killed, a
search goes on where it was.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nas_tables import ACCURACIES, CLASSES, IMAGES, ROOT, Architecture, Table, read_table
from rounds import write

from stillhouse.artifact import Artifact
from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.recipe import Event, Recipe
from stillhouse.runs import Runs, run_stage
from stillhouse.search import AgingEvolution, Encoding, RandomSearch, Strategy
from stillhouse.search.scores import DisWOT
from stillhouse.stages import Convert, Make, Search
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import LoadCheckpoint, model
from stillhouse_vision.spaces import NasBench201

TEACHER = "resnet56"
WEIGHTS = "data:weights-small/cifar10-resnet/resnet56-4bfd9763.th"
STRATEGIES: Mapping[str, Strategy] = {
    "evolution": AgingEvolution(population=36, sample=8, elite=5),
    "random": RandomSearch(),
}

Record = Mapping[str, Any]  # Any: JSON


def recipe(score: DisWOT, budget_macs: float, trials: int, seed: int) -> Recipe:
    """Pictures, teacher, and a search a strategy."""
    searches = tuple(
        Search(
            name=name,
            space=NasBench201(classes=CLASSES, images=IMAGES),
            score=score,
            budget={"macs": budget_macs},
            trials=trials,
            inputs={"data": "data.train", "teacher": "teacher.model"},
            strategy=strategy,
            seed=seed,
        )
        for name, strategy in STRATEGIES.items()
    )
    read = ReadImages(images=IMAGES, classes=CLASSES)
    source = {"source": "data:cifar10-subset"}
    data = Make(name="data", make=read, inputs=source, ports=("train", "test"))
    spec = model(TEACHER, classes=CLASSES, images=IMAGES)
    teacher = Convert(
        name="teacher", convert=LoadCheckpoint(model=spec), inputs={"checkpoint": WEIGHTS}
    )
    stages = (data, teacher, *searches)
    return Recipe(name="search-speed", reference="benchmark", stages=stages)


@dataclass(kw_only=True)
class Watch:
    """Tells how far a search is, and what this process spent on it."""

    name: str
    begun: float
    cpu: float
    scored: int = 0
    resumed: bool = False

    @classmethod
    def of(cls, name: str) -> "Watch":
        return cls(name=name, begun=time.perf_counter(), cpu=time.process_time())

    def __call__(self, event: Event) -> None:
        if event.text:
            self.resumed = self.resumed or event.text.startswith("resumed")
            return
        self.scored += 1
        if event.done % 50 == 0:
            each = (time.perf_counter() - self.begun) / self.scored
            left = (event.total - event.done) * each / 60
            print(f"{self.name} {event.done}/{event.total}, {left:.1f} min left", file=sys.stderr)

    def spent(self) -> Record:
        """Seconds of this process: of a part of the candidates, where the search was resumed."""
        return {
            "wall_seconds": time.perf_counter() - self.begun,
            "processor_seconds": time.process_time() - self.cpu,
            "candidates_in_these_seconds": self.scored,
            "resumed": self.resumed,
        }


def searched(whole: Recipe, name: str, runs: Runs) -> tuple[Artifact, Record]:
    """The trials of a search and what it cost; both are kept beside the run."""
    watch, kept = Watch.of(name), runs.folder / f"{name}.spent.json"
    outputs = run_stage(whole, whole.stage(name), replace(runs, observe=watch))
    if watch.scored:
        kept.write_text(json.dumps(watch.spent()))
    return outputs["trials"], json.loads(kept.read_text())


def outcome(table: Table, trials: Artifact, spent: Record, name: str, runs: Runs) -> Record:
    """What a search found, and what the table says of it."""
    columns = next(iter(trials.open().batches(10**9, rng=None)))
    found: Sequence[str] = trials.open().table()["encoding"].to_pylist()
    scores = columns["score"]
    best = int(scores.argmax())
    encodings: list[Encoding] = [json.loads(text) for text in found]
    rows = {row.text: row for row in table.rows}
    proposed = [rows[table.text_of(encoding)] for encoding in encodings]
    measured = json.loads((runs.folder / f"{name}.run.json").read_text())["measured"]
    return {
        **described(table, proposed[best]),
        "score": scores[best].item(),
        "macs": columns["macs"][best].item(),
        "parameters": columns["parameters"][best].item(),
        "candidates": len(found),
        "refused": measured["refused"],
        "best_accuracy_among_candidates": max(row.accuracy for row in proposed),
        "spent": spent,
        "processor_seconds_a_candidate": spent["processor_seconds"]
        / spent["candidates_in_these_seconds"],
    }


def described(table: Table, row: Architecture) -> Record:
    return {
        "architecture": row.text,
        "accuracy": row.accuracy,
        "rank_of_all": table.rank(row.accuracy),
    }


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """The rows of the table within the budget, with their parameters."""

    rows: Sequence[tuple[Architecture, float]]

    @classmethod
    def of(cls, table: Table, budget_macs: float) -> "Fitting":
        costs = [(row, cell_cost(tuple(sorted(row.encoding["ops"])))) for row in table.rows]
        fit = [(row, c["parameters"]) for row, c in costs if c["macs"] <= budget_macs]
        return cls(rows=fit)

    def baselines(self, table: Table) -> Record:
        """The largest by parameters (all of them: cells of one size are many), a random one, and
        the best.
        """
        most = max(size for _, size in self.rows)
        largest = [row.accuracy for row, size in self.rows if size == most]
        everything = [row.accuracy for row, _ in self.rows]
        best = max((row for row, _ in self.rows), key=lambda row: row.accuracy)
        return {
            "number": len(self.rows),
            "largest": {"parameters": most, **spread(largest)},
            "random": spread(everything),
            "best": described(table, best),
        }

    def rank(self, accuracy: float) -> int:
        return 1 + sum(row.accuracy > accuracy for row, _ in self.rows)


@functools.cache
def cell_cost(ops: tuple[str, ...]) -> Mapping[str, float]:
    """Of a cell with these operations on whatever edges: all edges cost the same."""
    return NasBench201(classes=CLASSES, images=IMAGES).cost({"ops": list(ops)})


def spread(accuracies: Sequence[float]) -> Record:
    return {
        "number": len(accuracies),
        "mean_accuracy": statistics.fmean(accuracies),
        "median_accuracy": statistics.median(accuracies),
        "lowest_accuracy": min(accuracies),
        "highest_accuracy": max(accuracies),
    }


def text_of(record: Record) -> str:
    fit = record["fitting"]
    lines = [f"{'':28}{'accuracy':>10}{'rank of ' + str(fit['number']):>16}{'CPU s':>8}"]
    for name, one in record["searches"].items():
        seconds = one["spent"]["processor_seconds"]
        lines.append(
            f"DisWOT, {name:20}{one['accuracy']:10.2f}{one['rank_of_fitting']:16}{seconds:8.0f}"
        )
        lines.append(f"  {one['architecture']}")
    for name in ("largest", "random"):
        lines.append(f"{name + ' that fits, mean':28}{fit[name]['mean_accuracy']:10.2f}")
    lines.append(f"{'best that fits':28}{fit['best']['accuracy']:10.2f}{1:16}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000, help="candidates")
    parser.add_argument("--macs", type=float, default=50e6, help="the budget, of one picture")
    parser.add_argument("--batch", type=int, default=32, help="pictures")
    parser.add_argument("--inits", type=int, default=4, help="draws of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "search-speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    score = DisWOT(batch=given.batch, inits=given.inits)
    whole = recipe(score, given.macs, given.trials, given.seed)
    variant = f"{given.trials}-{given.macs:.0f}-{given.batch}-{given.inits}-{given.seed}"
    runs = Runs(root=ROOT, recipe="bench/search-speed", variant=variant)
    for name in ("data", "teacher"):
        run_stage(whole, whole.stage(name), runs)
    load = os.getloadavg()
    made = {name: searched(whole, name, runs) for name in STRATEGIES}
    settings = {
        "trials": given.trials,
        "budget_macs": given.macs,
        "score": asdict(score),
        "strategies": {name: asdict(strategy) for name, strategy in STRATEGIES.items()},
        "teacher": f"{TEACHER}, weights drawn anew by the score",
        "seed": given.seed,
    }
    result = {"settings": settings, "load_average_before": load, **judged(made, given.macs, runs)}
    write(given.out / "search-speed.json", result)
    print(text_of(result))
    print(f"written to {given.out}")


def judged(made: Mapping[str, tuple[Artifact, Record]], budget_macs: float, runs: Runs) -> Record:
    """The searches' outcomes. Reads the table, which is no part of the searches."""
    table = read_table("201", ROOT / "data")
    fitting = Fitting.of(table, budget_macs)
    found = {name: outcome(table, *one, name, runs) for name, one in made.items()}
    return {
        "claim": "a search of 1,000 candidates without training takes minutes on one core",
        "counted": "a search with its preparation: batch, teacher's views, scales, costs, scores",
        "accuracy": ACCURACIES["201"],
        "code": code_version("stillhouse_vision"),
        "environment": environment("cpu"),
        "architectures": len(table.rows),
        "searches": {
            name: {**one, "rank_of_fitting": fitting.rank(one["accuracy"])}
            for name, one in found.items()
        },
        "fitting": fitting.baselines(table),
    }


if __name__ == "__main__":
    main()
