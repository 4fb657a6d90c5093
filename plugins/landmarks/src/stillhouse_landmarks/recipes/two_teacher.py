"""landmarks/two_teacher: a small face-landmark regressor from a tough and a tolerant teacher."""

import functools
from collections.abc import Mapping
from dataclasses import replace

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, by_line, costed, in_int8, seeded
from stillhouse.export import Export
from stillhouse.metrics import Latency
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_landmarks.figures import Ced, Faces
from stillhouse_landmarks.metrics import Landmarks
from stillhouse_landmarks.models import ImageSpec, LoadCheckpoint, model
from stillhouse_landmarks.objectives import l1_loss, l2_loss
from stillhouse_landmarks.recipes.face_data import data_stage, face_copies, image_spec, phase_of
from stillhouse_landmarks.recipes.few_faces import few_faces
from stillhouse_landmarks.recipes.scores import Quantiles, Softness, TeacherGap
from stillhouse_landmarks.recipes.soft_faces import SoftFaces
from stillhouse_landmarks.recipes.two_teacher_notes import NOTES, PAPER
from stillhouse_landmarks.recipes.two_teacher_settings import BASELINE, Student, TwoTeacherSettings
from stillhouse_landmarks.shape import FitShape
from stillhouse_landmarks.usage import regressor_usage

OUTPUT = ("landmarks",)
TRUTH = ("student.landmarks", "batch.landmarks")
SMALLEST = 8  # micro-batch, where memory does not suffice for a whole batch
TEACHERS: Mapping[str, str] = {"tough": "landmarks", "tolerant": "soft_landmarks"}
ROWS: Mapping[str, str] = {
    "l2": "student L2",
    "l1": "student L1",
    "l1-teacher": "student L1 + plain teacher",
    "tough": "student tough only",
    "tolerant": "student tolerant only",
    "paper": "student both (paper)",
    "released": "student both (released)",
}


def two_teacher(settings: TwoTeacherSettings) -> Recipe:
    """Fard, Mahoor 2022 (CVIU 215, arXiv 2111.07047): two teachers, one of hard and one of soft
    landmarks, and a student by their assistive losses.

    Claim: a MobileNetV2 that both teachers assist is more accurate than one by L2 alone, and than
    with either teacher. Controls: the same student by plain L1, and by L1 and a plain teacher.
    Command: `stillhouse run landmarks/two_teacher --scale tiny|small|paper`. Scores are those of
    the last step; nothing is picked on the test set.

    tiny: drawn faces of 32 pixels, four-layer networks. small: HELEN, 64-pixel crops, 3 seeds.
    paper: 300-W, WFLW or COFW (`--set data=file:<folder>`), 224 pixels, EfficientNet-b3
    to MobileNetV2 from fresh weights, 150 epochs of batches of 70.

    `--set labels=100` and `--set noise=0.03` are other experiments: few or noisy labels and
    teachers on a pretrained network, see `few_faces`.
    """
    if settings.few:
        return few_faces(settings)
    made, faces = _comparison(settings), {"data": data_stage(settings)["train"]}
    studies = {"Spread of the errors, first seed": [_errors(settings, made)]}
    exported: dict[str, str] = {**faces}
    if settings.int8:
        quality = functools.partial(Landmarks, normalizer=settings.normalizer)
        turns = made.as_exported(teacher="tough teacher", metric=quality)
        studies["As exported: one run, in turns"] = [turns]
        exported["scores"] = out(turns)
    soft = (Softness(normalizer=settings.normalizer),)
    softness = Evaluate(name="softness", metrics=soft, inputs=faces)
    studies["Soft landmarks of the training faces"] = [softness]
    title = f"{settings.student}, {settings.points} facial landmarks, {made.title(made.exported)}"
    card = Card(title=title, task="keypoint-detection", paper=PAPER)
    export = Export(outputs=OUTPUT, card=card, usage=regressor_usage)
    return made.recipe(
        name="landmarks/two_teacher",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs=exported),
        studies=studies,
        notes=NOTES,
    )


