"""contracts/af_stip: a small detector of vulnerable functions, distilled without their text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, costed, seeded
from stillhouse.data.sampling import NoData
from stillhouse.export import Export
from stillhouse.objectives.objective import Objective
from stillhouse.recipe import Bound, Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_contracts.counts import FitCounts
from stillhouse_contracts.data import PORTS, ReadContracts
from stillhouse_contracts.data_free import Generated, Noise, Perturbed
from stillhouse_contracts.embeddings import LearnVectors
from stillhouse_contracts.folds import CrossValidation, Lesson
from stillhouse_contracts.generator import SoftTokens
from stillhouse_contracts.metrics import MEAN, AllPositive, Detection
from stillhouse_contracts.models import OpenDetector, model
from stillhouse_contracts.recipes.af_stip_notes import CAUTION, NOTES, PAPER
from stillhouse_contracts.recipes.af_stip_settings import BASELINE, AfStipSettings, Student
from stillhouse_contracts.training import distilled, supervised, taught
from stillhouse_contracts.transfer import Transfer
from stillhouse_contracts.usage import detector_usage

NOISE_WIDTH = 64  # of what the generator begins with
ROWS: Mapping[str, str] = {
    "supervised": "student",
    "kd": "student + kd on the teacher's data",
    "public": "student + teacher's word on public contracts",
    "noise": "student, data-free: noise",
    "perturbed": "student, distorted contracts (not data-free)",
    "generator": "student, data-free: generator",
    "textcnn": "TextCNN",
    "bilstm": "BiLSTM + attention",
    "logistic": "logistic regression on token counts",
}


def af_stip(settings: AfStipSettings) -> Recipe:
    """Reconstruction of AF-STip (Wang, Jiang 2024, arXiv 2412.11175): a teacher with adaptive
    fusion, and a light student distilled from it without its contracts.

    Claim of the abstract: the student's F1 over four types, and over a new type after transfer, are
    above 90 %. It is not expected to hold where no text is in two parts. Controls: the student by
    labels, by the teacher on real data and on public contracts; TextCNN, BiLSTM with attention,
    logistic regression; who says yes to everything.
    Command: `stillhouse run contracts/af_stip --scale tiny|small|paper`.

    tiny: contracts written from templates. small: `data/smart-contracts`, four types, 3 seeds.
    paper: contracts of your own (`--set data=file:<folder>`), Word2Vec and FastText, 5 seeds.
    """
    made, data = _comparison(settings), _data(settings)
    tested = {"data": data["test"]}
    nobody = Evaluate(
        name="all-positive", metrics=(AllPositive(types=settings.types),), inputs=tested
    )
    studies: dict[str, list[Evaluate]] = {"Saying yes to everything": [nobody]}
    if settings.folds:
        studies["Cross-validation: by text, by contract, and at random (which leaks)"] = [
            _folds(settings)
        ]
    if settings.novel:
        title = f"Transfer to a new type ({settings.novel})"
        studies[title] = [_transfer(settings, made)]
    exported = made.students[settings.exported][0]
    title = f"Vulnerable functions of Solidity, {made.title(settings.exported)}"
    card = Card(title=title, task="text-classification", paper=PAPER)
    export = Export(inputs=("tokens",), card=card, usage=detector_usage)
    files = {
        "data": data["test"],
        "student": made.model(exported),
        "scores": out(made.scored(exported)),
    }
    return made.recipe(
        name="contracts/af_stip",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs=files),
        studies=studies,
        notes=NOTES,
        caution=CAUTION,
        control=Bound(
            name="saying yes to everything", stages=("all-positive",), score="macro_f1", row=MEAN
        ),
    )


def _comparison(settings: AfStipSettings) -> Comparison:
    data, types = _data(settings), settings.types
    teacher, tested = _teacher(settings), {"data": data["test"]}
    students = {name: _students(settings, name, out(teacher)) for name in settings.students}
    scores = costed(
        Detection(types=types, teacher="teacher"), inputs={**tested, "teacher": out(teacher)}
    )
    return Comparison(
        teachers={"teacher": teacher},
        students=students,
        titles=ROWS,
        baseline=BASELINE,
        exported=settings.method,
        scores=scores,
        teacher_scores=costed(
            Detection(types=types, role="teacher"), inputs=tested, role="teacher"
        ),
    )


def _students(settings: AfStipSettings, name: Student, teacher: Ref) -> Sequence[Stage]:
    if name == "logistic":  # one solution, whatever the seed
        fit = FitCounts(types=settings.types, length=settings.length)
        stage = Convert(name=name, convert=fit, inputs={"data": _data(settings)["train"]})
        return seeded(stage, 1)
    return seeded(_student(settings, name, teacher), settings.seeds)


def _data(settings: AfStipSettings) -> Make:
    read = ReadContracts(types=settings.types, novel=settings.novel, length=settings.length)
    return Make(name="data", make=read, inputs={"source": settings.data}, ports=PORTS)


def _spec(settings: AfStipSettings, name: str, **changes: Any) -> Model:  # Any: JSON values
    return model(
        name, types=settings.types, length=settings.length, vectors=settings.vectors, **changes
    )


def _student_spec(settings: AfStipSettings) -> Model:
    return _spec(settings, "stip", width=settings.width, backbone=settings.backbone)


def _teacher_spec(settings: AfStipSettings) -> Model:
    return _spec(
        settings,
        "af-teacher",
        width=settings.teacher_width,
        backbone=settings.teacher_backbone,
        blocks=settings.teacher_blocks,
        slots=settings.teacher_slots,
        heads=settings.teacher_heads,
        expand=settings.teacher_expand,
    )


def _teacher(settings: AfStipSettings) -> Stage:
    """Trained here on labels, or given."""
    if settings.teacher:
        check = OpenDetector(model=_teacher_spec(settings))
        return Convert(name="teacher", convert=check, inputs={"checkpoint": settings.teacher})
    objective = supervised("teacher", settings.teacher_lr)
    made = _training(settings, "teacher", objective, {"teacher": _teacher_spec(settings)}, {})
    return replace(made, steps=settings.teacher_steps)


def _student(settings: AfStipSettings, name: Student, teacher: Ref) -> Train:
    given = {"teacher": teacher}
    alpha, temperature = settings.alpha, settings.temperature
    match name:
        case "textcnn" | "bilstm":
            lr = settings.textcnn_lr if name == "textcnn" else settings.bilstm_lr
            own = {"student": _spec(settings, name)}
            return _training(settings, name, supervised("student", lr), own, {})
        case "kd":
            objective = distilled(settings.lr, alpha=alpha, temperature=temperature)
        case "public":
            objective = taught(settings.lr, alpha=alpha, temperature=temperature)
        case "perturbed":
            objective = Perturbed(
                lr=settings.lr,
                sigma=settings.sigma,
                alpha=alpha,
                temperature=temperature,
            )
        case "noise" | "generator":
            return _data_free(settings, name, teacher)
        case _:
            objective, given = supervised("student", settings.lr), {}
    fresh = {"student": _student_spec(settings)}
    port = "public" if name == "public" else "train"
    return _training(settings, name, objective, fresh, given, port=port)


def _data_free(settings: AfStipSettings, name: Student, teacher: Ref) -> Train:
    """A student without data: the stage reads the teacher, and the embedding table where that is
    learned, which the teacher holds as well.
    """
    fresh = {"student": _student_spec(settings)}
    if name == "generator":
        objective, fresh = _generated(settings), {**fresh, "generator": _generator(settings)}
    else:
        objective = _noise(settings)
    return Train(
        name=name,
        objective=objective,
        inputs={"teacher": teacher, **_embedding(settings)},
        fresh=fresh,
        bases=_based(settings, "student"),
        steps=settings.steps,
        batch=settings.batch,
        views=1,
        data=NoData(),
    )


def _noise(settings: AfStipSettings) -> Noise:
    return Noise(
        lr=settings.lr,
        length=settings.length,
        spread=settings.noise,
        alpha=settings.alpha,
        temperature=settings.temperature,
        oversample=settings.oversample,
    )


def _generator(settings: AfStipSettings) -> Model:
    kwargs = {
        "noise": NOISE_WIDTH,
        "width": settings.generator_width,
        "length": settings.length,
        "replay": settings.replay,
    }
    return Model(build=SoftTokens, kwargs=kwargs)


def _generated(settings: AfStipSettings) -> Generated:
    return Generated(
        lr=settings.lr,
        generator_lr=settings.generator_lr,
        one_hot=settings.one_hot,
        statistics=settings.statistics,
        balance=settings.balance,
        adversarial=settings.adversarial,
        alpha=settings.alpha,
        temperature=settings.temperature,
    )


def _training(
    settings: AfStipSettings,
    name: str,
    objective: Objective,
    fresh: Mapping[str, Model],
    teachers: Mapping[str, Ref],
    *,
    port: str = "train",
) -> Train:
    (role,) = fresh
    # what distorts contracts asks the teacher of each anew
    cached = {} if isinstance(objective, Perturbed) else teachers
    return Train(
        name=name,
        objective=objective,
        inputs={"data": _data(settings)[port], **teachers, **_embedding(settings)},
        fresh=fresh,
        bases=_based(settings, role),
        cache={teacher: Cache(outputs=("logits",)) for teacher in cached},
        steps=settings.steps,
        batch=settings.batch,
        views=1,
    )


def _embedding(settings: AfStipSettings) -> Mapping[str, Ref]:
    """The fixed vectors of tokens, where they are learned: from the teacher's contracts."""
    if settings.embedding == "hashed":
        return {}
    learn = LearnVectors(width=settings.vectors)
    stage = Convert(name="embedding", convert=learn, inputs={"data": _data(settings)["train"]})
    return {"embedding": out(stage)}


