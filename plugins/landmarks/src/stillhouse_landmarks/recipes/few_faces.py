"""landmarks/two_teacher with few or noisy labels: what teachers on a pretrained network buy a small
student there.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores, by_line, costed
from stillhouse.data.sampling import Mix
from stillhouse.embedding import Embed
from stillhouse.export import Export
from stillhouse.metrics import On
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.stages.choosing import (
    CHOICES,
    Candidate,
    Choose,
    TrainChosen,
    best_of,
    by_name,
    chosen_of,
    chosen_study,
)
from stillhouse_landmarks.drawing import (
    POINTS,
    AddNoise,
    CopyFaces,
    DrawFaces,
    FirstViews,
    noisy_column,
)
from stillhouse_landmarks.few_labels import (
    UNLABELLED,
    completed_assistive_loss,
    completed_l1_loss,
    completed_main_loss,
)
from stillhouse_landmarks.figures import Ced, Faces
from stillhouse_landmarks.metrics import Landmarks
from stillhouse_landmarks.models import model
from stillhouse_landmarks.objectives import assistive_loss, l1_loss, paper_main_loss
from stillhouse_landmarks.pretrained import FitRidge, LoadFrozen, WithoutFolds, frozen_regressor
from stillhouse_landmarks.recipes.face_data import data_stage, face_copies, image_spec, phase_of
from stillhouse_landmarks.recipes.few_faces_settings import ALL, ALONE, REST_ROWS, SELF
from stillhouse_landmarks.recipes.scores import Quantiles
from stillhouse_landmarks.recipes.two_teacher_notes import PAPER
from stillhouse_landmarks.recipes.two_teacher_settings import TwoTeacherSettings
from stillhouse_landmarks.shape import FitShape
from stillhouse_landmarks.usage import regressor_usage

TEACHERS = ("tough", "tolerant")
TRUTH = ("student.landmarks", "batch.landmarks")
# losses that read the truth, and what stands in for them where faces have none
COMPLETED = {
    l1_loss: completed_l1_loss,
    paper_main_loss: completed_main_loss,
    assistive_loss: completed_assistive_loss,
}
NOTES = (
    "Labelled faces, the noise on their points, teachers, first weights and batches are drawn anew "
    "for each seed; the teachers of a seed see the same labels and no others.",
    "Teachers: the map of one block of a network that others trained on ImageNet, which stays as "
    "it is, and a ridge regression from it to hard landmarks (tough) or to soft ones (tolerant). "
    "They are not the paper's, which are trained whole.",
    "Cross-fitting: of a labelled face the students hear a teacher that was fitted without it; of "
    "the others one that was fitted to all labelled faces.",
    "On faces without points the tough teacher's word stands in for the truth, in all losses: the "
    "paper has no such faces, this is ours. Self-training is the control without a teacher: the "
    "student on labels alone stands in, and a fresh student trains on both.",
    "'paper' is the two-teacher loss with the numbers read off the paper's figures; 'plain' is L1 "
    "to the truth and L1 to the tough teacher.",
    "Every student of a seed makes the same number of steps from the same first weights.",
)


def few_faces(settings: TwoTeacherSettings) -> Recipe:
    """Students on `labels` labelled faces alone, beside those that teachers on a pretrained network
    assist, on these faces or on all; or on all faces with `noise` on their points.

    Claim: with few labels, or noisy ones, a student that hears teachers of the same labels is more
    accurate than one of the labels alone, and the two-teacher loss more than plain L1 to one
    teacher. Command: `stillhouse run landmarks/two_teacher --scale small --set labels=100`, or
    `--set noise=0.03`.
    """
    draws = [_Draw(settings, seed) for seed in range(settings.seeds)]
    data, exported = data_stage(settings), _exported(settings)
    quality = functools.partial(Landmarks, normalizer=settings.normalizer)
    made = Comparison(
        teachers={},
        seeded_teachers={
            f"{name} teacher": [draw.used(name) for draw in draws] for name in TEACHERS
        },
        students={row: [draw.student(row) for draw in draws] for row in settings.all_rows},
        titles={row: title(row) for row in settings.all_rows},
        baseline=ALONE,
        exported=exported,
        scores=costed(quality(), inputs={"data": data[settings.scored_on]}),
        teacher_scores=_teacher_scores(settings),
    )
    what = f"{settings.student}, {settings.points} facial landmarks, {title(exported)}"
    card = Card(title=what, task="keypoint-detection", paper=PAPER)
    export = Export(outputs=("landmarks",), card=card, usage=regressor_usage)
    studies = {"Spread of the errors, first seed": [_errors(settings, made)]}
    if settings.rates:
        studies[CHOICES] = [choices(settings)]
    return made.recipe(
        name="landmarks/two_teacher",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs={"data": data["train"]}),
        studies=studies,
        notes=(*NOTES, *([choice_note(settings)] if settings.rates else [])),
    )


def title(row: str) -> str:
    """A row's name in the report."""
    match row:
        case "labels":
            return "student, labels alone (L1)"
        case "self-training":
            return "student, self-training on all faces"
        case _:
            loss = "L1 + plain teacher" if row.startswith("plain") else "both teachers (paper)"
            return f"student, {loss}, {'all faces' if row.endswith(ALL) else 'labelled faces'}"


