"""Students of mmdetection3d's to files: safetensors, and of networks of pillars ONNX.

P: voxels of a cloud. M: points a voxel holds at most. C: numbers a point.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, save_model
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.export import check_opset
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_pointcloud.converts import card, seen_clouds, write_maps
from stillhouse_pointcloud.mmdet.clouds import CELLS, COUNTS, POINTS
from stillhouse_pointcloud.mmdet.configs import plain
from stillhouse_pointcloud.mmdet.network import Detector
from stillhouse_pointcloud.mmdet.outputs import config_of, voxel_layer, without_onnx

INPUTS = (POINTS, COUNTS, CELLS)


class DenseVoxels(nn.Module):
    """A pillar detector's maps of one cloud: voxel_points [P, M, C], 0 beyond a voxel's count;
    voxel_counts [P]; voxel_cells [P, 3] (z, y, x) -> the head's maps, by the names that the
    detector gives them.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        points, counts, cells = (batch[name] for name in INPUTS)
        net: Any = self.detector.net  # Any: mmdetection3d has no types
        pts = "pts_" if hasattr(net, "pts_bbox_head") else ""
        encoder, scatter = (
            getattr(net, f"{pts}{part}") for part in ("voxel_encoder", "middle_encoder")
        )
        places = torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1)
        # a copy: PillarFeatureNet writes its offsets over its input
        voxels = encoder(points.clone(), counts, places)
        return self.detector.maps(scatter(voxels, places))


@dataclass(frozen=True, kw_only=True)
class ExportDetector:
    """A `convert` that writes model.json, model.safetensors, export.json and README.md, and of a
    network of pillars model.onnx: `DenseVoxels` of the port "student". Of others export.json says
    why there is none.

    Outside the ONNX file are `Detector.voxelised` and `Detector.boxes`. The voxels' number is
    dynamic, a cloud at a time. It is checked on the first `samples` clouds of the port "data":
    raises ContractError where it and torch differ by more than `tolerance`.
    """

    title: str
    paper: str
    opset: int = 18
    samples: int = 4
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_opset(self.opset, where="export")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built and Data
        out: Path,
        *,
        work: Work,
    ) -> None:
        built: Built = inputs["student"]
        module = built.module.eval()
        if not isinstance(module, Detector):
            raise BadData(
                f"export: a {type(module).__name__} is no detector of mmdetection3d; give one"
            )
        save_model(out, built)
        reason = without_onnx(config_of(built.spec))
        record = (
            {"onnx": None, "why": reason} if reason else self._onnx(module, inputs["data"], out)
        )
        record |= {"classes": list(module.classes), "decoding": head_of(config_of(built.spec))}
        (out / "export.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        files = f"There is no ONNX file: {reason}." if reason else VOXELS_ONNX
        text = card(built, title=self.title, paper=self.paper, known=module.name, files=files)
        (out / "README.md").write_text(text)

    def _onnx(self, module: Detector, data: Data, out: Path) -> dict[str, Any]:  # Any: JSON values
        def voxels(row: Tensors) -> dict[str, Tensor]:
            seen = module.voxelised(row)
            return {name: seen[name] for name in INPUTS}

        clouds = seen_clouds(data, self.samples, voxels)
        network = DenseVoxels(module).eval()
        with torch.no_grad():
            maps = tuple(network(clouds[0]))
        return write_maps(
            network, clouds, maps, out, rows="voxels", opset=self.opset, tolerance=self.tolerance
        )


def head_of(config: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """What a user of the maps needs of a configuration: its voxels, anchors, coder of boxes, and
    which boxes are kept.
    """
    head = config.get("bbox_head") or config.get("pts_bbox_head") or {}
    names = ("type", "anchor_generator", "bbox_coder", "tasks", "dir_offset", "dir_limit_offset")
    return {
        "voxels": plain(voxel_layer(config)),
        "head": {name: plain(head[name]) for name in names if name in head},
        "test_cfg": plain(config.get("test_cfg")),
    }


VOXELS_ONNX = """\
model.onnx takes the voxels of one cloud and gives the head's maps; see export.json. Outside it
are the sorting of points into voxels and the boxes from maps: both are code of mmdetection3d and
`stillhouse_pointcloud`. export.json has the classes, voxels, anchors and coder of boxes."""
