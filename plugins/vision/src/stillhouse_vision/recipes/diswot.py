"""vision/diswot: choose a student's architecture for a teacher without training, then distil it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stillhouse.artifact import Model
from stillhouse.comparison import seeded
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.projectors import ConvProjector
from stillhouse.objectives.relations import diswot_relation_loss, diswot_semantic_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe
from stillhouse.references import Ref, out
from stillhouse.search import AgingEvolution, Exhaustive, Listed, RandomSearch
from stillhouse.search.scores import DisWOT as DisWOTScore
from stillhouse.search.scores import ZeroCost
from stillhouse.stages import Search, Train
from stillhouse_vision.models import channels
from stillhouse_vision.recipes.diswot_settings import DisWOT
from stillhouse_vision.recipes.diswot_studies import distillation, studies
from stillhouse_vision.recipes.teaching import (
    NOTHING,
    ONE_TEACHER,
    caution,
    compared,
    data_stage,
    export_stage,
    image_spec,
    named_model,
    schedule_note,
    supervised,
    taught,
    teacher_cache,
    teachers_of,
    train_stage,
)
from stillhouse_vision.spaces import NasBench201, NasBenchMacro, ResNetDepths, ResNetShapes

PAPER = (
    "Dong, Li, Wei 2023, DisWOT: student architecture search for distillation without training "
    "(CVPR 2023, arXiv 2303.15678)"
)
NOTES = (
    "Score: the released code's form (gradients of the head, unit rows), with which the paper's "
    "numbers were made; the paper's text has the head's weights and the norm of the whole matrix. "
    "Mean over several draws of the weights, z-scores instead of a plain sum, no parent among the "
    "worst, children held to the budget: ours.",
    "Where teacher and student differ in width, the semantic part compares classes instead of "
    "channels: our extension.",
    "M_s and M_r as losses are a reconstruction; their weights are SP's 3000 and 1, not the "
    "paper's, which are not known.",
    "Size is a strong score: read parameters and macs beside DisWOT, and the partial tau, which is "
    "what a score adds beyond size. On the authors' own 64 networks size ranks better than "
    "DisWOT.",
    "'random' is another architecture in each seed; the other students are one architecture.",
    "Calibration networks are compared on held-out training data, trained once each; NAS-Bench-201 "
    "accuracies are the benchmark's, without a teacher, on its test set.",
)
OFFICIAL = (
    "the paper has CIFAR-100, 240 epochs of batches of 64, and a learning rate of 0.05 that falls "
    "to a tenth at epochs 150, 180 and 210: in longer trainings rows may change places"
)
LISTED = 1000  # up to here every architecture's size is looked at


def diswot(settings: DisWOT) -> Recipe:
    """DisWOT, Dong et al. 2023 (arXiv 2303.15678): a student's architecture without training any.

    Claim: the student that sees a batch most as the teacher does, both untrained, is the one that
    distils best; the search is at least 180 times faster than one that trains its candidates.
    Command: `stillhouse run vision/diswot --scale tiny|small|paper`. Scores are those of the last
    step; nothing is picked on the test set.

    tiny: 400 handwritten digits, 8 ResNets of 4 to 16 channels. small: JPEG copies of CIFAR-10, a
    pretrained ResNet-56 that is first fine-tuned on them; the paper's space S0 with every depth
    from 1 to 7 a stage, no student larger than ResNet-20; 27 calibration networks on images of
    16 pixels; 48 cells of NAS-Bench-201. paper: CIFAR-100 (`--set data=...`), ResNet-110, S0, 240
    epochs of batches of 64, learning rate 0.05 times 0.1 at epochs 150, 180 and 210.
    """
    teachers = teachers_of(settings, agree=("logits", "embedding", _last_maps(settings)[1]))
    teacher = out(teachers["teacher"])
    projector = _projector(settings)
    both = _with_distances(settings, projector)
    terms = " + ".join(name for name in ("M_s", "M_r") if name in both.losses)
    made = compared(
        settings,
        teachers,
        _students(settings, teacher, both, projector),
        titles={
            "plain": "student",
            "kd": "student + kd",
            "dagger": f"student + kd + {terms}",
            "largest-kd": "largest + kd",
            "random-kd": "random + kd",
        },
        baseline="plain",
        exported="kd",
    )
    title = f"A network chosen by DisWOT, distilled from {settings.teacher_model}"
    return made.recipe(
        name="vision/diswot",
        reference=PAPER,
        export=export_stage(title, PAPER, made.scores.inputs["data"]),
        studies=studies(settings, space_of(settings), score_of(settings), teacher),
        notes=(*NOTES, schedule_note(settings, OFFICIAL), ONE_TEACHER),
        caution=caution(settings, f"{settings.steps} steps"),
    )


def space_of(settings: DisWOT) -> Listed:
    """The space that is searched."""
    classes, images = settings.classes, image_spec(settings)
    match settings.space:
        case "depths":
            return ResNetDepths(
                choices=settings.depths, widths=settings.widths, classes=classes, images=images
            )
        case "shapes":
            return ResNetShapes(classes=classes, images=images)
        case "nasbench201":
            return NasBench201(classes=classes, images=images)
        case "macro":
            return NasBenchMacro(classes=classes, images=images)


def score_of(settings: DisWOT) -> DisWOTScore:
    return DisWOTScore(
        batch=settings.score_batch,
        inits=settings.inits,
        combine=settings.combine,
        references=settings.references,
        by_class=settings.space == "shapes",  # its students have several widths
    )


def _students(
    settings: DisWOT, teacher: Ref, both: Composed, projector: Model | None
) -> Mapping[str, Sequence[Train]]:
    """One network's first weights and batches are those of the seed in every row. What is chosen:
    DisWOT's best, the one with the most parameters, and a random one a seed; of one budget.
    """
    space, data = space_of(settings), {"data": data_stage(settings)["train"]}
    search = Search(
        name="search",
        space=space,
        score=score_of(settings),
        budget=settings.budget,
        trials=settings.trials,
        inputs={**data, "teacher": teacher},
        strategy=AgingEvolution(),
    )
    few = len(space) <= LISTED
    largest = replace(
        search,
        name="largest",
        score=ZeroCost(proxy="parameters", batch=settings.score_batch),
        trials=len(space) if few else settings.trials,
        inputs=data,
        strategy=Exhaustive() if few else AgingEvolution(),
    )
    draw = replace(largest, name="random", trials=1, strategy=RandomSearch())
    roles, kd = {"teacher": teacher}, distillation(settings)
    plain = _train(settings, "plain", supervised(settings, "student", settings.lr), search, {})
    distilled = _train(settings, "kd", kd, search, roles)
    helpers = {} if projector is None else {"projector": projector}
    dagger = _train(settings, "dagger", both, search, roles, fresh=helpers)
    most = _train(settings, "largest-kd", kd, largest, roles)
    students = {s.name: seeded(s, settings.seeds) for s in (plain, distilled, dagger, most)}
    draws = seeded(draw, settings.seeds)
    drawn = [_train(settings, f"random-kd-{d.seed}", kd, d, roles) for d in draws]
    return students | {"random-kd": [replace(s, seed=i) for i, s in enumerate(drawn)]}


def _train(
    settings: DisWOT,
    name: str,
    objective: Composed,
    choice: Search,
    teacher: Mapping[str, str],
    *,
    fresh: Mapping[str, Model] = NOTHING,
) -> Train:
    """A training of the network that `choice` leaves, from fresh weights."""
    return train_stage(
        settings,
        name,
        objective,
        roles={"student": out(choice), **teacher},
        reinit=("student",),
        fresh=fresh,
        cache=teacher_cache(settings, objective),
    )


def _with_distances(settings: DisWOT, projector: Model | None) -> Composed:
    """Beside the distillation M_s and M_r of the last maps; M_s through a projector where widths
    differ, and not at all where the space has students of several widths.
    """
    source = "student" if projector is None else "projector"
    student, teacher = _last_maps(settings)
    target, form = f"teacher.{teacher}", settings.form
    semantic = Term(diswot_semantic_loss, f"{source}.{student}", target, form=form)
    relation = Term(diswot_relation_loss, f"student.{student}", target, form=form)
    losses = {
        "M_s": Weighted(term=semantic, weight=settings.beta_s),
        "M_r": Weighted(term=relation, weight=settings.beta_r),
    }
    if settings.space == "shapes":
        del losses["M_s"]
    roles = () if projector is None else ("projector",)
    losses = {**distillation(settings).losses, **losses}
    return taught(
        settings, losses, helpers=roles, feeds=dict.fromkeys(roles, (f"student.{student}",))
    )


def _projector(settings: DisWOT) -> Model | None:
    """A 1 x 1 convolution to the teacher's width, where all students have another one."""
    student = channels(_first_model(settings)).hints[-1]
    teacher = channels(named_model(settings, settings.teacher_model)).hints[-1]
    if settings.space == "shapes" or student == teacher:
        return None
    source = f"student.{_last_maps(settings)[0]}"
    kwargs = {"inputs": [source], "channels": [student], "targets": [teacher]}
    return Model(build=ConvProjector, kwargs=kwargs)


def _last_maps(settings: DisWOT) -> tuple[str, str]:
    """Names of the student's and the teacher's map before pooling."""
    models = _first_model(settings), named_model(settings, settings.teacher_model)
    student, teacher = (f"hint{len(channels(model).hints)}" for model in models)
    return student, teacher


def _first_model(settings: DisWOT) -> Model:
    space = space_of(settings)
    return space.model(space.at(0))
