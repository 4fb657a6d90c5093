"""Detectors: what finds boxes in a cloud, and what teaches it to."""

from stillhouse_pointcloud.detectors.detection import Detection, DetectionPart
from stillhouse_pointcloud.detectors.found import PICKING, Detector, Found, Picking
from stillhouse_pointcloud.detectors.network import PillarDetector, model
from stillhouse_pointcloud.detectors.pillars import SMALL_GRID, PillarGrid, pillars, with_pillars

__all__ = [
    "PICKING",
    "SMALL_GRID",
    "Detection",
    "DetectionPart",
    "Detector",
    "Found",
    "Picking",
    "PillarDetector",
    "PillarGrid",
    "model",
    "pillars",
    "with_pillars",
]
