"""vision/distill: a small classifier from a large one, by any objective of the zoo."""

from collections.abc import Mapping

from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.export import Export
from stillhouse.objectives.objective import Composed
from stillhouse.objectives.zoo import ZooEntry, zoo_method
from stillhouse.recipe import Recipe
from stillhouse.stages import Convert, Train
from stillhouse_vision.models import channels, output_shapes
from stillhouse_vision.recipes.distill_settings import WARM, Distill
from stillhouse_vision.recipes.teaching import (
    ONE_TEACHER,
    caution,
    data_stage,
    named_model,
    phase,
    supervised,
    teacher_stages,
    train_stage,
    trained_scores,
)
from stillhouse_vision.usage import classifier_usage

PAPER = (
    "Hinton, Vinyals, Dean 2015, Distilling the knowledge in a neural network (arXiv 1503.02531)"
)
# what is read of the teacher, where it is small enough to be computed once and stored
STORED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("kd", "dkd", "dist", "std_kd"), ("logits",)),
    **dict.fromkeys(("rkd", "cc", "pkt", "infonce", "crd"), ("embedding",)),
}


# means over samples, so that a batch may go in slices where memory does not suffice
SLICED = ("kd", "std_kd", "dkd", "hint", "at", "reviewkd")


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
    teacher = teacher_stages(settings, agree=_agree(settings))
    students = [_plain(settings, seed) for seed in range(settings.seeds)]
    for name in settings.objective:
        entry = _entry(settings, name)
        students += [
            _distilled(settings, name, entry, teacher.ref, seed) for seed in range(settings.seeds)
        ]
    first = f"{settings.objective[0]}-0"
    scores = [trained_scores(settings, s, teacher.ref, picture=s.name == first) for s in students]
    export = Convert(
        name="export",
        convert=_export(settings),
        inputs={
            "student": f"{first}.student",
            "data": "data.test",
            "scores": f"{first}-scores.scores",
        },
    )
    return Recipe(
        name="vision/distill",
        reference=PAPER,
        stages=(data_stage(settings), *teacher.stages, *students, *scores, export),
        rows={**teacher.rows, **_rows(settings)},
        baseline="student",
        notes=(ONE_TEACHER,),
        caution=caution(settings, f"{settings.steps} steps"),
        method=f"student + {settings.objective[0]}",
    )


def _rows(settings: Distill) -> dict[str, tuple[str, ...]]:
    names = {"student": "plain"} | {f"student + {name}": name for name in settings.objective}
    return {
        row: tuple(f"{name}-{seed}-scores" for seed in range(settings.seeds))
        for row, name in names.items()
    }


def _agree(settings: Distill) -> tuple[str, ...]:
    """The teacher's outputs that are read."""
    whole = any(o not in STORED for o in settings.objective)  # those read feature maps
    return (
        tuple(output_shapes(named_model(settings, settings.teacher_model)))
        if whole
        else ("logits",)
    )


def _plain(settings: Distill, seed: int) -> Train:
    """The baseline: labels alone; first weights and batches are those of its seed everywhere."""
    return train_stage(
        settings,
        f"plain-{seed}",
        supervised(settings, "student", settings.lr),
        fresh={"student": named_model(settings, settings.student)},
        steps=settings.steps,
        seed=seed,
    )


def _distilled(settings: Distill, name: str, entry: ZooEntry, teacher: str, seed: int) -> Train:
    stored = STORED.get(name, ())
    objective = Composed(
        phases={"student": phase(settings, ("student", *entry.roles), settings.lr)},
        roles=("teacher", "student", *entry.roles),
        losses=entry.losses,
        feeds=entry.feeds,
    )
    return train_stage(
        settings,
        f"{name}-{seed}",
        objective,
        roles={"teacher": teacher},
        fresh={"student": named_model(settings, settings.student), **entry.roles},
        steps=settings.steps,
        seed=seed,
        cache={"teacher": Cache(outputs=stored)} if settings.cache and stored else {},
        sliced=name in SLICED,
    )


def _entry(settings: Distill, objective: str) -> ZooEntry:
    method = zoo_method(objective)
    own = {
        key.partition(".")[2]: v
        for key, v in settings.numbers.items()
        if key.startswith(f"{objective}.")
    }
    shared = {"temperature": settings.temperature} if objective in WARM else {}
    student = channels(named_model(settings, settings.student))
    teacher = channels(named_model(settings, settings.teacher_model))
    return method(student, teacher, settings.classes, settings.samples, **(shared | own))


def _export(settings: Distill) -> Export:
    method = settings.objective[0]
    card = Card(
        title=f"{settings.student}, distilled from {settings.teacher_model} by {method}",
        task="image-classification",
        paper=PAPER,
    )
    return Export(card=card, usage=classifier_usage)
