"""vision/distill with few labels: what a teacher and unlabelled images buy a small classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from stillhouse.artifact import Model
from stillhouse.comparison import Scores, costed
from stillhouse.data.sampling import Mix
from stillhouse.embedding import Embed
from stillhouse.metrics import Classification, On
from stillhouse.objectives.logits import dkd_loss
from stillhouse.objectives.methods import MethodEntry
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Kind, Recipe, Row, Stage
from stillhouse.references import Ref, collected, out
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
from stillhouse_vision.drawing import DrawLabels, KeepApart
from stillhouse_vision.figures import Confusion, Mistakes, Predictions
from stillhouse_vision.models import named_upscaled
from stillhouse_vision.models.upscaled import FitHead, LoadPretrained
from stillhouse_vision.objectives.few_labels import (
    UNLABELLED,
    completed_dkd_loss,
    labelled_cross_entropy_loss,
    pseudo_label_loss,
)
from stillhouse_vision.recipes.distill_settings import WARM, Distill
from stillhouse_vision.recipes.few_labels_settings import ALL, ALONE, SELF, reads_all
from stillhouse_vision.recipes.method_entries import PAPER, method_entry
from stillhouse_vision.recipes.teaching import (
    caution,
    data_stage,
    export_stage,
    image_spec,
    listed,
    named_model,
    supervised,
    taught,
    teacher_cache,
    train_stage,
)

NOTES = (
    "Labels are drawn anew for each seed, as many of each class, and one teacher a seed sees the "
    "same labels and no others: intervals hold over draws, teachers and first weights.",
    "Every student of a seed makes the same number of steps from the same first weights; rows on "
    "the labelled images alone have the same batches, and so have those on all images.",
    "Self-training is the control without a teacher: the student on labels alone labels the other "
    "images, and a fresh student trains on both. Its labeller's steps come before its own.",
    "On unlabelled images there is no cross-entropy, and DKD's target is the teacher's class.",
)
# losses that read a label, and what stands in for them where rows have none
COMPLETED = {dkd_loss: completed_dkd_loss, cross_entropy_loss: labelled_cross_entropy_loss}


def few_labels(settings: Distill) -> Recipe:
    """Label efficiency: students on `labels` labelled images alone, beside those that learn from a
    teacher of the same labels, on these images or on all of them, and self-training.

    Claim: with few labels and many unlabelled images a student by a pretrained teacher's outputs on
    all of them is more accurate than one of the labels alone, and than self-training. Command:
    `stillhouse run vision/distill --scale small --set labels=250 --set seeds=5`.
    """
    draws = [_Draw(settings, seed) for seed in range(settings.seeds)]
    students = {row: [draw.student(row) for draw in draws] for row in settings.rows}
    exported = next((row for row in settings.rows if row.endswith(ALL)), settings.rows[-1])
    test = data_stage(settings)["test"]
    scores = costed(Classification(names=listed(settings)), inputs={"data": test})
    # figures show the teacher's predictions, too, but not its confusion: features of every image
    shown = replace(
        scores,
        inputs={"data": test, "teacher": out(draws[0].teacher)},
        figures=(Predictions(names=settings.names), Mistakes(names=settings.names)),
        plots=(Confusion(names=settings.names, roles=("student",)),),
    )
    by_teacher = _teacher_scores(settings)
    rows: dict[str, tuple[Kind, list[Evaluate]]] = {
        "teacher": (
            "teacher",
            [by_teacher.of(d.teacher, out(d.teacher), measured=not d.seed) for d in draws],
        )
    }
    for row, stages in students.items():
        rows[title(row)] = (
            "baseline" if row == ALONE else "student",
            [
                (shown if row == exported and not seed else scores).of(
                    stage, out(stage), measured=not seed, shown=True
                )
                for seed, stage in enumerate(stages)
            ],
        )
    first = students[exported][0]
    export = export_stage(
        f"{settings.student}, {title(exported)} with {settings.labels} labels", PAPER, test
    )
    last = {"student": out(first), "scores": out(rows[title(exported)][1][0])}
    export = replace(export, inputs={**last, **export.inputs})
    scored = [stage for _, found in rows.values() for stage in found]
    studied = [choices(settings)] if settings.rates else []
    return Recipe(
        name="vision/distill",
        reference=PAPER,
        stages=collected(*scored, *studied, export),
        rows={
            name: Row(kind=kind, stages=tuple(stage.name for stage in found))
            for name, (kind, found) in rows.items()
        },
        method=title(exported),
        studies={CHOICES: tuple(stage.name for stage in studied)} if studied else {},
        notes=(
            *NOTES,
            *([stored_note()] if settings.embedded else []),
            *([choice_note(settings)] if studied else []),
        ),
        caution=caution(settings, f"{settings.steps} steps"),
    )


def stored_note() -> str:
    """What a teacher on stored features sees."""
    return (
        "The pretrained network's features are computed once, of each image as it is; a teacher is "
        "a head on them, and answers for the image before the student's augmentation."
    )


def choice_note(settings: Distill) -> str:
    """How learning rates and weights were chosen."""
    rates, factors, temperatures = (
        ", ".join(f"{value:g}" for value in values)
        for values in (settings.rates, settings.factors, settings.temperatures)
    )
    softness = f", and where it has one its temperature among {temperatures}"
    return (
        f"Each row has chosen its learning rate among {rates}, a distilled one also a factor of "
        f"its weights among {factors}{softness if temperatures else ''}, by the accuracy on "
        f"{settings.validation} labelled training "
        f"images that no student and no teacher sees, after trainings of {settings.choose_steps} "
        "steps on the labels of the first seed. These images are labels beyond the draw: all rows "
        "have them alike."
    )


def title(row: str) -> str:
    """A row's name in the report."""
    match row:
        case "labels":
            return "student, labels alone"
        case "self-training":
            return "student, self-training on all images"
        case _ if row.endswith(ALL):
            return f"student + {row.removesuffix(ALL)} on all images"
        case _:
            return f"student + {row} on the labelled"


