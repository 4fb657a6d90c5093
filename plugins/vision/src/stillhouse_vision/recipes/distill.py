"""vision/distill: a small classifier from a large one, by any objective of the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.export import Card, Export
from stillhouse.metrics import Classification, Latency, Memory, Profile
from stillhouse.objectives.objective import (
    Composed,
    Cosine,
    Optimizer,
    Phase,
    Schedule,
    Step,
    Weighted,
)
from stillhouse.objectives.supervised import CrossEntropy
from stillhouse.objectives.zoo import ZooEntry, zoo_method
from stillhouse.recipe import Recipe, Stage
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.training import Augment
from stillhouse_vision.augment import CropFlip, Randomised
from stillhouse_vision.data import ReadImages
from stillhouse_vision.figures import Predictions
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, channels, model, output_shapes
from stillhouse_vision.recipes.distill_settings import WARM, Distill

PAPER = (
    "Hinton, Vinyals, Dean 2015, Distilling the knowledge in a neural network (arXiv 1503.02531)"
)
NOTHING: Mapping[str, Any] = {}  # Any: the default of several kinds of mapping
# what is read of the teacher, where it is small enough to be computed once and stored
STORED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("kd", "dkd", "dist", "std_kd"), ("logits",)),
    **dict.fromkeys(("rkd", "cc", "pkt", "infonce", "crd"), ("embedding",)),
}


# means over samples, so that a batch may go in slices where memory does not suffice
SLICED = ("kd", "std_kd", "dkd", "hint", "at", "reviewkd")
SMALLEST = 8


def distill(settings: Distill) -> Recipe:
    """Hinton et al. 2015 (arXiv 1503.02531), and each objective of the zoo of its own paper.

    Claim: a student that also learns from a teacher's outputs is more accurate than the same
    student, from the same first weights and on the same batches, that learns from the labels alone.
    Command: `stillhouse run vision/distill --scale tiny|small|paper`. Scores are those of the last
    step; nothing is picked on the test set.

    tiny: 400 handwritten digits, three-layer networks. small: JPEG copies of CIFAR-10, a pretrained
    ResNet-56 that is first fine-tuned on them, ResNet-20. paper: CIFAR-100 (`--set data=...`),
    resnet32x4 to resnet8x4, SGD, 240 epochs of batches of 64, learning rate 0.05 times 0.1 at
    epochs 150, 180 and 210, 5 seeds.
    """
    teacher = _teacher(settings)
    students = [_plain(settings, seed) for seed in range(settings.seeds)]
    for name in settings.objective:
        entry = _entry(settings, name)
        students += [
            _distilled(settings, name, entry, teacher.ref, seed) for seed in range(settings.seeds)
        ]
    first = f"{settings.objective[0]}-0"
    scores = [_student_scores(settings, s, teacher.ref, picture=s.name == first) for s in students]
    export = Convert(
        name="export",
        convert=_export(settings),
        inputs={"student": f"{first}.student", "data": "data.test"},
    )
    return Recipe(
        name="vision/distill",
        reference=PAPER,
        stages=(_data(settings), *teacher.stages, *students, *scores, export),
        rows={**teacher.rows, **_rows(settings)},
        baseline="student",
    )


def _rows(settings: Distill) -> dict[str, tuple[str, ...]]:
    names = {"student": "plain"} | {f"student + {name}": name for name in settings.objective}
    return {
        row: tuple(f"{name}-{seed}-scores" for seed in range(settings.seeds))
        for row, name in names.items()
    }


def _images(settings: Distill) -> ImageSpec:
    return ImageSpec(size=settings.size, mean=settings.mean, std=settings.std, names=settings.names)


def _model(settings: Distill, name: str) -> Model:
    return model(name, classes=settings.classes, images=_images(settings))


def _data(settings: Distill) -> Make:
    make = ReadImages(
        images=_images(settings),
        classes=settings.classes,
        held_out=settings.held_out,
        resize=settings.resize,
    )
    return Make(name="data", make=make, inputs={"source": settings.data}, ports=("train", "test"))


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    ref: str  # the port that holds the teacher the students learn from
    stages: tuple[Stage, ...]
    rows: Mapping[str, tuple[str, ...]]


def _teacher(settings: Distill) -> _Teacher:
    """Trained here, or given; a given one may be fine-tuned, and is then scored twice."""
    if not settings.teacher:
        train = _train_teacher(settings)
        scores = _teacher_scores("teacher", "teacher.teacher")
        return _Teacher(
            ref="teacher.teacher", stages=(train, scores), rows={"teacher": ("teacher-scores",)}
        )
    if not settings.tune_steps:
        load, scores = _load(settings, "teacher"), _teacher_scores("teacher", "teacher.model")
        return _Teacher(
            ref="teacher.model", stages=(load, scores), rows={"teacher": ("teacher-scores",)}
        )
    return _Teacher(
        ref="teacher.teacher",
        stages=(
            _load(settings, "pretrained"),
            _teacher_scores("pretrained", "pretrained.model"),
            _tune_teacher(settings),
            _teacher_scores("teacher", "teacher.teacher"),
        ),
        rows={"teacher (pretrained)": ("pretrained-scores",), "teacher": ("teacher-scores",)},
    )


def _load(settings: Distill, name: str) -> Convert:
    spec = _model(settings, settings.teacher_model)
    whole = any(o not in STORED for o in settings.objective)  # those read feature maps
    agree = tuple(output_shapes(spec)) if whole else ("logits",)
    convert = LoadCheckpoint(model=spec, agree=agree)
    return Convert(name=name, convert=convert, inputs={"checkpoint": settings.teacher})


def _train_teacher(settings: Distill) -> Train:
    return _train(
        settings,
        "teacher",
        _supervised(settings, "teacher", settings.teacher_lr),
        fresh={"teacher": _model(settings, settings.teacher_model)},
        steps=settings.teacher_steps,
    )


def _tune_teacher(settings: Distill) -> Train:
    return _train(
        settings,
        "teacher",
        _supervised(settings, "teacher", settings.tune_lr),
        roles={"teacher": "pretrained.model"},
        steps=settings.tune_steps,
    )


def _plain(settings: Distill, seed: int) -> Train:
    """The baseline: labels alone; first weights and batches are those of its seed everywhere."""
    return _train(
        settings,
        f"plain-{seed}",
        _supervised(settings, "student", settings.lr),
        fresh={"student": _model(settings, settings.student)},
        steps=settings.steps,
        seed=seed,
    )


def _distilled(settings: Distill, name: str, entry: ZooEntry, teacher: str, seed: int) -> Train:
    stored = STORED.get(name, ())
    objective = Composed(
        phases={"student": _phase(settings, ("student", *entry.roles), settings.lr)},
        roles=("teacher", "student", *entry.roles),
        losses=entry.losses,
        feeds=entry.feeds,
    )
    return _train(
        settings,
        f"{name}-{seed}",
        objective,
        roles={"teacher": teacher},
        fresh={"student": _model(settings, settings.student), **entry.roles},
        steps=settings.steps,
        seed=seed,
        cache={"teacher": Cache(outputs=stored)} if settings.cache and stored else {},
        sliced=name in SLICED,
    )


def _train(
    settings: Distill,
    name: str,
    objective: Composed,
    *,
    steps: int,
    roles: Mapping[str, str] = NOTHING,
    fresh: Mapping[str, Model] = NOTHING,
    cache: Mapping[str, Cache] = NOTHING,
    seed: int = 0,
    sliced: bool = True,
) -> Train:
    return Train(
        name=name,
        objective=objective,
        inputs={"data": "data.train", **roles},
        fresh=fresh,
        cache=cache,
        steps=steps,
        batch=settings.batch,
        seed=seed,
        augment=_augment(settings),
        views=settings.views,
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch) if sliced else None,
    )


def _entry(settings: Distill, objective: str) -> ZooEntry:
    method = zoo_method(objective)
    own = {
        key.partition(".")[2]: v
        for key, v in settings.numbers.items()
        if key.startswith(f"{objective}.")
    }
    shared = {"temperature": settings.temperature} if objective in WARM else {}
    student = channels(_model(settings, settings.student))
    teacher = channels(_model(settings, settings.teacher_model))
    return method(student, teacher, settings.classes, settings.samples, **(shared | own))


def _supervised(settings: Distill, role: str, lr: float) -> Composed:
    return Composed(
        phases={role: _phase(settings, (role,), lr)},
        roles=(role,),
        losses={"ce": Weighted(term=CrossEntropy(student=role))},
    )


def _phase(settings: Distill, trains: tuple[str, ...], lr: float) -> Phase:
    kwargs = {"momentum": 0.9, "weight_decay": settings.weight_decay}
    schedule: Schedule = Cosine(warmup=settings.warmup)
    if settings.milestones:
        schedule = Step(at=settings.milestones, of=1.0, warmup=settings.warmup)
    return Phase(
        trains=trains,
        optimizer=Optimizer(build=torch.optim.SGD, lr=lr, kwargs=kwargs),
        schedule=schedule,
    )


def _augment(settings: Distill) -> Augment | None:
    """The same for every seed: a sample's view is one picture, whose teacher outputs are stored
    once for all.
    """
    crop = CropFlip(padding=settings.padding, flip=settings.augment != "crop")
    match settings.augment:
        case "none":
            return None
        case "crop" | "crop-flip":
            return crop
        case _:
            return Randomised(transform=settings.augment, first=crop)


def _teacher_scores(name: str, ref: str) -> Evaluate:
    return Evaluate(
        name=f"{name}-scores",
        metrics=(Classification(role="teacher"), Profile(role="teacher")),
        inputs={"data": "data.test", "teacher": ref},
        measures=(Latency(role="teacher"), Memory(role="teacher")),
    )


def _student_scores(settings: Distill, stage: Train, teacher: str, *, picture: bool) -> Evaluate:
    return Evaluate(
        name=f"{stage.name}-scores",
        metrics=(Classification(teacher="teacher"), Profile()),
        inputs={"data": "data.test", "student": f"{stage.name}.student", "teacher": teacher},
        # one seed a row is timed: the others have the same layers
        measures=(Latency(), Memory()) if stage.seed == 0 else (),
        figures=(Predictions(names=settings.names),) if picture else (),
    )


def _export(settings: Distill) -> Export:
    method = settings.objective[0]
    card = Card(
        title=f"{settings.student}, distilled from {settings.teacher_model} by {method}",
        task="image-classification",
        paper=PAPER,
    )
    return Export(card=card)
