"""Scores of generated images: how far they are from real ones, and what they cost.

Samples of a role are made once in a stage, in parts that are kept, and shared by all metrics.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Columns, Data, RowData, TensorData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_diffusion.distances import (
    frechet_distance,
    histogram_distance,
    kernel_distance,
    precision_recall,
)
from stillhouse_diffusion.features import embedded
from stillhouse_diffusion.sampling import RoutedStudents

# rows of either set that a kernel, precision and recall go by: they compare each row to each
MOST = 5000
FLOOR = "floor_"  # begins the score that real, held-out images get in a student's place
QUALITY = (
    Score(name="frechet_error", better="lower", label="Frechet distance"),
    Score(name="kernel_error", better="lower", label="Kernel distance"),
    Score(name="precision", better="higher", unit="%"),
    Score(name="recall", better="higher", unit="%"),
    Score(name="class_accuracy", better="higher", unit="%"),
)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The images that a role makes of all rows of the first data port ("noise", "labels"), `size`
    at a time: computed once a stage.
    """

    role: str
    size: int = 250

    def __call__(self, models: Models, data: Data, work: Work) -> dict[str, Tensor]:
        """ "images" [N, C, H, W] and "labels" [N], on the CPU."""
        assert isinstance(data, RowData)
        module = models[self.role]

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001  the data hold the noise
            rows = data.rows(torch.arange(first, last))
            given = {name: rows[name].to(work.device) for name in ("noise", "labels")}
            with torch.no_grad():
                images = module(given)["images"].float().cpu()
            return {"images": images, "labels": rows["labels"]}

        name = f"samples-{self.role}"
        parts = list(work.parts(name, len(data), compute, of=self, size=self.size))
        return {
            name: torch.cat([_tensor(part[name]) for part in parts])
            for name in ("images", "labels")
        }


def _tensor(column: Any) -> Tensor:  # Any: a column
    assert isinstance(column, Tensor)
    return column


@dataclass(frozen=True, kw_only=True)
class Fidelity(Metric):
    """Frechet and kernel distance, precision and recall of `role`'s images against the training
    images, and the fraction that the feature network takes for the class that was requested.

    The role "features" embeds the images; the data ports "reference" and "held" are what it has
    made of the training and the held-out images ("embedding", "predicted", "labels"). Each score
    has a floor beside it, "floor_...": what as many held-out real images get. Where fewer are held
    out than were sampled, the first so many samples are scored: a Frechet distance depends on
    their number.
    """

    role: str = "student"
    floor: bool = True

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        made = Samples(role=self.role)(models, data, work)
        reference, held = (_embedded_set(work.data[port]) for port in ("reference", "held"))
        count = min(len(made["images"]), len(held["embedding"]))
        fake = _features(models, {name: value[:count] for name, value in made.items()}, work)
        scores = quality(reference, fake)
        if self.floor:
            order = torch.randperm(len(held["labels"]), generator=work.rng)[:count]
            real = {name: value[order] for name, value in held.items()}
            scores |= {FLOOR + name: value for name, value in quality(reference, real).items()}
        return scores

    def scores(self) -> Sequence[Score]:
        return (*QUALITY, *(floors() if self.floor else ()))


def floors() -> Sequence[Score]:
    """What real held-out images get: it describes the data, and is no student's merit."""
    return [
        Score(name=FLOOR + s.name, better="neither", unit=s.unit, label=f"{s.label}, real images")
        for s in QUALITY
    ]