class _Draw:
    """A seed: its labels, its teacher, its students."""

    def __init__(self, settings: Distill, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.spec = {"student": named_model(settings, settings.student)}
        self.labels = Make(
            name=f"draw-{seed}",
            make=DrawLabels(rows=settings.labels, rest=settings.needs_rest),
            inputs={"data": pool(settings)},
            ports=("labelled", "unlabelled") if settings.needs_rest else ("labelled",),
            seed=seed,
        )
        self.teacher = self._teacher()

    def student(self, row: str) -> Train | TrainChosen:
        """The training of a row: of what was chosen for it, where there is a choice."""
        if not self.settings.rates:
            return self._train(row, lr=self.settings.lr)
        choice = out(chosen(self.settings, row))
        name = f"{row}-{self.seed}"
        return best_of(self.candidates(row), choice, name=name, seed=self.seed)

    def candidates(self, row: str) -> dict[str, Candidate]:
        """A row's trainings to choose from, by name."""
        grid: dict[str, Sequence[float]] = {"lr": self.settings.rates}
        if row not in (ALONE, SELF):
            grid["factor"] = self.settings.factors
        if row.removesuffix(ALL) in WARM and self.settings.temperatures:
            grid["temperature"] = self.settings.temperatures
        cells = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        return by_name([Candidate(train=self._train(row, **c), chosen=c) for c in cells])

    def _train(
        self, row: str, *, lr: float, factor: float = 1.0, temperature: float = 0.0
    ) -> Train:
        softness = {"temperature": temperature} if temperature else {}
        settings = self.settings.model_copy(update={"lr": lr, **softness})
        if row == ALONE:
            return self._on_labelled(row, supervised(settings, "student", lr))
        if row == SELF:
            return self._on_all(row, _self_trained(settings), out(self.student(ALONE)), plain=True)
        objective = row.removesuffix(ALL)
        teacher = teacher_spec(settings)
        entry = method_entry(settings, objective, student=self.spec["student"], teacher=teacher)
        losses = _completed(entry) if row.endswith(ALL) else entry.losses
        composed = taught(settings, _scaled(losses, factor), helpers=entry.roles, feeds=entry.feeds)
        place = self._on_all if reads_all(row) else self._on_labelled
        return place(row, composed, out(self.teacher), helpers=entry.roles)

    def _on_labelled(
        self,
        row: str,
        objective: Composed,
        teacher: Ref | None = None,
        *,
        helpers: Mapping[str, Model] | None = None,
    ) -> Train:
        # a head on stored features has nothing to cache
        stored = self.settings.embedded and row != SELF
        spec = teacher_spec(self.settings)
        stage = train_stage(
            self.settings,
            f"{row}-{self.seed}",
            objective,
            roles={} if teacher is None else {"teacher": teacher},
            fresh={**self.spec, **(helpers or {})},
            cache={} if stored else teacher_cache(self.settings, objective, spec),
            data=self.labels["labelled"],
        )
        return replace(stage, seed=self.seed)

    def _on_all(
        self,
        row: str,
        objective: Composed,
        teacher: Ref,
        *,
        helpers: Mapping[str, Model] | None = None,
        plain: bool = False,
    ) -> Train:
        stage = self._on_labelled(row, objective, teacher, helpers=helpers)
        sets = {port: self.labels[port] for port in ("labelled", "unlabelled")}
        roles = {port: ref for port, ref in stage.inputs.items() if port != "data"}
        return replace(
            stage,
            inputs={**sets, **roles},
            data=Mix(
                parts={"labelled": 1, "unlabelled": self.settings.unlabelled},
                fill={"labels": UNLABELLED},
            ),
            plain=("teacher",) if plain else (),
            # a cross-entropy of the labelled rows is no mean over a micro-batch's samples
            micro_batch=None,
        )

    def _teacher(self) -> Stage:
        settings, name = self.settings, f"teacher-{self.seed}"
        labelled, spec = self.labels["labelled"], teacher_spec(self.settings)
        objective = supervised(settings, "teacher", settings.teacher_lr)
        if not settings.pretrained:
            train = train_stage(settings, name, objective, fresh={"teacher": spec}, data=labelled)
            return replace(train, steps=settings.teacher_steps, seed=self.seed)
        fitted = Convert(
            name=f"head-{self.seed}" if settings.head_tune_steps else name,
            convert=FitHead(),
            inputs={"network": out(network(settings)), "data": labelled},
            seed=self.seed,
        )
        if not settings.head_tune_steps:
            return fitted
        tune = train_stage(
            settings,
            name,
            supervised(settings, "teacher", settings.head_tune_lr),
            roles={"teacher": out(fitted)},
            data=labelled,
        )
        return replace(tune, steps=settings.head_tune_steps, seed=self.seed)


def chosen(settings: Distill, row: str) -> Choose:
    """The stage that chooses a row's settings, on the labels and the teacher of the first seed."""
    return chosen_of(
        _Draw(settings, 0).candidates(row),
        name=f"choose-{row}",
        validation=apart(settings)["validation"],
        steps=settings.choose_steps,
        metric=Classification(),
        score="accuracy",
    )


def choices(settings: Distill) -> Evaluate:
    """The study that shows what was chosen."""
    choosers = {row: chosen(settings, row) for row in settings.rows}
    return chosen_study(choosers, {row: title(row) for row in settings.rows})


def network(settings: Distill) -> Convert:
    """The stage that loads the pretrained network."""
    return Convert(
        name="pretrained",
        convert=LoadPretrained(model=teacher_spec(settings)),
        inputs={"weights": settings.pretrained},
    )


def features(settings: Distill, name: str, data: Ref) -> Make:
    """A stage that computes the network's features of images once, for the teachers of all seeds.

    Pool and test have a stage each: nothing that trains or chooses may read the test's.
    """
    return Make(
        name=name,
        make=Embed(),
        inputs={"network": out(network(settings)), "data": data},
        ports=("embedded",),
    )


def pool(settings: Distill) -> Ref:
    """The images that labels are drawn from, with features where the teacher reads these."""
    images = apart(settings)["pool"]
    return out(features(settings, "features", images)) if settings.embedded else images


def _teacher_scores(settings: Distill) -> Scores:
    """Of stored features where the teacher reads these; what it costs is that of the whole."""
    test = data_stage(settings)["test"]
    metric = Classification(role="teacher", names=listed(settings))
    if not settings.embedded:
        return costed(metric, inputs={"data": test}, role="teacher")
    whole = costed(
        On(data="embedded", metric=metric),
        inputs={"data": test, "embedded": out(features(settings, "test-features", test))},
        role="teacher",
    )
    return replace(whole, data=("data", "embedded"))


def apart(settings: Distill) -> Make:
    """The stage that keeps validation images apart, the same for all seeds."""
    return Make(
        name="apart",
        make=KeepApart(rows=settings.validation, most=settings.images),
        inputs={"data": data_stage(settings)["train"]},
        ports=("pool", "validation"),
    )


def teacher_spec(settings: Distill) -> Model:
    """The teacher's network: the pretrained one, else `teacher_model`."""
    if not settings.pretrained:
        return named_model(settings, settings.teacher_model)
    return named_upscaled(
        settings.pretrained_name,
        classes=settings.classes,
        images=image_spec(settings),
        side=settings.pretrained_side,
        mean=settings.pretrained_mean,
        std=settings.pretrained_std,
    )


def _self_trained(settings: Distill) -> Composed:
    term = Term(pseudo_label_loss, "student.logits", "teacher.logits", "batch.labels")
    return taught(settings, {"pseudo_label": Weighted(term=term)})


def _scaled(losses: Mapping[str, Weighted], factor: float) -> dict[str, Weighted]:
    """The losses, those beside the cross-entropy by another factor."""
    return {
        name: loss if name == "ce" else replace(loss, weight=factor * loss.weight)
        for name, loss in losses.items()
    }


def _completed(entry: MethodEntry) -> dict[str, Weighted]:
    """The losses of an entry where some rows have no label."""
    return {
        name: replace(loss, term=_completed_term(loss.term)) for name, loss in entry.losses.items()
    }


def _completed_term(term: Term) -> Term:
    if term.loss not in COMPLETED:
        return term
    return Term(COMPLETED[term.loss], *term.reads, **term.hyperparameters)