def choice_note(settings: TwoTeacherSettings) -> str:
    """How learning rates were chosen."""
    rates = ", ".join(f"{rate:g}" for rate in settings.rates)
    return (
        f"Each row has chosen its learning rate among {rates} by the NME on the validation faces, "
        "which no student and no teacher sees and whose points have no noise, after trainings of "
        f"{settings.choose_steps} steps on the first seed's labels."
    )


def choices(settings: TwoTeacherSettings) -> Evaluate:
    """The study that shows what was chosen."""
    choosers = {row: _chosen(settings, row) for row in settings.all_rows}
    return chosen_study(choosers, {row: title(row) for row in settings.all_rows})


def _chosen(settings: TwoTeacherSettings, row: str) -> Choose:
    """The stage that chooses a row's learning rate, on the first seed's labels and teachers."""
    return chosen_of(
        _Draw(settings, 0).candidates(row),
        name=f"choose-{row}",
        validation=data_stage(settings)["validation"],
        steps=settings.choose_steps,
        metric=Landmarks(normalizer=settings.normalizer),
        score="nme_error",
    )


def _exported(settings: TwoTeacherSettings) -> str:
    """The method: the paper's loss, on all faces where it is a row."""
    order = (f"paper{ALL}", "paper", *settings.all_rows[::-1])
    return next(row for row in order if row in settings.all_rows)


def _spec(settings: TwoTeacherSettings) -> Model:
    return Model(
        build=frozen_regressor,
        kwargs={
            "name": settings.pretrained_name,
            "level": settings.pretrained_level,
            "side": settings.pretrained_side,
            "mean": list(settings.pretrained_mean),
            "std": list(settings.pretrained_std),
            "images": image_spec(settings).json(),
        },
    )


def _network(settings: TwoTeacherSettings) -> Convert:
    return Convert(
        name="pretrained",
        convert=LoadFrozen(model=_spec(settings)),
        inputs={"weights": settings.pretrained},
    )


def _embedded(settings: TwoTeacherSettings, name: str, data: Ref) -> Ref:
    """The network's maps of faces, computed once for the teachers of all seeds."""
    stage = Make(
        name=name,
        make=Embed(half=True),
        inputs={"network": out(_network(settings)), "data": data},
        ports=("embedded",),
    )
    return out(stage)


def _copies(settings: TwoTeacherSettings) -> Ref:
    """Augmented copies of all training faces, with the network's maps, and each seed's noise."""
    faces, columns = data_stage(settings)["train"], (POINTS,)
    if settings.noise > 0:
        add = AddNoise(noise=settings.noise, seeds=settings.seeds)
        faces = out(Make(name="noise", make=add, inputs={"data": faces}, ports=("train",)))
        columns = (POINTS, *(noisy_column(seed) for seed in range(settings.seeds)))
    copied = Make(
        name="copies",
        make=CopyFaces(
            augment=face_copies(settings, columns), views=settings.copies, columns=columns
        ),
        inputs={"data": faces},
        ports=("train",),
    )
    return _embedded(settings, "features", out(copied))


