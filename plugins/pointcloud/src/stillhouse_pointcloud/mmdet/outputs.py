"""What a recipe must know of a detector before there is one: read off its spec.

A spec is what `configs.model` gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.artifact import Model
from stillhouse_pointcloud.detectors.found import Bounds, Limits
from stillhouse_pointcloud.distilled import PILLARS, POINTS
from stillhouse_pointcloud.mmdet.clouds import bounds_of
from stillhouse_pointcloud.mmdet.network import restored

CANVAS = "bev"  # the voxels' features in their places, seen from above


@dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor that can be distilled: the module that gives it, and its channels."""

    path: str
    channels: int


def config_of(spec: Model) -> dict[str, Any]:  # Any: values of a configuration
    """The model's configuration."""
    return restored(spec.kwargs["config"])


def outputs(config: Mapping[str, Any]) -> dict[str, Output]:
    """By the names that our own detectors use: voxels of a pillar network; bev, backbone.0 and so
    on, and neck of a detector that sees from above; points of one that has no voxels.
    """
    if config["type"] == "PointRCNN":
        levels = config["neck"]["fp_channels"]
        last = f"neck.FP_modules.{len(levels) - 1}"
        return {POINTS: Output(path=last, channels=levels[-1][-1])}
    pts = "pts_" if "pts_backbone" in config else ""
    parts = {name: config.get(f"{pts}{name}") or {} for name in _PARTS}
    found: dict[str, Output] = {}
    if parts["voxel_encoder"].get("type") == "PillarFeatureNet":
        width = parts["voxel_encoder"].get("feat_channels", (64,))[-1]
        found[PILLARS] = Output(path=f"{pts}voxel_encoder", channels=width)
    if parts["backbone"].get("type") == "SECOND":
        inside = parts["backbone"]["in_channels"]
        found[CANVAS] = Output(path=f"{pts}middle_encoder", channels=inside)
        for i, channels in enumerate(parts["backbone"]["out_channels"]):
            found[f"backbone.{i}"] = Output(path=f"{pts}backbone.blocks.{i}", channels=channels)
    if parts["neck"].get("type") == "SECONDFPN":
        found["neck"] = Output(path=f"{pts}neck", channels=sum(parts["neck"]["out_channels"]))
    return found


_PARTS = ("voxel_encoder", "middle_encoder", "backbone", "neck")


def voxel_layer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Range, size and numbers of its voxels; {} of a detector that takes points."""
    preprocessor = config.get("data_preprocessor") or {}
    return (preprocessor.get("voxel_layer") or {}) if preprocessor.get("voxel") else {}


def limits(spec: Model) -> Limits | None:
    """From x, y, z to x, y, z, metres: of its voxels, else of the points it takes; None where its
    configuration does not say.
    """
    bounds = voxel_layer(config_of(spec)).get("point_cloud_range")
    bounds = bounds or spec.kwargs["points"]["range"]
    if bounds is None:
        return None
    x0, y0, z0, x1, y1, z1 = (float(bound) for bound in bounds)
    return x0, y0, z0, x1, y1, z1


def area(spec: Model) -> Bounds | None:
    """Where such a detector looks; None where its configuration does not say."""
    return bounds_of(limits(spec))


def sees(spec: Model) -> str:
    """Its voxels in words: what teacher and student must have alike."""
    layer, points = voxel_layer(config_of(spec)), spec.kwargs["points"]
    if not layer:
        return f"{points['sample']} points within {points['range']}"
    size, most = list(layer["voxel_size"]), layer["max_num_points"]
    return f"voxels of {size} m, {most} points each, within {list(layer['point_cloud_range'])}"


def without_onnx(config: Mapping[str, Any]) -> str:
    """Why there is no ONNX file of such a detector; "" where there is: one of pillars."""
    if config["type"] == "PointRCNN":
        return "sampling and grouping points are mmcv's operators, which ONNX does not have"
    pts = "pts_" if "pts_backbone" in config else ""
    middle = config.get(f"{pts}middle_encoder") or {}
    kind = str(middle.get("type", "")).rpartition(".")[2]
    if kind == "SparseEncoder":
        return "its sparse convolutions are mmcv's operators, which ONNX does not have"
    encoder = config.get(f"{pts}voxel_encoder") or {}
    if kind != "PointPillarsScatter" or encoder.get("type") != "PillarFeatureNet":
        return "only networks of pillars (PillarFeatureNet, PointPillarsScatter) are written so far"
    return ""