def _based(settings: AfStipSettings, role: str) -> Mapping[str, str]:
    return {} if settings.embedding == "hashed" else {role: "embedding"}


def _folds(settings: AfStipSettings) -> Evaluate:
    """Fixed vectors here are those of the vocabulary: learned ones would have seen the folds."""
    small, steps = settings.steps, settings.teacher_steps
    lessons = {
        "teacher": Lesson(model=_teacher_spec(settings), lr=settings.teacher_lr, steps=steps),
        "student": Lesson(model=_student_spec(settings), lr=settings.lr, steps=small),
        "textcnn": Lesson(model=_spec(settings, "textcnn"), lr=settings.textcnn_lr, steps=small),
        "bilstm": Lesson(model=_spec(settings, "bilstm"), lr=settings.bilstm_lr, steps=small),
    }
    metric = CrossValidation(
        types=settings.types,
        learners=settings.fold_learners,
        lessons=lessons,
        folds=settings.folds,
        seeds=settings.fold_seeds,
        batch=settings.batch,
        alpha=settings.alpha,
        temperature=settings.temperature,
    )
    return Evaluate(name="folds", metrics=(metric,), inputs={"data": _data(settings)["all"]})


def _transfer(settings: AfStipSettings, made: Comparison) -> Evaluate:
    """Of the supervised student to a type that nobody was trained on."""
    data = _data(settings)
    spec = model(
        "stip",
        types=(settings.novel,),
        length=settings.length,
        vectors=settings.vectors,
        width=settings.width,
        backbone=settings.backbone,
    )
    metric = Transfer(model=spec, shots=settings.shots, seeds=settings.shot_seeds)
    return Evaluate(
        name="transfer",
        metrics=(metric,),
        inputs={
            "data": data["test"],
            "train": data["train"],
            "student": made.model(made.students[BASELINE][0]),
        },
        data=("data", "train"),
    )
