"""vision/distill: a small classifier from a large one, by any distillation method."""

from stillhouse.comparison import seeded
from stillhouse.objectives.methods import MethodEntry
from stillhouse.objectives.objective import Composed
from stillhouse.recipe import Recipe
from stillhouse.references import out
from stillhouse_vision.recipes.distill_settings import Distill
from stillhouse_vision.recipes.few_labels import few_labels
from stillhouse_vision.recipes.method_entries import PAPER, method_entry
from stillhouse_vision.recipes.teaching import (
    ONE_TEACHER,
    caution,
    compared,
    export_stage,
    named_model,
    supervised,
    taught,
    teacher_cache,
    teachers_of,
    train_stage,
)


def distill(settings: Distill) -> Recipe:
    """Hinton et al. 2015 (arXiv 1503.02531), and each distillation method of its own paper.

    Claim: a student that also learns from a teacher's outputs is more accurate than the same
    student, from the same first weights and on the same batches, that learns from the labels alone.
    Command: `stillhouse run vision/distill --scale tiny|small|paper`. Scores are those of the last
    step; nothing is picked on the test set.

    tiny: 400 handwritten digits, three-layer networks. small: JPEG copies of CIFAR-10, a pretrained
    ResNet-56 that is first fine-tuned on them, ResNet-20. paper: CIFAR-100 (`--set data=...`),
    resnet32x4 to resnet8x4, SGD, 240 epochs of batches of 64, learning rate 0.05 times 0.1 at
    epochs 150, 180 and 210, 5 seeds.

    `--set labels=250` is another experiment: few labels, many unlabelled images, see `few_labels`.
    """
    if settings.labels:
        return few_labels(settings)
    entries = {name: _entry(settings, name) for name in settings.objective}
    objectives = {name: _objective(settings, entry) for name, entry in entries.items()}
    read = (output for each in objectives.values() for output in each.outputs_of("teacher"))
    # the scores compare logits
    teachers = teachers_of(settings, agree=tuple(dict.fromkeys(["logits", *read])))
    student = {"student": named_model(settings, settings.student)}
    alone = supervised(settings, "student", settings.lr)
    lessons = {"plain": train_stage(settings, "plain", alone, fresh=student)}
    for name, objective in objectives.items():
        lessons[name] = train_stage(
            settings,
            name,
            objective,
            roles={"teacher": out(teachers["teacher"])},
            fresh={**student, **entries[name].roles},
            cache=teacher_cache(settings, objective),
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


def _objective(settings: Distill, entry: MethodEntry) -> Composed:
    return taught(settings, entry.losses, helpers=entry.roles, feeds=entry.feeds)


def _entry(settings: Distill, objective: str) -> MethodEntry:
    student = named_model(settings, settings.student)
    teacher = named_model(settings, settings.teacher_model)
    return method_entry(settings, objective, student=student, teacher=teacher)
