"""Detectors from checkpoints, and to files: safetensors, and ONNX of all but the voxelisation.

P: pillars of a cloud. M: points a pillar holds at most. H, W: the grid's cells; h, w: those of the
head's map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.card import Card, scores_record
from stillhouse.data.data import Data, rows_of
from stillhouse.errors import BadData
from stillhouse.export import check_onnx, check_opset, write_onnx
from stillhouse.objectives.objective import Tensors
from stillhouse.profile import first_batch, macs, parameters
from stillhouse.quantize.onnx_network import ONNX
from stillhouse.weights import import_checkpoint
from stillhouse.work import Work
from stillhouse_pointcloud.detectors import PillarDetector, PillarGrid, with_pillars
from stillhouse_pointcloud.detectors.pillars import CELLS, COUNTS, DECORATED, POINTS
from stillhouse_pointcloud.usage import TASK, write_about

INPUTS, MAPS = (POINTS, COUNTS, CELLS), ("cls", "box", "dir")


@dataclass(frozen=True, kw_only=True)
class LoadDetector:
    """A `convert`: the weights of the port "checkpoint" in `model`, every tensor accounted for.

    The port is a folder with model.json, which keeps its own spec and must have the same grid and
    width, which students' losses are made for; or a .safetensors file or torch checkpoint, read
    without running code in it.
    """

    model: Model

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path
        out: Path,
        *,
        work: Work,
    ) -> None:
        import_checkpoint(inputs["checkpoint"], out, spec=self.model, check=self._check)

    def _check(self, source: Built) -> None:
        if not isinstance(source.module, PillarDetector):
            raise BadData("the given teacher is no detector of pillars; give one that is")
        wanted, found = PillarGrid.of(self.model.kwargs["grid"]), source.module.grid
        if found != wanted:
            raise BadData(
                f"the given teacher has the grid {found}, the recipe {wanted}; set x, y, cell, "
                "max_points and max_pillars alike"
            )
        if (width := source.module.width) != (expected := self.model.kwargs["width"]):
            raise BadData(
                f"the given teacher is a pillars-{width}, the recipe's a pillars-{expected}; set "
                f"teacher_model=pillars-{width}"
            )


class DensePillars(nn.Module):
    """A detector's maps of one cloud whose pillars stand in rows of equal length: pillar_points
    [P, M, 9], rows beyond a pillar's count of any value; pillar_counts [P]; pillar_cells [P, 2] ->
    cls [1, 18, h, w], box [1, 42, h, w], dir [1, 12, h, w].
    """

    def __init__(self, detector: PillarDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        points, counts, cells = (batch[name] for name in INPUTS)
        encoder, (height, width) = self.detector.voxels, self.detector.grid.shape
        each = encoder.linear(points)
        each = F.relu(encoder.norm(each.flatten(0, 1)).view_as(each))
        real = torch.arange(points.shape[1])[None] < counts[:, None]
        voxels = (each * real[..., None]).amax(dim=1)  # each is >= 0, and every pillar has a point
        at = cells[:, 0] * width + cells[:, 1]
        bev = voxels.new_zeros(height * width, voxels.shape[1])
        bev = bev.index_put((at,), voxels).view(1, height, width, -1).permute(0, 3, 1, 2)
        return self.detector.maps(bev)


def dense(batch: Tensors, grid: PillarGrid) -> dict[str, Tensor]:
    """The inputs of `DensePillars`, of a batch of one cloud."""
    made = with_pillars(batch, grid)
    counts = made[COUNTS]
    starts = counts.cumsum(0) - counts
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    place = torch.arange(len(owner)) - starts[owner]
    rows = torch.zeros(len(counts), grid.max_points, DECORATED)
    rows[owner, place] = made[POINTS]
    return {POINTS: rows, COUNTS: counts, CELLS: made[CELLS]}


@dataclass(frozen=True, kw_only=True)
class ExportDetector:
    """A `convert` that writes model.json, model.safetensors, model.onnx, export.json, README.md and
    detect.py.

    The ONNX file is `DensePillars` of the port "student": from pillars to the head's maps. What is
    outside it, because it depends on the data, is in detect.py, which needs numpy and onnxruntime
    alone (see `standalone`): sorting points into pillars, and from maps to boxes. The card repeats
    the scores of the port "scores", where it is given. The pillars' number is dynamic, a cloud at a
    time. It is checked on the first `samples` clouds of the port "data": raises
    ContractError where it and torch differ by more than `tolerance`.
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
        if not isinstance(module, PillarDetector):
            raise BadData(f"export: a {type(module).__name__} has no pillars; give a detector")
        save_model(out, built)
        clouds = seen_clouds(inputs["data"], self.samples, lambda row: dense(row, module.grid))
        network = DensePillars(module).eval()
        record = write_maps(
            network, clouds, MAPS, out, rows="pillars", opset=self.opset, tolerance=self.tolerance
        )
        record["macs"] = macs(network, clouds[0])
        write_about(
            out,
            built,
            {**record, **scores_record(inputs.get("scores", {}))},
            Card(title=self.title, task=TASK, paper=self.paper, tags=("point-cloud",)),
        )


