"""vision/kd3: a student from unlabelled web images, where the teacher's own data are not at
hand.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.comparison import Comparison, seeded
from stillhouse.metrics import Classification
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.projectors import LinearProjector
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out, reference
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.stages.choosing import (
    CHOICES,
    Candidate,
    Choose,
    best_of,
    by_name,
    chosen_of,
    chosen_study,
)
from stillhouse_vision.drawing import KeepApart
from stillhouse_vision.metrics import Kept, KeptImages
from stillhouse_vision.models import ImageSpec, model, output_shapes
from stillhouse_vision.objectives import KD3, SharedClassifierProjector
from stillhouse_vision.objectives.shared import ExtractHead, MergeStudent, check_factor, last_map
from stillhouse_vision.recipes.kd3_settings import KD3Settings
from stillhouse_vision.recipes.teaching import (
    ONE_TEACHER,
    augmentation,
    caution,
    compared,
    data_stage,
    export_stage,
    image_spec,
    named_model,
    phase,
    schedule_note,
    taught,
    teachers_of,
    train_stage,
)
from stillhouse_vision.web import MostConfident, ReadWeb

PAPER = (
    "Tang et al. 2023, Distribution Shift Matters for Knowledge Distillation with Webly Collected "
    "Images (arXiv 2307.11469)"
)
NOTES = (
    "The equations are those of the released code: the paper's own were not at hand.",
    "Every student makes the same number of steps on batches of the same size, and sees no image "
    "of the target; scores are those of the last step, where the released code keeps the best "
    "epoch on the test set.",
    "KD3's deployed student is larger than that of plain KD by the projector: see its parameters.",
    "An epoch of KD3 is a fixed number of steps between two selections. A model normalises with "
    "one mean and deviation everywhere; the released code has other ones for the web.",
)
OFFICIAL = (
    "the released code has crops of random size and shape, 240 epochs, and a learning rate that "
    "falls to a tenth at epochs 150, 180 and 210. KD3's own milestones are fractions of the run"
)
STUDY = "What the last selection kept of the web"
EVERYTHING, CONFIDENT, OURS = (
    "student, KD on all web images",
    "student, KD on the teacher's most confident",
    "student, KD3",
)
# a row each: its name, and what differs from KD3
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "no-selection": ("student, KD3 without selection", {"selection": "none"}),
    "no-mix": ("student, KD3 without mixed statistics", {"mix_weight": 0.0}),
    "no-weighting": ("student, KD3 without weights", {"weighted": False}),
    "teacher-selection": ("student, KD3 selected by the teacher alone", {"selection": "teacher"}),
}


def kd3(settings: KD3Settings) -> Recipe:
    """KD3, Tang et al. 2023 (arXiv 2307.11469): distillation between different distributions.

    Claim: with web images of other classes and styles in the place of the teacher's data, a
    student that shares the teacher's classifier, aligns its weighted features on instances both
    networks choose, and contrasts images of mixed statistics, is more accurate on the target than
    one distilled by its logits on all of the web or on what the teacher is most confident about.
    Command: `stillhouse run vision/kd3 --scale tiny|small|paper`; the ablation's rows are named in
    the setting `variants`.

    tiny: handwritten digits and rendered glyphs 0-9 and A-Z, three-layer networks. small: JPEG
    copies of CIFAR-10 for a ResNet-56 teacher and the test, 8,000 photos of 200 other classes for a
    ResNet-20 of half the width. paper: CIFAR-10 and ImageNet-32 (`--set data=... --set web=...`,
    parquet or folders of images), ResNet-34 to ResNet-18, 240 epochs of batches of 1024.
    """
    teachers = teachers_of(_of_teacher(settings), agree=("logits", _maps(settings)["teacher"]))
    teacher, web = out(teachers["teacher"]), out(_web(settings))
    select = MostConfident(share=settings.confident)
    both = {"web": web, "teacher": teacher}
    confident = Make(name="confident", make=select, inputs=both, ports=("web",))
    head = out(Convert(name="head", convert=ExtractHead(), inputs={"teacher": teacher}))
    changes = {"kd3": {}} | {f"kd3-{name}": VARIANTS[name][1] for name in settings.variants}

    def lessons(given: KD3Settings) -> dict[str, Train]:
        return {
            "kd-all": _plain(given, "kd-all", teacher, web),
            "kd-confident": _plain(given, "kd-confident", teacher, out(confident)),
            **{name: _kd3(given, name, teacher, head, each) for name, each in changes.items()},
        }

    titles = {"kd-all": EVERYTHING, "kd-confident": CONFIDENT, "kd3": OURS}
    titles |= {f"kd3-{name}": VARIANTS[name][0] for name in settings.variants}
    students, choosers = _students(settings, lessons)
    made = compared(
        settings,
        teachers,
        students,
        titles=titles,
        baseline="kd-all",
        exported="kd3",
        finish=Merged(head=head),
    )
    title = f"{settings.student} with the classifier of its teacher {settings.teacher_model}"
    return made.recipe(
        name="vision/kd3",
        reference=PAPER,
        export=export_stage(f"{title}, by KD3 on web images", PAPER, made.scores.inputs["data"]),
        studies={
            STUDY: [_study(settings, made, both, stage) for stage in made.students["kd3"]],
            **({CHOICES: [chosen_study(choosers, titles)]} if choosers else {}),
        },
        notes=(
            *NOTES,
            schedule_note(settings, OFFICIAL),
            ONE_TEACHER,
            *([_choice_note(settings)] if choosers else []),
        ),
        caution=caution(settings, f"{settings.steps} steps"),
    )


def _students(
    settings: KD3Settings, lessons: Callable[[KD3Settings], Mapping[str, Train]]
) -> tuple[dict[str, Sequence[Stage]], dict[str, Choose]]:
    """The students' trainings of all seeds by row, and the stages that chose their rates."""
    if not settings.rates:
        return {n: seeded(each, settings.seeds) for n, each in lessons(settings).items()}, {}
    keep = KeepApart(rows=settings.validation)
    data = {"data": data_stage(settings)["train"]}
    apart = Make(name="apart", make=keep, inputs=data, ports=("pool", "validation"))
    short, whole = (
        {
            lr: lessons(settings.model_copy(update={"lr": lr, "steps": steps}))
            for lr in settings.rates
        }
        for steps in (settings.choose_steps, settings.steps)
    )
    students: dict[str, Sequence[Stage]] = {}
    choosers: dict[str, Choose] = {}
    for name, lesson in lessons(settings).items():
        chooser = chosen_of(
            _by_rate({lr: each[name] for lr, each in short.items()}),
            name=f"choose-{name}",
            validation=apart["validation"],
            steps=settings.choose_steps,
            metric=Classification(),
            score="accuracy",
            finish=MergeStudent() if "projector" in lesson.outputs else None,
        )
        choosers[name] = chooser
        students[name] = [
            best_of(
                _by_rate({lr: replace(each[name], seed=seed) for lr, each in whole.items()}),
                out(chooser),
                name=f"{name}-{seed}",
                seed=seed,
            )
            for seed in range(settings.seeds)
        ]
    return students, choosers


