"""vision/diswot: choose a student's architecture for a teacher without training, then distil it."""

from dataclasses import dataclass, replace

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.export import Export
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.projectors import ConvProjector
from stillhouse.objectives.relations import DisWOTRelation, DisWOTSemantic
from stillhouse.recipe import Recipe
from stillhouse.search import AgingEvolution, Exhaustive, Listed, RandomSearch, Strategy
from stillhouse.search.scores import DisWOT as DisWOTScore
from stillhouse.search.scores import ZeroCost
from stillhouse.stages import Convert, Search, Train
from stillhouse_vision.models import channels
from stillhouse_vision.recipes.diswot_settings import DisWOT
from stillhouse_vision.recipes.diswot_studies import distillation, study_stages
from stillhouse_vision.recipes.teaching import (
    ONE_TEACHER,
    caution,
    data_stage,
    image_spec,
    named_model,
    phase,
    schedule_note,
    supervised,
    teacher_stages,
    train_stage,
    trained_scores,
)
from stillhouse_vision.spaces import NasBench201, NasBenchMacro, ResNetDepths, ResNetShapes
from stillhouse_vision.usage import classifier_usage

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
    "what a score tells beyond size. On the authors' own 64 networks size ranks better than "
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
    from 1 to 7 a stage, no student larger than ResNet-20; 27 calibration networks on pictures of
    16 pixels; 48 cells of NAS-Bench-201. paper: CIFAR-100 (`--set data=...`), ResNet-110, S0, 240
    epochs of batches of 64, learning rate 0.05 times 0.1 at epochs 150, 180 and 210.
    """
    teacher = teacher_stages(settings, agree=("logits", "embedding", _last_maps(settings)[1]))
    searches = _searches(settings, teacher.ref)
    students = _students(settings, teacher.ref)
    every = [stage for row in students.values() for stage in row]
    scores = [trained_scores(settings, s, teacher.ref, picture=s.name == "kd-0") for s in every]
    studies = study_stages(settings, space_of(settings), score_of(settings), teacher.ref)
    export = Convert(
        name="export",
        convert=Export(card=_card(settings), usage=classifier_usage),
        inputs={
            "student": "kd-0.student",
            "data": "data.test",
            "scores": "kd-0-scores.scores",
        },
    )
    rows = {row: tuple(f"{s.name}-scores" for s in stages) for row, stages in students.items()}
    return Recipe(
        name="vision/diswot",
        reference=PAPER,
        stages=(
            data_stage(settings),
            *teacher.stages,
            *searches,
            *every,
            *scores,
            *studies.stages,
            export,
        ),
        rows={**teacher.rows, **rows},
        baseline="student",
        caution=caution(settings, f"{settings.steps} steps"),
        method="student + kd",
        notes=(*NOTES, schedule_note(settings, OFFICIAL), ONE_TEACHER),
        studies=studies.titles,
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


def _searches(settings: DisWOT, teacher: str) -> list[Search]:
    """DisWOT's choice, the one with the most parameters, and a random one a seed; one budget."""
    space, data = space_of(settings), {"data": "data.train"}
    search = Search(
        name="search",
        space=space,
        score=score_of(settings),
        budget=settings.budget,
        trials=settings.trials,
        inputs={**data, "teacher": teacher},
        strategy=AgingEvolution(),
    )
    size = ZeroCost(proxy="parameters", batch=settings.score_batch)
    few = len(space) <= LISTED
    strategy: Strategy = Exhaustive() if few else AgingEvolution()
    largest = replace(
        search,
        name="largest",
        score=size,
        trials=len(space) if few else settings.trials,
        inputs=data,
        strategy=strategy,
    )
    draw = replace(largest, trials=1, strategy=RandomSearch())
    return [
        search,
        largest,
        *(replace(draw, name=f"random-{seed}", seed=seed) for seed in range(settings.seeds)),
    ]


def _students(settings: DisWOT, teacher: str) -> dict[str, list[Train]]:
    """Each row's trainings, one a seed; one network's first weights and batches are those of the
    seed in every row.
    """
    kd, projector = distillation(settings), _projector(settings)
    both = _with_distances(settings, kd, projector)
    terms = " + ".join(name for name in ("M_s", "M_r") if name in both.losses)
    student = _Student(settings=settings, teacher=teacher)
    seeds = range(settings.seeds)
    plain = supervised(settings, "student", settings.lr)
    return {
        "student": [student.train("plain", "search", plain, seed) for seed in seeds],
        "student + kd": [student.train("kd", "search", kd, seed) for seed in seeds],
        f"student + kd + {terms}": [
            student.train("dagger", "search", both, seed, projector) for seed in seeds
        ],
        "largest + kd": [student.train("largest-kd", "largest", kd, seed) for seed in seeds],
        "random + kd": [student.train("random-kd", f"random-{seed}", kd, seed) for seed in seeds],
    }


@dataclass(frozen=True, kw_only=True)
class _Student:
    settings: DisWOT
    teacher: str

    def train(
        self,
        name: str,
        choice: str,
        objective: Composed,
        seed: int,
        projector: Model | None = None,
    ) -> Train:
        """A training of the network that the stage `choice` chose, from fresh weights."""
        settings, taught = self.settings, "teacher" in objective.roles
        maps = name == "dagger"  # which are too large to be stored
        stored = {"teacher": Cache(outputs=("logits",))}
        return train_stage(
            settings,
            f"{name}-{seed}",
            objective,
            roles={"student": f"{choice}.model"} | ({"teacher": self.teacher} if taught else {}),
            reinit=("student",),
            fresh={} if projector is None else {"projector": projector},
            steps=settings.steps,
            seed=seed,
            cache=stored if settings.cache and taught and not maps else {},
            sliced=not maps,
        )


def _with_distances(settings: DisWOT, kd: Composed, projector: Model | None) -> Composed:
    """Beside that M_s and M_r of the last maps; M_s through a projector where widths differ, and
    not at all where the space has students of several widths.
    """
    source = "student" if projector is None else "projector"
    student, teacher = _last_maps(settings)
    semantic = DisWOTSemantic(
        student=source, student_output=student, teacher_output=teacher, form=settings.form
    )
    relation = DisWOTRelation(student_output=student, teacher_output=teacher, form=settings.form)
    losses = {
        "M_s": Weighted(term=semantic, weight=settings.beta_s),
        "M_r": Weighted(term=relation, weight=settings.beta_r),
    }
    if settings.space == "shapes":
        del losses["M_s"]
    roles = () if projector is None else ("projector",)
    return replace(
        kd,
        phases={"student": phase(settings, ("student", *roles), settings.lr)},
        roles=(*kd.roles, *roles),
        losses={**kd.losses, **losses},
        feeds=dict.fromkeys(roles, ("student",)),
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


def _card(settings: DisWOT) -> Card:
    return Card(
        title=f"A network chosen by DisWOT, distilled from {settings.teacher_model}",
        task="image-classification",
        paper=PAPER,
    )
