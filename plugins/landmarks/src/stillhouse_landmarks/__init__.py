"""Stillhouse domain plugin: facial landmarks."""

from stillhouse.domain import Domain

domain = Domain(
    name="landmarks",
    summary="facial landmarks: small networks that find a face's points, from large ones",
    recipes={"two_teacher": "stillhouse_landmarks.recipes.two_teacher:two_teacher"},
    predict="stillhouse_landmarks.predict:predict",
)

__all__ = ["domain"]
