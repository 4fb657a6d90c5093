"""Stages that recipes of a teacher and its students have in common."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, Stages, as_trained, costed
from stillhouse.export import Export
from stillhouse.metrics import Classification
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
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Stage
from stillhouse.references import out
from stillhouse.settings import Settings
from stillhouse.stages import Convert, Make, Train
from stillhouse.training import Augment
from stillhouse_vision.augment import CropFlip, Randomised
from stillhouse_vision.data import ReadImages
from stillhouse_vision.figures import MATRIX, Confusion, Mistakes, Predictions
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, model, output_shapes
from stillhouse_vision.recipes.teaching_settings import ImageSettings, Teaching
from stillhouse_vision.usage import classifier_usage

ONE_TEACHER = (
    "All students have one teacher, of one seed (or the given one): intervals hold for students of "
    "this teacher, and say nothing of what another teacher would give."
)
NOTHING: Mapping[str, Any] = {}  # Any: the default of several kinds of mapping
# the smallest micro-batch, where memory does not suffice for a whole batch
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


def image_spec(settings: ImageSettings) -> ImageSpec:
    return ImageSpec(size=settings.size, mean=settings.mean, std=settings.std, names=settings.names)


def named_model(settings: ImageSettings, name: str) -> Model:
    return model(name, classes=settings.classes, images=image_spec(settings))


def data_stage(settings: ImageSettings) -> Make:
    make = ReadImages(
        images=image_spec(settings),
        classes=settings.classes,
        held_out=settings.held_out,
        resize=settings.resize,
    )
    return Make(name="data", make=make, inputs={"source": settings.data}, ports=("train", "test"))


def teachers_of(settings: Teaching, *, agree: tuple[str, ...] = ("logits",)) -> dict[str, Stage]:
    """The row "teacher", trained here or given; a given one that is fine-tuned has a row before
    that, too. `agree` are the outputs of `teacher_model` that a given teacher must have, in their
    shapes.
    """
    spec = named_model(settings, settings.teacher_model)
    if not settings.teacher:
        objective = supervised(settings, "teacher", settings.teacher_lr)
        train = train_stage(settings, "teacher", objective, fresh={"teacher": spec})
        return {"teacher": replace(train, steps=settings.teacher_steps)}
    tried = {"data": data_stage(settings)["train"]} if settings.check_teacher else {}
    given = Convert(
        name="pretrained" if settings.tune_steps else "teacher",
        convert=LoadCheckpoint(model=spec, agree=agree),
        inputs={"checkpoint": settings.teacher, **tried},
    )
    if not settings.tune_steps:
        return {"teacher": given}
    objective = supervised(settings, "teacher", settings.tune_lr)
    tune = train_stage(settings, "teacher", objective, roles={"teacher": out(given)})
    return {"teacher (pretrained)": given, "teacher": replace(tune, steps=settings.tune_steps)}


def train_stage(
    settings: Teaching,
    name: str,
    objective: Objective,
    *,
    roles: Mapping[str, str] = NOTHING,
    fresh: Mapping[str, Model] = NOTHING,
    reinit: tuple[str, ...] = (),
    cache: Mapping[str, Cache] = NOTHING,
    data: str = "",
) -> Train:
    """A training as the settings say, of the data's port "train" unless others are given; where
    its losses are means over samples, a batch may go in micro-batches.
    """
    means = isinstance(objective, Composed) and objective.sample_mean
    return Train(
        name=name,
        objective=objective,
        inputs={"data": data or data_stage(settings)["train"], **roles},
        fresh=fresh,
        reinit=reinit,
        cache=cache,
        steps=settings.steps,
        batch=settings.batch,
        augment=augmentation(settings),
        views=settings.views,
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch) if means else None,
    )


def teacher_cache(
    settings: Teaching, objective: Composed, teacher: Model | None = None
) -> Mapping[str, Cache]:
    """What the objective reads of the teacher, computed once where it is vectors: maps are too
    large to be stored. `teacher` is its spec where it is not `teacher_model`'s.
    """
    read = objective.outputs_of("teacher")
    spec = teacher or named_model(settings, settings.teacher_model)
    shapes = output_shapes(spec) if read else {}
    small = all(len(shapes[output]) == 1 for output in read)
    return {"teacher": Cache(outputs=read)} if settings.cache and read and small else {}


def supervised(settings: Teaching, role: str, lr: float) -> Composed:
    term = Term(cross_entropy_loss, f"{role}.logits", "batch.labels")
    return Composed(
        phases={role: phase(settings, (role,), lr)},
        losses={"ce": Weighted(term=term)},
    )


def taught(
    settings: Teaching,
    losses: Mapping[str, Weighted],
    *,
    helpers: Iterable[str] = (),
    feeds: Mapping[str, tuple[str, ...]] = NOTHING,
) -> Composed:
    """The student, and helpers, by losses that read the teacher."""
    trains = phase(settings, ("student", *helpers), settings.lr)
    return Composed(phases={"student": trains}, losses=losses, feeds=feeds)


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


def listed(settings: ImageSettings) -> tuple[str, ...]:
    """The classes' names where a table has room for a column each, else none."""
    if settings.classes > MATRIX:
        return ()
    return settings.names or tuple(str(number) for number in range(settings.classes))


def augmentation(settings: Teaching) -> Augment | None:
    """The same for every seed: a sample's view is one image, whose teacher outputs are stored
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


def compared(
    settings: Teaching,
    teachers: Mapping[str, Stage],
    students: Mapping[str, Stages],
    *,
    titles: Mapping[str, str],
    baseline: str,
    exported: str,
    finish: Callable[[Stage], Stage] = as_trained,
) -> Comparison:
    """Students of the row "teacher", scored on the test images."""
    data = {"data": data_stage(settings)["test"]}
    return Comparison(
        teachers=teachers,
        students=students,
        titles=titles,
        baseline=baseline,
        exported=exported,
        finish=finish,
        scores=costed(
            Classification(teacher="teacher", names=listed(settings)),
            inputs={**data, "teacher": out(teachers["teacher"])},
            figures=(Predictions(names=settings.names), Mistakes(names=settings.names)),
            plots=(Confusion(names=settings.names),),
        ),
        teacher_scores=costed(
            Classification(role="teacher", names=listed(settings)), inputs=data, role="teacher"
        ),
    )


def export_stage(title: str, paper: str, data: str) -> Convert:
    """The export of an image classifier, checked on `data`."""
    card = Card(title=title, task="image-classification", paper=paper)
    export = Export(card=card, usage=classifier_usage)
    return Convert(name="export", convert=export, inputs={"data": data})
