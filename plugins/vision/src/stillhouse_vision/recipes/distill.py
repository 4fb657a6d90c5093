"""vision/distill: a small classifier from a large one, by any objective of the zoo."""

from collections.abc import Mapping

from stillhouse.cache import Cache
from stillhouse.comparison import seeded
from stillhouse.objectives.zoo import ZooEntry, zoo_method
from stillhouse.recipe import Recipe
from stillhouse.references import out
from stillhouse_vision.models import channels, output_shapes
from stillhouse_vision.recipes.distill_settings import WARM, Distill
from stillhouse_vision.recipes.teaching import (
    ONE_TEACHER,
    caution,
    compared,
    export_stage,
    named_model,
    supervised,
    taught,
    teachers_of,
    train_stage,
)

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
    teachers = teachers_of(settings, agree=_agree(settings))
    student = {"student": named_model(settings, settings.student)}
    alone = supervised(settings, "student", settings.lr)
    lessons = {"plain": train_stage(settings, "plain", alone, fresh=student)}
    for name in settings.objective:
        entry, stored = _entry(settings, name), STORED.get(name, ())
        lessons[name] = train_stage(
            settings,
            name,
            taught(settings, entry.losses, helpers=entry.roles, feeds=entry.feeds),
            roles={"teacher": out(teachers["teacher"])},
            fresh={**student, **entry.roles},
            cache={"teacher": Cache(outputs=stored)} if settings.cache and stored else {},
            sliced=name in SLICED,
        )
    method = settings.objective[0]
    made = compared(
        settings,
        teachers,
        {name: seeded(lesson, settings.seeds) for name, lesson in lessons.items()},
        titles={"plain": "student"} | {name: f"student + {name}" for name in settings.objective},
        baseline="plain",
        exported=method,
    )
    title = f"{settings.student}, distilled from {settings.teacher_model} by {method}"
    return made.recipe(
        name="vision/distill",
        reference=PAPER,
        export=export_stage(title, PAPER, made.scores.inputs["data"]),
        notes=(ONE_TEACHER,),
        caution=caution(settings, f"{settings.steps} steps"),
    )


def _agree(settings: Distill) -> tuple[str, ...]:
    """The teacher's outputs that are read."""
    if all(name in STORED for name in settings.objective):
        return ("logits",)
    # the others read feature maps
    return tuple(output_shapes(named_model(settings, settings.teacher_model)))


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