def _by_rate(trains: Mapping[float, Train]) -> dict[str, Candidate]:
    return by_name([Candidate(train=each, chosen={"lr": lr}) for lr, each in trains.items()])


def _choice_note(settings: KD3Settings) -> str:
    rates = ", ".join(f"{rate:g}" for rate in settings.rates)
    return (
        f"Each row has chosen its learning rate among {rates}, by the accuracy on "
        f"{settings.validation} labelled images of the target's training part, which no student "
        f"sees, after trainings of {settings.choose_steps} steps of one seed. Only this choice "
        "reads labels of the target; the teacher has seen these images."
    )


@dataclass(frozen=True, kw_only=True)
class Merged:
    """From a student of KD3 to it, its projector and the teacher's classifier as one network."""

    head: Ref

    def __call__(self, stage: Stage) -> Stage:
        if "projector" not in stage.outputs:
            return stage
        parts = {part: reference(stage, part) for part in ("student", "projector")}
        inputs = {**parts, "head": self.head}
        return Convert(name=f"{stage.name}-merged", convert=MergeStudent(), inputs=inputs)


def _of_teacher(settings: KD3Settings) -> KD3Settings:
    """The settings with the teacher's own batch, and the augmentation of vision/distill."""
    augment = "crop-flip" if settings.augment == "resized-crop" else settings.augment
    return settings.model_copy(update={"batch": settings.teacher_batch, "augment": augment})


def _web(settings: KD3Settings) -> Make:
    make = ReadWeb(images=image_spec(settings), vocabulary=settings.vocabulary)
    return Make(name="web", make=make, inputs={"source": settings.web}, ports=("web",))


