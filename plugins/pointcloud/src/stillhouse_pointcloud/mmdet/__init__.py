"""mmdetection3d's detectors as roles; needs the extra `pointcloud-mmdet3d`."""

from stillhouse_pointcloud.mmdet.configs import NAMED, default_layers, model
from stillhouse_pointcloud.mmdet.evaluation import kitti_ap
from stillhouse_pointcloud.mmdet.network import Detector, detector
from stillhouse_pointcloud.mmdet.objective import DetectorTraining
from stillhouse_pointcloud.mmdet.weights import LoadDetector

__all__ = [
    "NAMED",
    "Detector",
    "DetectorTraining",
    "LoadDetector",
    "default_layers",
    "detector",
    "kitti_ap",
    "model",
]