def _comparison(settings: TwoTeacherSettings) -> Comparison:
    data, quality = (
        data_stage(settings),
        functools.partial(Landmarks, normalizer=settings.normalizer),
    )
    images = image_spec(settings)
    teachers = {name: _teacher(settings, name, images) for name in TEACHERS}
    refs = {name: out(stage) for name, stage in teachers.items()}
    student = {"student": model(settings.student, images=images)}
    lessons = {name: _losses(settings, name) for name in settings.students}
    students = {
        name: seeded(_training(settings, name, student, losses, refs), settings.seeds)
        for name, losses in lessons.items()
    }
    exported = "paper" if "paper" in settings.students else settings.students[-1]
    int8 = [
        in_int8(out(student), data["train"], outputs=OUTPUT, samples=settings.calibration)
        for student in students[exported]
    ]
    tested, gap = {"data": data[settings.scored_on]}, TeacherGap(normalizer=settings.normalizer)
    scores = costed(quality(), gap, inputs={**tested, "teacher": refs["tough"]})
    files = {"onnx": int8[0].inputs["student"], "int8": out(int8[0])}
    return Comparison(
        teachers={f"{name} teacher": stage for name, stage in teachers.items()},
        students=students,
        titles=ROWS,
        baseline=BASELINE,
        exported=exported,
        scores=scores,
        teacher_scores=costed(quality(role="teacher"), inputs=tested, role="teacher"),
        compressed={f"{ROWS[exported]}, int8": int8} if settings.int8 else {},
        compressed_scores=replace(scores, measures=(Latency(),)),
        files=files if settings.int8 else {},
    )


def _soft(settings: TwoTeacherSettings) -> Ref:
    """The training faces' copies, with soft landmarks."""
    augment, faces = face_copies(settings), {"data": data_stage(settings)["train"]}
    fit = FitShape(variance=settings.variance, augment=augment, views=settings.copies)
    shape = Convert(name="shape", convert=fit, inputs=faces)
    soften = SoftFaces(augment=augment, views=settings.copies)
    soft = Make(name="soft", make=soften, inputs={**faces, "shape": out(shape)}, ports=("train",))
    return out(soft)


def _teacher(settings: TwoTeacherSettings, name: str, images: ImageSpec) -> Stage:
    """Trained here by L2, to hard landmarks or to soft ones; or given."""
    spec = model(settings.teacher_model, images=images, dropout=settings.dropout)
    if given := settings.teacher if name == "tough" else settings.tolerant:
        return Convert(name=name, convert=LoadCheckpoint(model=spec), inputs={"checkpoint": given})
    losses = {"l2": Weighted(term=Term(l2_loss, "teacher.landmarks", f"batch.{TEACHERS[name]}"))}
    stage = _training(settings, name, {"teacher": spec}, losses, {})
    return replace(stage, steps=settings.teacher_steps)


def _losses(settings: TwoTeacherSettings, name: Student) -> Mapping[str, Weighted]:
    if loss := settings.loss(name):
        return loss.losses()
    if name == "l2":
        return {"l2": Weighted(term=Term(l2_loss, *TRUTH))}
    plain = {"l1": Weighted(term=Term(l1_loss, *TRUTH))}
    if name == "l1":
        return plain
    teacher = Term(l1_loss, "student.landmarks", "tough.landmarks")
    return {**plain, "teacher": Weighted(term=teacher, weight=settings.teacher_weight)}


def _training(
    settings: TwoTeacherSettings,
    name: str,
    fresh: Mapping[str, Model],
    losses: Mapping[str, Weighted],
    teachers: Mapping[str, Ref],
) -> Train:
    (role,) = fresh
    lr = settings.lr if "student" in fresh else settings.teacher_lr
    objective = Composed(phases={role: phase_of(settings, role, lr)}, losses=losses)
    read = {teacher: ref for teacher, ref in teachers.items() if teacher in objective.roles}
    return Train(
        name=name,
        objective=objective,
        inputs={"data": _soft(settings), **read},
        fresh=fresh,
        cache={teacher: Cache(outputs=objective.outputs_of(teacher)) for teacher in read},
        steps=settings.steps,
        batch=settings.batch,
        views=1,  # the augmented copies are rows of the data
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch) if objective.sample_mean else None,
    )


def _errors(settings: TwoTeacherSettings, made: Comparison) -> Evaluate:
    """Curves of all rows, and the points of some on faces."""
    lines, normalizer = made.lines(), settings.normalizer
    ends = (*made.teachers, made.title(BASELINE), made.title(made.exported))
    return Evaluate(
        name="errors",
        metrics=(by_line(functools.partial(Quantiles, normalizer=normalizer), lines),),
        inputs={"data": made.scores.inputs["data"], **made.roles()},
        figures=(Faces(lines={line: lines[line] for line in ends}),),
        plots=(Ced(lines=lines, dashed=tuple(TEACHERS), normalizer=normalizer),),
    )