def _plain(settings: KD3Settings, name: str, teacher: Ref, web: Ref) -> Train:
    """The student with its own classifier, by its teacher's softened logits alone."""
    term = Term(kd_loss, "student.logits", "teacher.logits", temperature=settings.temperature)
    return train_stage(
        settings,
        name,
        taught(settings, {"kd": Weighted(term=term)}),
        roles={"teacher": teacher},
        fresh={"student": named_model(settings, settings.student)},
        cache=_cache(settings, _maps(settings)["teacher"]),
        data=web,
    )


def _kd3(
    settings: KD3Settings, name: str, teacher: Ref, head: Ref, changes: Mapping[str, object]
) -> Train:
    objective = replace(_objective(settings, _maps(settings)), **changes)
    parts = _parts(settings, objective, _shapes(settings))
    fresh = {"student": named_model(settings, settings.student), **parts}
    trains = phase(settings, tuple(fresh), settings.lr)
    return train_stage(
        settings,
        name,
        replace(objective, phases={"student": trains}),
        roles={"teacher": teacher, "head": head},
        fresh=fresh,
        cache=_cache(settings, objective.teacher_map),
        data=out(_web(settings)),
    )


def _shapes(settings: KD3Settings) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    names = {"student": settings.student, "teacher": settings.teacher_model}
    images = image_spec(settings)
    return {role: _shapes_of(name, settings.classes, images) for role, name in names.items()}


@functools.cache  # every stage reads it, and a large teacher is built for it
def _shapes_of(name: str, classes: int, images: ImageSpec) -> Mapping[str, tuple[int, ...]]:
    return output_shapes(model(name, classes=classes, images=images))


def _maps(settings: KD3Settings) -> dict[str, str]:
    return {role: last_map(shapes) for role, shapes in _shapes(settings).items()}


def _cache(settings: KD3Settings, teacher_map: str) -> dict[str, Cache]:
    """One for every row: plain KD reads the logits of what KD3 needs all of."""
    return {"teacher": Cache(outputs=("logits", teacher_map))} if settings.cache else {}


def _objective(settings: KD3Settings, maps: Mapping[str, str]) -> KD3:
    off, scale = settings.mixing
    return KD3(
        phases={},
        refresh_every=settings.refresh_every,
        milestones=(off * settings.refreshes, scale * settings.refreshes),
        student_map=maps["student"],
        teacher_map=maps["teacher"],
        cutoff=settings.cutoff,
        least=settings.batch,  # every step has a whole batch
        select_augment=augmentation(settings) if settings.select_on == "views" else None,
        views=settings.views,
        weight_temperature=settings.weight_temperature,
        weight_standardize=settings.weight_standardize,
        mix_weight=settings.mix_weight,
        contrast_temperature=settings.contrast_temperature,
        concentration=settings.concentration,
        teacher_contrast=settings.teacher_contrast,
    )


def _parts(
    settings: KD3Settings, objective: KD3, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, Model]:
    """What is trained beside the student: the projector, and embeddings where they are read."""
    channels = shapes["student"][objective.student_map][0]
    target, size, _ = shapes["teacher"][objective.teacher_map]
    check_factor(settings.factor, target)
    projector = {
        "source": objective.student_map,
        "channels": channels,
        "target": target,
        "size": size,
        "factor": settings.factor,
    }
    parts = {"projector": Model(build=SharedClassifierProjector, kwargs=projector)}
    if objective.mix_weight > 0:
        parts["embedding"] = _embedding(settings, "student", shapes)
        if objective.teacher_contrast:
            parts["teacher_embedding"] = _embedding(settings, "teacher", shapes)
    return parts


def _embedding(
    settings: KD3Settings, role: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Model:
    kwargs = {
        "inputs": [f"{role}.embedding"],
        "channels": [shapes[role]["embedding"][0]],
        "targets": [settings.embedding],
    }
    return Model(build=LinearProjector, kwargs=kwargs)


def _study(
    settings: KD3Settings, made: Comparison, inputs: Mapping[str, Ref], stage: Stage
) -> Evaluate:
    """The selection of KD3's last epoch, once more, by the students as they ended."""
    objective = _objective(settings, _maps(settings))
    alpha, cutoff = objective.alpha(settings.steps - 1), settings.cutoff
    figure = KeptImages(alpha=alpha, cutoff=cutoff, names=settings.names)
    return Evaluate(
        name=f"{stage.name}-kept",
        metrics=(Kept(alpha=alpha, cutoff=cutoff),),
        inputs={
            "data": inputs["web"],
            "student": made.model(stage),
            "teacher": inputs["teacher"],
        },
        figures=(figure,) if stage == made.first else (),
    )
