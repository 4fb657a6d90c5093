"""Stillhouse domain plugin: facial landmarks."""

from stillhouse.domain import Domain

domain = Domain(
    name="landmarks",
    summary="facial landmarks: small networks that find a face's points, from large ones",
    recipes={},
)

__all__ = ["domain"]
