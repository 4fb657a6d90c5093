"""How the settings have faces read and augmented."""

from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.data import ReadFaces
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
