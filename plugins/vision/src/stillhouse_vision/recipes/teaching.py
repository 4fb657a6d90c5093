"""Stages that recipes of a teacher and its students have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.metrics import Classification, Latency, Memory, Profile
from stillhouse.objectives.objective import (
    Composed,
    Cosine,
    Objective,
    Optimizer,
    Phase,
    Schedule,
    Step,
    Weighted,
)
from stillhouse.objectives.supervised import CrossEntropy
from stillhouse.recipe import Stage
from stillhouse.settings import Settings
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.training import Augment
from stillhouse_vision.augment import CropFlip, Randomised
from stillhouse_vision.data import ReadImages
from stillhouse_vision.figures import Predictions
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, model
from stillhouse_vision.recipes.teaching_settings import Pictures, Teaching

ONE_TEACHER = (
    "All students have one teacher, of one seed (or the given one): intervals hold for students of "
    "this teacher, and say nothing of what another teacher would give."
)
NOTHING: Mapping[str, Any] = {}  # Any: the default of several kinds of mapping
# the smallest slice of a batch, where memory does not suffice for the whole
SMALLEST = 8


def schedule_note(settings: Teaching, official: str) -> str:
    """How students are trained in this run, beside what the paper or its code does."""
    falls = "falls as a cosine"
    if settings.milestones:
        at = ", ".join(f"{fraction:.3g}" for fraction in settings.milestones)
        falls = f"falls to a tenth at {at} of the run"
    return (
        f"Here students train for {settings.steps:,} steps of {settings.batch} images, "
        f"augment={settings.augment} padding={settings.padding} views={settings.views}, with a "
        f"learning rate of {settings.lr:g} that {falls}; {official}."
    )


def caution(settings: Settings, after: str) -> str:
    """What must stand beside a headline of scale tiny."""
    if settings.scale != "tiny":
        return ""
    return (
        f"Scale tiny shows that everything works, not what the method is worth: after {after} "
        "neither teacher nor students have learned all that they can, and on one seed a difference "
        "either way is chance; compare with `--scale small --set seeds=3`."
    )


def image_spec(settings: Pictures) -> ImageSpec:
    return ImageSpec(size=settings.size, mean=settings.mean, std=settings.std, names=settings.names)


def named_model(settings: Pictures, name: str) -> Model:
    return model(name, classes=settings.classes, images=image_spec(settings))


def data_stage(settings: Pictures) -> Make:
    make = ReadImages(
        images=image_spec(settings),
        classes=settings.classes,
        held_out=settings.held_out,
        resize=settings.resize,
    )
    return Make(name="data", make=make, inputs={"source": settings.data}, ports=("train", "test"))


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher comes from: its port, the stages up to it, the rows that score it."""

    ref: str
    stages: tuple[Stage, ...]
    rows: Mapping[str, tuple[str, ...]]


def teacher_stages(settings: Teaching, *, agree: tuple[str, ...] = ("logits",)) -> Teacher:
    """Trained here, or given; a given one may be fine-tuned, and is then scored twice. `agree` are
    the outputs of `teacher_model` that a given teacher must have, in their shapes.
    """
    if not settings.teacher:
        train = _train_teacher(settings)
        scores = _teacher_scores("teacher", "teacher.teacher")
        return Teacher(
            ref="teacher.teacher", stages=(train, scores), rows={"teacher": ("teacher-scores",)}
        )
    if not settings.tune_steps:
        load, scores = (
            _load(settings, "teacher", agree),
            _teacher_scores("teacher", "teacher.model"),
        )
        return Teacher(
            ref="teacher.model", stages=(load, scores), rows={"teacher": ("teacher-scores",)}
        )
    return Teacher(
        ref="teacher.teacher",
        stages=(
            _load(settings, "pretrained", agree),
            _teacher_scores("pretrained", "pretrained.model"),
            _tune_teacher(settings),
            _teacher_scores("teacher", "teacher.teacher"),
        ),
        rows={"teacher (pretrained)": ("pretrained-scores",), "teacher": ("teacher-scores",)},
    )


