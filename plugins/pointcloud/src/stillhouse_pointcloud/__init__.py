"""Stillhouse domain plugin: 3D detection in point clouds."""

from stillhouse.domain import Domain

domain = Domain(
    name="pointcloud",
    summary="3D detection in point clouds: small detectors (in work: no recipe yet)",
    recipes={},
)

__all__ = ["domain"]
