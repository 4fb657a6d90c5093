"""Stillhouse domain plugin: 3D detection in point clouds."""

from stillhouse.domain import Domain

domain = Domain(
    name="pointcloud",
    summary="3D detection in point clouds: small detectors, from large ones' local graphs",
    recipes={
        "pointdistiller": "stillhouse_pointcloud.recipes.pointdistiller:pointdistiller",
    },
    predict="stillhouse_pointcloud.predict:predict",
)

__all__ = ["domain"]