def _load(settings: Teaching, name: str, agree: tuple[str, ...]) -> Convert:
    convert = LoadCheckpoint(model=named_model(settings, settings.teacher_model), agree=agree)
    tried = {"data": "data.train"} if settings.check_teacher else {}
    return Convert(name=name, convert=convert, inputs={"checkpoint": settings.teacher, **tried})


def _train_teacher(settings: Teaching) -> Train:
    return train_stage(
        settings,
        "teacher",
        supervised(settings, "teacher", settings.teacher_lr),
        fresh={"teacher": named_model(settings, settings.teacher_model)},
        steps=settings.teacher_steps,
    )


def _tune_teacher(settings: Teaching) -> Train:
    return train_stage(
        settings,
        "teacher",
        supervised(settings, "teacher", settings.tune_lr),
        roles={"teacher": "pretrained.model"},
        steps=settings.tune_steps,
    )


def train_stage(
    settings: Teaching,
    name: str,
    objective: Objective,
    *,
    steps: int,
    roles: Mapping[str, str] = NOTHING,
    fresh: Mapping[str, Model] = NOTHING,
    reinit: tuple[str, ...] = (),
    cache: Mapping[str, Cache] = NOTHING,
    seed: int = 0,
    sliced: bool = True,
    data: str = "data.train",
) -> Train:
    """A training as the settings say; `sliced` where its losses are means over samples, so that a
    batch may go in slices.
    """
    return Train(
        name=name,
        objective=objective,
        inputs={"data": data, **roles},
        fresh=fresh,
        reinit=reinit,
        cache=cache,
        steps=steps,
        batch=settings.batch,
        seed=seed,
        augment=augmentation(settings),
        views=settings.views,
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch) if sliced else None,
    )


def supervised(settings: Teaching, role: str, lr: float) -> Composed:
    return Composed(
        phases={role: phase(settings, (role,), lr)},
        roles=(role,),
        losses={"ce": Weighted(term=CrossEntropy(student=role))},
    )


def phase(settings: Teaching, trains: tuple[str, ...], lr: float) -> Phase:
    kwargs = {"momentum": 0.9, "weight_decay": settings.weight_decay}
    schedule: Schedule = Cosine(warmup=settings.warmup)
    if settings.milestones:
        schedule = Step(at=settings.milestones, of=1.0, warmup=settings.warmup)
    return Phase(
        trains=trains,
        optimizer=Optimizer(build=torch.optim.SGD, lr=lr, kwargs=kwargs),
        schedule=schedule,
    )


def augmentation(settings: Teaching) -> Augment | None:
    """The same for every seed: a sample's view is one picture, whose teacher outputs are stored
    once for all.
    """
    crop = CropFlip(padding=settings.padding, flip=settings.augment != "crop")
    match settings.augment:
        case "none":
            return None
        case "crop" | "crop-flip":
            return crop
        case "resized-crop":  # it crops and mirrors by itself
            return Randomised(transform="resized-crop", first=CropFlip(padding=0))
        case _:
            return Randomised(transform=settings.augment, first=crop)


def _teacher_scores(name: str, ref: str) -> Evaluate:
    return Evaluate(
        name=f"{name}-scores",
        metrics=(Classification(role="teacher"), Profile(role="teacher")),
        inputs={"data": "data.test", "teacher": ref},
        measures=(Latency(role="teacher"), Memory(role="teacher")),
    )


def student_scores(
    settings: Pictures, name: str, student: str, teacher: str, *, seed: int, picture: bool
) -> Evaluate:
    """Scores of the port `student`, which the stage `name` stands for, beside its teacher's."""
    return Evaluate(
        name=f"{name}-scores",
        metrics=(Classification(teacher="teacher"), Profile()),
        inputs={"data": "data.test", "student": student, "teacher": teacher},
        # one seed a row is timed: the others have the same layers
        measures=(Latency(), Memory()) if seed == 0 else (),
        figures=(Predictions(names=settings.names),) if picture else (),
    )


def trained_scores(settings: Pictures, stage: Train, teacher: str, *, picture: bool) -> Evaluate:
    """`student_scores` of what a training leaves."""
    student = f"{stage.name}.student"
    return student_scores(settings, stage.name, student, teacher, seed=stage.seed, picture=picture)
