"""Detectors: what finds boxes in a cloud, and what teaches it to."""

from stillhouse_pointcloud.detectors.detection import Detection
from stillhouse_pointcloud.detectors.found import PICKING, Detector, Found, Picking
from stillhouse_pointcloud.detectors.network import PillarDetector, model
from stillhouse_pointcloud.detectors.pillars import SMALL_GRID, PillarGrid, pillars, with_pillars

__all__ = [
    "PICKING",
    "SMALL_GRID",
    "Detection",
    "Detector",
    "Found",
    "Picking",
    "PillarDetector",
    "PillarGrid",
    "model",
    "pillars",
    "with_pillars",
]
