"""Stillhouse domain plugin: promptable segmentation."""

from stillhouse.domain import Domain

domain = Domain(
    name="sam",
    summary="promptable segmentation: small SAMs, from large ones, in few bits",
    recipes={"tinysam": "stillhouse_sam.recipes.tinysam:tinysam"},
    predict="stillhouse_sam.predict:predict",
)

__all__ = ["domain"]
