"""contracts/af_stip: a small detector of vulnerable functions, distilled without their text."""

from collections.abc import Mapping, Sequence

from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, costed, seeded
from stillhouse.data.sampling import NoData
from stillhouse.export import Export
from stillhouse.recipe import Bound, Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_contracts.counts import FitCounts
from stillhouse_contracts.data import PORTS, ReadContracts
from stillhouse_contracts.embeddings import LearnVectors
from stillhouse_contracts.folds import EVERYTHING, TEACHER, CrossValidation
from stillhouse_contracts.lessons import Lesson
from stillhouse_contracts.metrics import MEAN, AllPositive, Detection
from stillhouse_contracts.models import OpenDetector
from stillhouse_contracts.recipes.af_stip_lessons import lesson, student_spec, teacher_spec
from stillhouse_contracts.recipes.af_stip_notes import CAUTION, NOTES, PAPER
from stillhouse_contracts.recipes.af_stip_settings import BASELINE, AfStipSettings, Student
from stillhouse_contracts.splits import Split
from stillhouse_contracts.transfer import Transfer
from stillhouse_contracts.usage import detector_usage

ROWS: Mapping[str, str] = {
    "supervised": "student",
    "kd": "student + kd on the teacher's data",
    "public": "student + teacher's word on public contracts",
    "noise": "student from noise (data-free)",
    "perturbed": "student from distorted contracts (not data-free)",
    "generator": "student from generated texts (data-free)",
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

    tiny: contracts written from templates. small: `data/smart-contracts`, four types, 5 seeds.
    paper: your contracts (`--set data=file:<folder>`), Word2Vec and FastText, 5 seeds.
    Rate and temperature of each row at small are the best of a grid on a held-out part of the
    training contracts (`benchmarks/contracts_grid.py`).
    """
    made, data = _comparison(settings), _data(settings)
    tested = {"data": data["test"]}
    nobody = Evaluate(
        name="all-positive", metrics=(AllPositive(types=settings.types),), inputs=tested
    )
    studies: dict[str, list[Evaluate]] = {"Saying yes to everything": [nobody]}
    if settings.folds:
        title = "Cross-validation: by text, by contract, and at random (which leaks)"
        studies[title] = _folds(settings)
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
    own = lesson(settings, name)
    if isinstance(own, Lesson):
        return seeded(_training(settings, name, own, teacher), settings.seeds)
    # one solution, whatever the seed
    fit = FitCounts(
        types=settings.types,
        length=settings.length,
        strength=own.strength,
        positive=own.positive,
    )
    stage = Convert(name=name, convert=fit, inputs={"data": _data(settings)["train"]})
    return seeded(stage, 1)


def _data(settings: AfStipSettings) -> Make:
    read = ReadContracts(
        types=settings.types,
        novel=settings.novel,
        length=settings.length,
        folds=settings.folds if any(settings.fold_learners.values()) else 0,
    )
    return Make(name="data", make=read, inputs={"source": settings.data}, ports=PORTS)


def _teacher(settings: AfStipSettings) -> Stage:
    """Trained here on labels, or given."""
    if settings.teacher:
        check = OpenDetector(model=teacher_spec(settings))
        return Convert(name=TEACHER, convert=check, inputs={"checkpoint": settings.teacher})
    own = lesson(settings, TEACHER)
    assert isinstance(own, Lesson)
    return _training(settings, TEACHER, own, None)


def _training(settings: AfStipSettings, name: str, own: Lesson, teacher: Ref | None) -> Train:
    """A lesson as a stage. A student without data reads the teacher, and the embedding table where
    that is learned, which the teacher holds as well.
    """
    none = own.reads == "nothing"
    given: dict[str, str] = {} if none else {"data": _data(settings)[own.reads]}
    if own.teacher:
        assert teacher is not None
        given["teacher"] = teacher
    return Train(
        name=name,
        objective=own.objective,
        inputs={**given, **_embedding(settings)},
        fresh=own.fresh,
        bases=_based(settings, next(iter(own.fresh))),
        cache={"teacher": Cache(outputs=("logits",))} if own.teacher == "answers" else {},
        steps=own.steps,
        batch=own.batch,
        views=1,
        data=NoData() if none else None,
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


def _folds(settings: AfStipSettings) -> list[Evaluate]:
    """A stage a way to split. Fixed vectors here are those of the vocabulary: learned ones would
    have seen the folds.
    """
    return [
        Evaluate(
            name=f"folds-{split}",
            metrics=(cross_validation(settings, split, names),),
            inputs={"data": _data(settings)["all"]},
        )
        for split, names in settings.fold_learners.items()
        if names
    ]


def cross_validation(
    settings: AfStipSettings, split: Split, learners: tuple[str, ...]
) -> CrossValidation:
    """The cross-validation of learners by a way to split; all are trained as their rows are."""
    named = dict.fromkeys((TEACHER, *learners))
    return CrossValidation(
        split=split,
        types=settings.types,
        learners=learners,
        lessons={name: lesson(settings, name) for name in named if name != EVERYTHING},
        teacher=teacher_spec(settings),
        baseline=BASELINE,
        folds=settings.folds,
        seeds=settings.fold_seeds,
    )


def _transfer(settings: AfStipSettings, made: Comparison) -> Evaluate:
    """Of the supervised student to a type that nobody was trained on."""
    data = _data(settings)
    metric = Transfer(
        model=student_spec(settings, (settings.novel,)),
        shots=settings.shots,
        seeds=settings.shot_seeds,
    )
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
