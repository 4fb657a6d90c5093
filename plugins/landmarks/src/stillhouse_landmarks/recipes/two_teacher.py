"""landmarks/two_teacher: a small face-landmark regressor from a tough and a tolerant teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.export import Export
from stillhouse.metrics import Latencies, Latency, Lines, Memory, Profile
from stillhouse.objectives.objective import (
    Composed,
    Constant,
    Cosine,
    Optimizer,
    Phase,
    Schedule,
    Weighted,
)
from stillhouse.quantize.onnx_static import QuantizeStatic, ToOnnx
from stillhouse.recipe import Recipe, Stage
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_landmarks.figures import Ced, Faces
from stillhouse_landmarks.metrics import Landmarks
from stillhouse_landmarks.models import ImageSpec, LoadCheckpoint, model
from stillhouse_landmarks.objectives import L1, L2, TeacherL1
from stillhouse_landmarks.recipes.face_data import face_copies, face_reader
from stillhouse_landmarks.recipes.scores import Quantiles, Softness, TeacherGap
from stillhouse_landmarks.recipes.soft_faces import SoftFaces
from stillhouse_landmarks.recipes.two_teacher_notes import NOTES, PAPER
from stillhouse_landmarks.recipes.two_teacher_settings import (
    BASELINE,
    Student,
    TwoTeacherSettings,
)
from stillhouse_landmarks.shape import FitShape
from stillhouse_landmarks.usage import regressor_usage

SMALLEST = 8  # slice of a batch, where memory does not suffice
OUTPUT = ("landmarks",)
TEACHERS: Mapping[str, str] = {"tough": "landmarks", "tolerant": "soft_landmarks"}
ROWS: Mapping[Student, str] = {
    "l2": "student L2",
    "l1": "student L1",
    "l1-teacher": "student L1 + plain teacher",
    "tough": "student tough only",
    "tolerant": "student tolerant only",
    "paper": "student both (paper)",
    "released": "student both (released)",
}
NOTHING: Mapping[str, Any] = {}  # Any: the default of several kinds of mapping


def two_teacher(settings: TwoTeacherSettings) -> Recipe:
    """Fard, Mahoor 2022 (CVIU 215, arXiv 2111.07047): two teachers, one of hard and one of soft
    landmarks, and a student by their assistive losses.

    Claim: a MobileNetV2 that both teachers assist is more accurate than one by L2 alone, and than
    with either teacher. Controls: the same student by plain L1, and by L1 and a plain teacher.
    Command: `stillhouse run landmarks/two_teacher --scale tiny|small|paper`. Scores are those of
    the last step; nothing is picked on the test set.

    tiny: drawn faces of 32 pixels, four-layer networks. small: HELEN, 64-pixel crops, 3 seeds.
    paper: 300-W, WFLW or COFW of your own (`--set data=file:<folder>`), 224 pixels, EfficientNet-b3
    to MobileNetV2 from fresh weights, 150 epochs of batches of 70.
    """
    teachers = {name: _teacher(settings, name) for name in TEACHERS}
    refs = {name: f"{name}.{stage.outputs[0]}" for name, stage in teachers.items()}
    students = [_student(settings, s, refs, i) for s in settings.students for i in _seeds(settings)]
    small = _quantized(settings) if settings.int8 else []
    return Recipe(
        name="landmarks/two_teacher",
        reference=PAPER,
        stages=(
            *_data(settings),
            *teachers.values(),
            *students,
            *small,
            *_scores(settings, refs, students, small),
            *_studies(settings, refs),
            _export(settings),
        ),
        rows=_rows(settings),
        baseline=ROWS[BASELINE],
        method=ROWS[_shipped(settings)],
        notes=NOTES,
        studies=_study_titles(settings),
    )


def _seeds(settings: TwoTeacherSettings) -> range:
    return range(settings.seeds)


def _rows(settings: TwoTeacherSettings) -> dict[str, tuple[str, ...]]:
    names: dict[str, str] = {ROWS[s]: s for s in settings.students}
    if settings.int8:
        names[f"{ROWS[_shipped(settings)]}, int8"] = "int8"
    teachers = {f"{name} teacher": (f"{name}-scores",) for name in TEACHERS}
    return teachers | {
        row: tuple(f"{name}-{seed}-scores" for seed in _seeds(settings))
        for row, name in names.items()
    }


def _shipped(settings: TwoTeacherSettings) -> Student:
    """The student that is exported: the paper's method, where it is among them."""
    return "paper" if "paper" in settings.students else settings.students[-1]


def _images(settings: TwoTeacherSettings) -> ImageSpec:
    return ImageSpec(
        size=settings.size, mean=settings.mean, std=settings.std, points=settings.points
    )


def _network(settings: TwoTeacherSettings, role: str) -> Model:
    images = _images(settings)
    if role == "student":
        return model(settings.student, images=images)
    return model(settings.teacher_model, images=images, dropout=settings.dropout)


