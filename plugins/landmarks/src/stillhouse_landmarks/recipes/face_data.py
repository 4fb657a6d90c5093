"""How the settings have faces read and augmented, and networks trained on them."""

import torch

from stillhouse.objectives.objective import Constant, Cosine, Optimizer, Phase
from stillhouse.stages import Make
from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.data import ReadFaces
from stillhouse_landmarks.models import ImageSpec
from stillhouse_landmarks.recipes.soft_faces import Copies
from stillhouse_landmarks.recipes.two_teacher_settings import TwoTeacherSettings


def face_reader(settings: TwoTeacherSettings) -> ReadFaces:
    """The reader of the source."""
    return ReadFaces(
        size=settings.size,
        points=settings.points,
        margin=settings.margin,
        validation=settings.validation,
        held_out=settings.held_out,
        outside=settings.outside,
        fractions=settings.fractions,
        swap=settings.mirrored(),
    )


def face_copies(settings: TwoTeacherSettings, columns: tuple[str, ...] = ("landmarks",)) -> Copies:
    """What changes a face from copy to copy, with all `columns` of points."""
    return Copies(
        augment=FaceAugment(
            flip=settings.flip,
            rotation=settings.rotation,
            scale=settings.zoom,
            translation=settings.shift,
            occlusion=settings.occlusion,
            swap=settings.mirrored(),
            columns=columns,
        )
    )


def data_stage(settings: TwoTeacherSettings) -> Make:
    """The faces of the source, in three parts."""
    return Make(
        name="data",
        make=face_reader(settings),
        inputs={"source": settings.data},
        ports=("train", "validation", "test"),
    )


def image_spec(settings: TwoTeacherSettings) -> ImageSpec:
    """The crops that networks take."""
    return ImageSpec(
        size=settings.size, mean=settings.mean, std=settings.std, points=settings.points
    )


def phase_of(settings: TwoTeacherSettings, role: str, lr: float) -> Phase:
    """How a role is trained."""
    schedule = (Constant if settings.schedule == "constant" else Cosine)(warmup=settings.warmup)
    kwargs = {"weight_decay": settings.weight_decay}
    optimizer = Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=kwargs)
    return Phase(trains=(role,), optimizer=optimizer, schedule=schedule)
