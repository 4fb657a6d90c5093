"""Stillhouse domain plugin: promptable segmentation."""

from stillhouse.domain import Domain

domain = Domain(
    name="sam",
    summary="promptable segmentation: small SAMs (in work: no recipe yet)",
    recipes={},
    predict="stillhouse_sam.predict:predict",
)

__all__ = ["domain"]