def seen_clouds(
    data: Data, samples: int, made: Callable[[Tensors], dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """`made` of each of the first `samples` clouds, but those that have fewer than two rows: few
    points are in the detector's range. Raises BadData where none is left.
    """
    batch = first_batch(data, min(samples, len(data)), torch.device("cpu"))
    rows = [rows_of(batch, torch.tensor([row])) for row in range(len(batch["id"]))]
    some = [cloud for cloud in map(made, rows) if len(next(iter(cloud.values()))) > 1]
    if not some:
        raise BadData("export: no cloud of the data has points in the detector's range")
    return some


def write_maps(
    network: nn.Module,
    clouds: Sequence[Tensors],
    maps: tuple[str, ...],
    out: Path,
    *,
    rows: str,
    opset: int,
    tolerance: float,
) -> dict[str, Any]:  # Any: JSON values
    """Writes model.onnx of a network from one cloud's `rows` (their number is dynamic) to `maps`,
    and gives its record for export.json. Raises ContractError where ONNX Runtime and torch differ
    by more than `tolerance` on one of `clouds`.
    """
    write_onnx(network, clouds[0], maps, out / ONNX, opset=opset)
    for cloud in clouds:
        check_onnx(out / ONNX, network, cloud, maps, tolerance=tolerance)
    with torch.no_grad():
        found = network(clouds[0])
    return {
        "inputs": {name: _port(value, rows) for name, value in clouds[0].items()},
        "outputs": {name: _port(found[name], 1) for name in maps},
        "opset": opset,
        "checked_samples": len(clouds),
        "agrees_within": tolerance,
    }


def _port(value: Tensor, first: str | int) -> dict[str, Any]:  # Any: JSON values
    """Type and shape of a port whose first axis is `first`."""
    dtype = str(value.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": [first, *value.shape[1:]]}


def card(built: Built, *, title: str, paper: str, known: str, files: str) -> str:
    """An exported student's README.md: `known` is what it was made of, `files` what lies there."""
    build = f"{built.spec.build.__module__}:{built.spec.build.__qualname__}"
    return f"""---
license: other
library_name: stillhouse
pipeline_tag: object-detection
tags: [distillation, point-cloud]
---

# {title}

A student distilled with Stillhouse. It holds no weights of its teacher and no encoder of the loss.

- Method: {paper}
- Architecture: `{build}` with `{known}`
- Parameters: {parameters(built.module):,}

{files}

## Use

`stillhouse predict <recipe> cloud.bin`, or

```python
from pathlib import Path

from stillhouse import load_model
from stillhouse_pointcloud.detectors import PICKING

model = load_model(Path("this-folder")).module
outputs = model({{"points": points, "points_offsets": offsets}})  # [total, 4], [clouds + 1]
found = model.boxes(outputs, PICKING)
```

## Scores

Scores, seeds, intervals and lineage are in the report of the run that made this model.
"""