def quality(reference: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """The scores of `QUALITY` of embedded images against real ones: kernel distance, precision and
    recall of `MOST` rows of either set, evenly spread, the rest of all rows.
    """
    real, fake = reference["embedding"], found["embedding"]
    some = _spread(real), _spread(fake)
    precision, recall = precision_recall(*some)
    return {
        "frechet_error": frechet_distance(real, fake),
        "kernel_error": kernel_distance(*some),
        "precision": precision,
        "recall": recall,
        "class_accuracy": float((found["predicted"] == found["labels"]).double().mean()),
    }


def _spread(rows: Tensor) -> Tensor:
    count = min(len(rows), MOST)
    return rows[torch.arange(count) * len(rows) // count]


def _features(models: Models, made: Mapping[str, Tensor], work: Work) -> dict[str, Tensor]:
    found = embedded(models["features"], TensorData({"images": made["images"]}), work)
    return {**found, "labels": made["labels"]}


def _embedded_set(data: Data) -> dict[str, Tensor]:
    assert isinstance(data, RowData)
    return {name: _tensor(data.columns[name]) for name in ("embedding", "predicted", "labels")}


@dataclass(frozen=True, kw_only=True)
class PartFidelity(Metric):
    """The Frechet distance and class accuracy within each part of the labels, as the router of
    `role` (RoutedStudents) has them: a row a student. Real images of the part's labels are the
    reference, and held-out ones of them the floor.
    """

    role: str = "student"

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        students = models[self.role]
        assert isinstance(students, RoutedStudents)
        owner = students.owner.cpu()
        made = _features(models, Samples(role=self.role)(models, data, work), work)
        sets = {port: _embedded_set(work.data[port]) for port in ("reference", "held")} | {"": made}
        found: dict[tuple[str, str], float] = {}
        for number in range(len(students.students)):
            own = {k: _of(s, owner[s["labels"]] == number) for k, s in sets.items()}
            count = min(len(own[""]["labels"]), len(own["held"]["labels"]))
            part = {k: v[:count] for k, v in own[""].items()}
            line = f"labels {', '.join(map(str, (owner == number).nonzero()[:, 0].tolist()))}"
            real = own["reference"]["embedding"]
            found[line, "frechet_error"] = frechet_distance(real, part["embedding"])
            held = own["held"]["embedding"][:count]
            found[line, FLOOR + "frechet_error"] = frechet_distance(real, held)
            right = (part["predicted"] == part["labels"]).double().mean()
            found[line, "class_accuracy"] = float(right)
        return found

    def scores(self) -> Sequence[Score]:
        kept = ("frechet_error", "class_accuracy", FLOOR + "frechet_error")
        return [score for score in (*QUALITY, *floors()) if score.name in kept]


def _of(rows: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {name: value[mask] for name, value in rows.items()}


@dataclass(frozen=True, kw_only=True)
class PlaneDistance(Metric):
    """L1 distance of the histograms of `role`'s points and the teacher's, mean over the classes,
    0 to 2; and its floor, that of a second set of the teacher's points, as many of each class.

    The data port "pairs" holds the teacher's points ("images", "labels"): the first half are the
    reference, the second half the floor. MSD's two-dimensional experiment has a 100 x 100 grid and
    10,000 points of each class or more.
    """

    role: str = "student"
    bins: int = 100
    reach: float = 1.0

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        made, pairs = Samples(role=self.role, size=10_000)(models, data, work), work.data["pairs"]
        assert isinstance(pairs, RowData)
        points, labels = _tensor(pairs.columns["images"]), _tensor(pairs.columns["labels"])
        half = len(points) // 2
        distances: dict[str, list[float]] = {"plane_error": [], FLOOR + "plane_error": []}
        for label in range(int(labels.max()) + 1):
            own = made["images"][made["labels"] == label].flatten(1)
            one, two = (
                points[part][labels[part] == label].flatten(1)
                for part in (slice(None, half), slice(half, None))
            )
            count = min(len(own), len(one), len(two))
            for name, rows in (("plane_error", own), (FLOOR + "plane_error", two)):
                found = histogram_distance(
                    rows[:count], one[:count], bins=self.bins, reach=self.reach
                )
                distances[name].append(found)
        return {name: statistics.fmean(values) for name, values in distances.items()}

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="plane_error", better="lower", label="L1 distance to the teacher"),
            Score(name=FLOOR + "plane_error", better="neither", label="L1 distance, teacher again"),
        )


@dataclass(frozen=True, kw_only=True)
class Cost(Metric):
    """nfe, how often the network is evaluated for an image; training_steps, the optimizer steps of
    all stages of all students; and used_parameters, those of the one network an image needs: those
    stored are all students'.
    """

    role: str = "student"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        module: Any = models[self.role]  # Any: a sampler of this plugin
        found = {"nfe": float(module.evaluations)}
        if isinstance(module, RoutedStudents):
            found["training_steps"] = float(module.training_steps)
            module = module.students[0]
        used = sum(parameter.numel() for parameter in module.parameters())
        return found | {"used_parameters": float(used)}

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="nfe", better="lower", label="Evaluations an image", cost=True),
            Score(name="training_steps", better="lower", unit="count", cost=True),
            Score(name="used_parameters", better="lower", unit="count", cost=True),
        )


@dataclass(frozen=True, kw_only=True)
class Swap(Metric):
    """swap_ms: the median time of `runs` exchanges of one student's weights in memory for
    another's, where only one is held on the device.
    """

    role: str = "student"
    runs: int = 20

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        students = models[self.role]
        assert isinstance(students, RoutedStudents)
        place = students.students[0]
        stored = {name: value.detach().cpu().clone() for name, value in place.state_dict().items()}
        times: list[float] = []
        for _ in range(self.runs):
            start = time.perf_counter()
            place.load_state_dict(stored)
            if work.device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
        return {"swap_ms": statistics.median(times)}

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="swap_ms", better="lower", unit="ms", label="Swap of students", cost=True),
        )