def _data(settings: TwoTeacherSettings) -> tuple[Stage, ...]:
    read, augment = face_reader(settings), face_copies(settings)
    fit = FitShape(variance=settings.variance, augment=augment, views=settings.copies)
    soften = SoftFaces(augment=augment, views=settings.copies)
    faces = {"data": "data.train"}
    return (
        Make(
            name="data",
            make=read,
            inputs={"source": settings.data},
            ports=("train", "validation", "test"),
        ),
        Convert(name="shape", convert=fit, inputs=faces),
        Make(name="soft", make=soften, inputs={**faces, "shape": "shape.model"}, ports=("train",)),
    )


def _teacher(settings: TwoTeacherSettings, name: str) -> Train | Convert:
    """Trained here by L2, to hard landmarks or to soft ones; or given."""
    given = settings.teacher if name == "tough" else settings.tolerant
    spec = _network(settings, "teacher")
    if given:
        load = LoadCheckpoint(model=spec)
        return Convert(name=name, convert=load, inputs={"checkpoint": given})
    loss = Weighted(term=L2(student="teacher", truth=TEACHERS[name]))
    return _train(
        settings,
        name,
        Composed(
            phases={"teacher": _phase(settings, "teacher", settings.teacher_lr)},
            roles=("teacher",),
            losses={"l2": loss},
        ),
        fresh={"teacher": spec},
        steps=settings.teacher_steps,
    )


def _student(
    settings: TwoTeacherSettings, name: Student, teachers: Mapping[str, str], seed: int
) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    roles = {role: teachers[role] for role in _asked(settings, name)}
    return _train(
        settings,
        f"{name}-{seed}",
        Composed(
            phases={"student": _phase(settings, "student", settings.lr)},
            roles=(*roles, "student"),
            losses=_losses(settings, name),
        ),
        roles=roles,
        fresh={"student": _network(settings, "student")},
        steps=settings.steps,
        seed=seed,
    )


def _asked(settings: TwoTeacherSettings, name: Student) -> tuple[str, ...]:
    """The teachers whose outputs the student's loss reads."""
    loss = settings.loss(name)
    if loss is None:
        return ("tough",) if name == "l1-teacher" else ()
    parts = {"tough": loss.tough, "tolerant": loss.tolerant}
    main = {"tolerant"} if loss.variant == "released" else set[str]()
    return tuple(role for role, part in parts.items() if part.weight > 0 or role in main)


def _losses(settings: TwoTeacherSettings, name: Student) -> Mapping[str, Weighted]:
    loss = settings.loss(name)
    if loss is not None:
        return loss.losses()
    if name == "l2":
        return {"l2": Weighted(term=L2())}
    plain = {"l1": Weighted(term=L1())}
    if name == "l1":
        return plain
    return {**plain, "teacher": Weighted(term=TeacherL1(), weight=settings.teacher_weight)}


def _train(
    settings: TwoTeacherSettings,
    name: str,
    objective: Composed,
    *,
    steps: int,
    fresh: Mapping[str, Model],
    roles: Mapping[str, str] = NOTHING,
    seed: int = 0,
) -> Train:
    return Train(
        name=name,
        objective=objective,
        inputs={"data": "soft.train", **roles},
        fresh=fresh,
        cache={role: Cache(outputs=OUTPUT) for role in roles},
        steps=steps,
        batch=settings.batch,
        seed=seed,
        views=1,  # the augmented copies are rows of the data
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch),
    )


def _phase(settings: TwoTeacherSettings, role: str, lr: float) -> Phase:
    schedule: Schedule = Cosine(warmup=settings.warmup)
    if settings.schedule == "constant":
        schedule = Constant(warmup=settings.warmup)
    kwargs = {"weight_decay": settings.weight_decay}
    optimizer = Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=kwargs)
    return Phase(trains=(role,), optimizer=optimizer, schedule=schedule)


def _scored(settings: TwoTeacherSettings) -> str:
    return f"data.{settings.scored_on}"


def _scores(
    settings: TwoTeacherSettings,
    teachers: Mapping[str, str],
    students: Sequence[Train],
    small: Sequence[Convert],
) -> list[Evaluate]:
    scores = [_teacher_scores(settings, name, ref) for name, ref in teachers.items()]
    made = [(s.name, f"{s.name}.student", s.seed) for s in students]
    made += [(s.name, f"{s.name}.model", s.seed) for s in small if s.name.startswith("int8")]
    return scores + [_student_scores(settings, n, ref, teachers, seed) for n, ref, seed in made]


def _teacher_scores(settings: TwoTeacherSettings, name: str, ref: str) -> Evaluate:
    return Evaluate(
        name=f"{name}-scores",
        metrics=(
            Landmarks(role="teacher", normalizer=settings.normalizer),
            Profile(role="teacher"),
        ),
        inputs={"data": _scored(settings), "teacher": ref},
        measures=(Latency(role="teacher"), Memory(role="teacher")),
    )


