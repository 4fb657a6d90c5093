"""Stillhouse domain plugin: image and text embedding models."""

from stillhouse.domain import Domain

domain = Domain(
    name="clip",
    summary="image and text in one space: small students that know classes they never saw",
    recipes={},
)

__all__ = ["domain"]