class _Draw:
    """A seed: its labelled faces, its teachers, its students."""

    def __init__(self, settings: TwoTeacherSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.rest = any(row in REST_ROWS for row in settings.all_rows)
        self.faces = Make(
            name=f"draw-{seed}",
            make=DrawFaces(
                faces=settings.labels,
                folds=settings.folds,
                rest=self.rest,
                points=noisy_column(seed) if settings.noise > 0 else POINTS,
            ),
            inputs={"data": _copies(settings)},
            ports=("labelled", "unlabelled") if self.rest else ("labelled",),
            seed=seed,
        )
        self.teachers = {name: self._teacher(name) for name in TEACHERS}

    def _teacher(self, name: str) -> Convert:
        settings = self.settings
        fitted = Make(
            name=f"fitted-{self.seed}",
            make=FirstViews(views=settings.fitted_copies),
            inputs={"data": self.faces["labelled"]},
            ports=("train",),
        )
        inputs = {"network": out(_network(settings)), "data": out(fitted)}
        if name == "tolerant":
            shape = Convert(
                name=f"shape-{self.seed}",
                convert=FitShape(variance=settings.variance),
                inputs={"data": self.faces["labelled"]},
            )
            inputs["shape"] = out(shape)
        return Convert(
            name=f"{name}-{self.seed}", convert=FitRidge(folds=settings.folds), inputs=inputs
        )

    def used(self, name: str) -> Convert:
        """A teacher as it answers for other faces."""
        inputs = {"network": out(self.teachers[name])}
        return Convert(name=f"{name}-teacher-{self.seed}", convert=WithoutFolds(), inputs=inputs)

    def student(self, row: str) -> Train | TrainChosen:
        """The training of a row: at the rate chosen for it, where there is a choice."""
        if not self.settings.rates:
            return self._train(row, self.settings.lr)
        choice, name = out(_chosen(self.settings, row)), f"{row}-{self.seed}"
        return best_of(self.candidates(row), choice, name=name, seed=self.seed)

    def candidates(self, row: str) -> dict[str, Candidate]:
        """A row's trainings to choose from, by name."""
        rates = self.settings.rates
        return by_name([Candidate(train=self._train(row, lr), chosen={"lr": lr}) for lr in rates])

    def _train(self, row: str, lr: float) -> Train:
        settings = self.settings
        phases = {"student": phase_of(settings, "student", lr)}
        objective = Composed(phases=phases, losses=_losses(settings, row))
        everywhere: dict[str, Ref] = {name: out(stage) for name, stage in self.teachers.items()}
        if row == SELF:
            everywhere["labeller"] = out(self.student(ALONE))
        read = {role: ref for role, ref in everywhere.items() if role in objective.roles}
        mixed = row in REST_ROWS
        parts = {"labelled": 1, "unlabelled": settings.unlabelled}
        ports = {port: self.faces[port] for port in parts} if mixed else {}
        return Train(
            name=f"{row}-{self.seed}",
            objective=objective,
            inputs={**(ports or {"data": self.faces["labelled"]}), **read},
            data=Mix(parts=parts, fill={POINTS: UNLABELLED}) if mixed else None,
            fresh={"student": model(settings.student, images=image_spec(settings))},
            cache={role: Cache(outputs=objective.outputs_of(role)) for role in read},
            steps=settings.steps,
            batch=settings.batch,
            views=1,  # the augmented copies are rows of the data
            precision=settings.precision,
            seed=self.seed,
        )


def _losses(settings: TwoTeacherSettings, row: str) -> Mapping[str, Weighted]:
    kind = row.removesuffix(ALL)
    if row == SELF:
        term = Term(completed_l1_loss, *TRUTH, "labeller.landmarks")
        return {"l1": Weighted(term=term)}
    plain = {"l1": Weighted(term=Term(l1_loss, *TRUTH))}
    if row == ALONE:
        return plain
    if kind == "plain":
        teacher = Term(l1_loss, "student.landmarks", "tough.landmarks")
        weighted = Weighted(term=teacher, weight=settings.teacher_weight)
        losses: Mapping[str, Weighted] = {**plain, "teacher": weighted}
    else:
        loss = settings.loss("paper")
        assert loss is not None
        losses = loss.losses()
    if not row.endswith(ALL):
        return losses
    return {name: replace(loss, term=_completed(loss.term)) for name, loss in losses.items()}


def _completed(term: Term) -> Term:
    """The term where some faces have no points; what reads no truth stays as it is."""
    if TRUTH[1] not in term.reads:
        return term
    filled = COMPLETED[term.loss]
    return Term(filled, *term.reads, "tough.landmarks", **term.hyperparameters)


def _teacher_scores(settings: TwoTeacherSettings) -> Scores:
    """On stored maps; what it costs is that of the whole."""
    tested = data_stage(settings)[settings.scored_on]
    metric = Landmarks(role="teacher", normalizer=settings.normalizer)
    maps = _embedded(settings, "test-features", tested)
    scores = costed(
        On(data="embedded", metric=metric),
        inputs={"data": tested, "embedded": maps},
        role="teacher",
    )
    return replace(scores, data=("data", "embedded"))


def _errors(settings: TwoTeacherSettings, made: Comparison) -> Evaluate:
    """How the errors of the tough teacher, the labels alone and the method spread, and their points
    on faces.
    """
    shown = ("tough teacher", title(ALONE), title(_exported(settings)))
    lines, roles = {line: made.lines()[line] for line in shown}, made.roles()
    normalizer = settings.normalizer
    return Evaluate(
        name="errors",
        metrics=(by_line(functools.partial(Quantiles, normalizer=normalizer), lines),),
        inputs={
            "data": made.scores.inputs["data"],
            **{role: roles[role] for role in lines.values()},
        },
        figures=(Faces(lines=lines),),
        plots=(Ced(lines=lines, dashed=(lines["tough teacher"],), normalizer=normalizer),),
    )
