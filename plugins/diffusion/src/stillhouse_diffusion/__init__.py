"""Stillhouse domain plugin: diffusion models."""

from stillhouse.domain import Domain

domain = Domain(
    name="diffusion",
    summary="one-step generators from a diffusion model, one or several by parts of its labels",
    recipes={
        "msd": "stillhouse_diffusion.recipes.msd:msd",
        "mixture": "stillhouse_diffusion.recipes.mixture:mixture",
    },
    predict="stillhouse_diffusion.predict:predict",
)

__all__ = ["domain"]
