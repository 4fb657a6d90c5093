"""Stillhouse domain plugin: image and text embedding models."""

from stillhouse.domain import Domain

domain = Domain(
    name="clip",
    summary="image and text in one space: small students that know classes they never saw",
    recipes={
        "dc_clip": "stillhouse_clip.recipes.dc_clip:dc_clip",
        "vlm_ood": "stillhouse_clip.recipes.vlm_ood:vlm_ood",
    },
    predict="stillhouse_clip.predict:predict",
)

__all__ = ["domain"]