def _student_scores(
    settings: TwoTeacherSettings, name: str, ref: str, teachers: Mapping[str, str], seed: int
) -> Evaluate:
    # one seed a row is timed: the others have the same layers
    timed = (Latency(), Memory()) if not name.startswith("int8") else (Latency(),)
    return Evaluate(
        name=f"{name}-scores",
        metrics=(
            Landmarks(normalizer=settings.normalizer),
            TeacherGap(normalizer=settings.normalizer),
            Profile(),
        ),
        inputs={"data": _scored(settings), "student": ref, "teacher": teachers["tough"]},
        measures=timed if seed == 0 else (),
    )


def _quantized(settings: TwoTeacherSettings) -> list[Convert]:
    """The shipped student as ONNX, and as int8 with ranges from training faces, for each seed."""
    shipped, stages = _shipped(settings), list[Convert]()
    for seed in _seeds(settings):
        faces = {"data": "data.train"}
        student = f"{shipped}-{seed}.student"
        stages += [
            Convert(
                name=f"onnx-{seed}",
                convert=ToOnnx(outputs=OUTPUT),
                inputs={**faces, "student": student},
            ),
            Convert(
                name=f"int8-{seed}",
                convert=QuantizeStatic(samples=settings.calibration),
                inputs={**faces, "student": f"onnx-{seed}.model"},
                seed=seed,
            ),
        ]
    return stages


def _study_titles(settings: TwoTeacherSettings) -> dict[str, tuple[str, ...]]:
    shipped = {"As shipped: one run, in turns": ("shipped",)} if settings.int8 else {}
    return {
        "Spread of the errors, first seed": ("errors",),
        **shipped,
        "Soft landmarks of the training faces": ("softness",),
    }


def _studies(settings: TwoTeacherSettings, teachers: Mapping[str, str]) -> list[Evaluate]:
    stages = [_errors(settings, teachers)]
    if settings.int8:
        stages.append(_as_shipped(settings, teachers))
    softness = Softness(normalizer=settings.normalizer)
    return [
        *stages,
        Evaluate(name="softness", metrics=(softness,), inputs={"data": "data.train"}),
    ]


def _errors(settings: TwoTeacherSettings, teachers: Mapping[str, str]) -> Evaluate:
    """Curves of all rows, and the points of some on faces."""
    lines = {f"{name} teacher": name for name in teachers}
    lines |= {ROWS[name]: f"student-{name}" for name in settings.students}
    roles = dict(teachers) | {f"student-{s}": f"{s}-0.student" for s in settings.students}
    shown = {line: lines[line] for line in ("tough teacher", "tolerant teacher")}
    shown |= {ROWS[s]: f"student-{s}" for s in (BASELINE, _shipped(settings))}
    quantiles = {
        line: Quantiles(role=role, normalizer=settings.normalizer) for line, role in lines.items()
    }
    return Evaluate(
        name="errors",
        metrics=(Lines(lines=quantiles),),
        inputs={"data": _scored(settings), **roles},
        figures=(Faces(lines=shown),),
        plots=(Ced(lines=lines, dashed=tuple(teachers), normalizer=settings.normalizer),),
    )


def _as_shipped(settings: TwoTeacherSettings, teachers: Mapping[str, str]) -> Evaluate:
    """The same student by torch and by ONNX Runtime, in floats and in int8, beside the teacher."""
    roles = {
        "teacher": teachers["tough"],
        "student": f"{_shipped(settings)}-0.student",
        "onnx": "onnx-0.model",
        "int8": "int8-0.model",
    }
    lines = {
        "tough teacher, torch": "teacher",
        "student, torch": "student",
        "student, ONNX Runtime": "onnx",
        "student, ONNX Runtime, int8": "int8",
    }
    scores = {
        line: Landmarks(role=role, normalizer=settings.normalizer) for line, role in lines.items()
    }
    sizes = {line: Profile(role=role) for line, role in lines.items()}
    return Evaluate(
        name="shipped",
        metrics=(Lines(lines=scores), Lines(lines=sizes)),
        inputs={"data": _scored(settings), **roles},
        measures=(Latencies(lines=lines),),
    )


def _export(settings: TwoTeacherSettings) -> Convert:
    shipped = _shipped(settings)
    card = Card(
        title=f"{settings.student}, {settings.points} facial landmarks, {ROWS[shipped]}",
        task="keypoint-detection",
        paper=PAPER,
    )
    inputs = {"student": f"{shipped}-0.student", "data": "data.train"}
    if settings.int8:
        inputs |= {"onnx": "onnx-0.model", "int8": "int8-0.model", "scores": "shipped.scores"}
    else:
        inputs |= {"scores": f"{shipped}-0-scores.scores"}
    export = Export(outputs=OUTPUT, card=card, usage=regressor_usage)
    return Convert(name="export", convert=export, inputs=inputs)
