"""The networks of contracts/af_stip and how each row is trained: in a stage of its own, in the
folds, and where its settings are chosen.
"""

from collections.abc import Mapping
from typing import Any

from stillhouse.artifact import Model
from stillhouse.objectives.objective import Objective
from stillhouse_contracts.data_free import Generated, Noise, Perturbed
from stillhouse_contracts.folds import TEACHER
from stillhouse_contracts.generator import SoftTokens
from stillhouse_contracts.lessons import Counts, Lesson, Reads, Teacher
from stillhouse_contracts.models import model
from stillhouse_contracts.recipes.af_stip_settings import AfStipSettings
from stillhouse_contracts.training import distilled, supervised, taught

NOISE_WIDTH = 64  # of what the generator begins with
# what a row reads, and what it has of the teacher
GIVEN: Mapping[str, tuple[Reads, Teacher]] = {
    "supervised": ("train", ""),
    "kd": ("train", "answers"),
    "public": ("public", "answers"),
    "noise": ("nothing", "network"),
    # what distorts contracts runs the teacher on each anew
    "perturbed": ("train", "network"),
    "generator": ("nothing", "network"),
    "textcnn": ("train", ""),
    "bilstm": ("train", ""),
}


def lesson(settings: AfStipSettings, name: str) -> Lesson | Counts:
    """How the teacher, or a row of the report by its short name, is trained."""
    if name == TEACHER:
        objective = supervised(TEACHER, settings.teacher_lr, positive=settings.positive_weight)
        return Lesson(
            objective=objective,
            fresh={TEACHER: teacher_spec(settings)},
            steps=settings.teacher_steps,
            batch=settings.batch,
        )
    if name == "logistic":
        strength = number(settings, name, "strength")
        return Counts(strength=strength, positive=settings.positive_weight)
    reads, teacher = GIVEN[name]
    return Lesson(
        objective=_objective(settings, name),
        fresh=_fresh(settings, name),
        steps=settings.steps,
        batch=settings.batch,
        reads=reads,
        teacher=teacher,
    )


def number(settings: AfStipSettings, row: str, name: str) -> float:
    """A row's own lr, alpha, temperature or strength, or else that of all rows."""
    own = settings.numbers.get(f"{row}.{name}")
    return float(getattr(settings, name)) if own is None else own


def teacher_spec(settings: AfStipSettings) -> Model:
    """The teacher's network."""
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


def student_spec(settings: AfStipSettings, types: tuple[str, ...] | None = None) -> Model:
    """The students' network, for the settings' types or others."""
    return model(
        "stip",
        types=types or settings.types,
        length=settings.length,
        vectors=settings.vectors,
        width=settings.width,
        backbone=settings.backbone,
    )


def _spec(settings: AfStipSettings, name: str, **changes: Any) -> Model:  # Any: JSON values
    return model(
        name, types=settings.types, length=settings.length, vectors=settings.vectors, **changes
    )


def _fresh(settings: AfStipSettings, name: str) -> Mapping[str, Model]:
    if name in ("textcnn", "bilstm"):
        return {"student": _spec(settings, name, width=settings.control_width)}
    fresh = {"student": student_spec(settings)}
    if name == "generator":
        kwargs = {
            "noise": NOISE_WIDTH,
            "width": settings.generator_width,
            "length": settings.length,
            "replay": settings.replay,
        }
        fresh["generator"] = Model(build=SoftTokens, kwargs=kwargs)
    return fresh


def _objective(settings: AfStipSettings, name: str) -> Objective:
    lr = number(settings, name, "lr")
    soft = {key: number(settings, name, key) for key in ("alpha", "temperature")}
    match name:
        case "kd":
            return distilled(lr, positive=settings.positive_weight, **soft)
        case "public":
            return taught(lr, **soft)
        case "perturbed":
            return Perturbed(lr=lr, sigma=settings.sigma, **soft)
        case "noise":
            return Noise(
                lr=lr,
                length=settings.length,
                spread=settings.noise,
                oversample=settings.oversample,
                **soft,
            )
        case "generator":
            return Generated(
                lr=lr,
                generator_lr=settings.generator_lr,
                one_hot=settings.one_hot,
                statistics=settings.statistics,
                balance=settings.balance,
                adversarial=settings.adversarial,
                **soft,
            )
        case _:
            return supervised("student", lr, positive=settings.positive_weight)
