"""Stillhouse domain plugin: promptable segmentation."""

from stillhouse.domain import Domain

domain = Domain(
    name="sam",
    summary="promptable segmentation: small SAMs (in work: no recipe yet)",
    recipes={"tinysam": "stillhouse_sam.recipes.tinysam:tinysam"},
)

__all__ = ["domain"]
