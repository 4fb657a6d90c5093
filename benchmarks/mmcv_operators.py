"""Which of mmcv's operators, and which detectors of mmdetection3d, run without CUDA.

    UV_PROJECT_ENVIRONMENT=.bench/mmdet3d uv sync --no-default-groups --extra pointcloud-mmdet3d
    .bench/mmdet3d/bin/python benchmarks/mmcv_operators.py

No goal: whatever is true. Each is tried in a process of its own, since one may take the process
down. Operators get small inputs; detectors a scene of the built-in small LiDAR: forward with
their losses and backward ("trains"), forward and boxes ("predicts").
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rounds import write
from torch import Tensor

from stillhouse.code import code_version
from stillhouse.data.data import TensorData
from stillhouse.environment import environment
from stillhouse_pointcloud.data import from_arrays
from stillhouse_pointcloud.mmdet.configs import NAMED, model
from stillhouse_pointcloud.mmdet.library import imported, quiet
from stillhouse_pointcloud.mmdet.network import Detector
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, render

ROOT = Path(__file__).parent.parent
MARKS = ("<!-- mmcv-operators -->", "<!-- /mmcv-operators -->")  # around the tables in the page
Operator = Callable[[Any], None]  # Any: the module mmcv.ops
Record = Mapping[str, Any]  # Any: JSON


def cloud(points: int = 64) -> Tensor:
    return torch.rand(1, points, 3, generator=torch.Generator().manual_seed(0))


def boxes() -> Tensor:
    return torch.tensor([[[0.5, 0.5, 0.0, 1.0, 1.0, 1.0, 0.1]]])


def sparse(ops: Any, kind: str) -> None:
    features = torch.rand(8, 4, requires_grad=True)
    cells = torch.stack([torch.zeros(8), *[torch.arange(8.0) % 4] * 3], dim=1).int()
    convolve = getattr(ops, kind)(4, 4, 3, padding=1)
    found = convolve(ops.SparseConvTensor(features, cells.unique(dim=0), [4, 4, 4], 1))
    found.features.sum().backward()


def voxels(ops: Any) -> None:
    layer = ops.Voxelization([0.1] * 3, [0, 0, 0, 1, 1, 1], 5, 100)
    assert len(layer(cloud()[0].contiguous())[0])


def grouped(ops: Any) -> None:
    features = torch.rand(1, 4, 64, requires_grad=True)
    ops.grouping_operation(features, torch.zeros(1, 8, 4, dtype=torch.int32)).sum().backward()


def gathered(ops: Any) -> None:
    features = torch.rand(1, 4, 64, requires_grad=True)
    ops.gather_points(features, torch.zeros(1, 8, dtype=torch.int32)).sum().backward()


def interpolated(ops: Any) -> None:
    features, weight = torch.rand(1, 4, 64), torch.full((1, 8, 3), 1 / 3)
    ops.three_interpolate(features, torch.zeros(1, 8, 3, dtype=torch.int32), weight)


OPERATORS: Mapping[str, tuple[str, Operator]] = {
    "Voxelization (hard)": ("pillars, SECOND, CenterPoint", voxels),
    "SubMConv3d": ("SECOND", lambda ops: sparse(ops, "SubMConv3d")),
    "SparseConv3d": ("SECOND", lambda ops: sparse(ops, "SparseConv3d")),
    "furthest_point_sample": ("PointRCNN", lambda ops: ops.furthest_point_sample(cloud(), 8)),
    "ball_query": ("PointRCNN", lambda ops: ops.ball_query(0, 0.5, 4, cloud(), cloud(8))),
    "grouping_operation": ("PointRCNN", grouped),
    "gather_points": ("PointRCNN", gathered),
    "three_nn": ("PointRCNN", lambda ops: ops.three_nn(cloud(8), cloud())),
    "three_interpolate": ("PointRCNN", interpolated),
    "RoIPointPool3d": (
        "PointRCNN",
        lambda ops: ops.RoIPointPool3d(8)(cloud(), torch.rand(1, 64, 4), boxes()),
    ),
    "points_in_boxes_part": (
        "PointRCNN (targets)",
        lambda ops: ops.points_in_boxes_part(cloud(), boxes()),
    ),
    "points_in_boxes_all": ("", lambda ops: ops.points_in_boxes_all(cloud(), boxes())),
    "points_in_boxes_cpu": ("", lambda ops: ops.points_in_boxes_cpu(cloud(), boxes())),
    "nms_rotated": (
        "boxes of pillars, SECOND, PointRCNN",
        lambda ops: ops.nms_rotated(torch.rand(8, 5), torch.rand(8), 0.1),
    ),
    "box_iou_rotated": (
        "PointRCNN (targets)",
        lambda ops: ops.box_iou_rotated(torch.rand(8, 5), torch.rand(4, 5)),
    ),
    "boxes_iou3d": ("", lambda ops: ops.boxes_iou3d(boxes()[0], boxes()[0])),
    "nms3d": ("", lambda ops: ops.nms3d(boxes()[0], torch.rand(1), 0.1)),
}


def scene() -> dict[str, Tensor]:
    drawn = render(1, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    columns = from_arrays({f"test_{name}": value for name, value in drawn.items()}, "test")
    return TensorData(columns).rows(torch.arange(1))


def built(name: str) -> Detector:
    torch.manual_seed(0)
    module = model(name).new()
    assert isinstance(module, Detector)
    return module


def trains(name: str) -> None:
    outputs = built(name).train()(scene())
    outputs["loss"].backward()


def predicts(name: str) -> None:
    module = built(name).eval()
    with torch.no_grad():
        module.detections(module(scene()))


def operator(name: str) -> None:
    OPERATORS[name][1](imported("mmcv.ops"))


def tried(work: Callable[[str], None], name: str) -> str:
    """ "yes", or what stopped it."""
    # no fork: it would be refused CUDA for that reason alone
    context = multiprocessing.get_context("spawn")
    there, here = context.Pipe()
    child = context.Process(target=_try, args=(work, name, here))
    child.start()
    here.close()
    try:
        said = there.recv()
    except EOFError:
        child.join()
        said = f"ended the process (exit status {child.exitcode})"
    child.join()
    return said


def _try(work: Callable[[str], None], name: str, answer: Connection) -> None:
    torch.set_num_threads(1)
    try:
        with quiet():
            work(name)
        answer.send("yes")
    except Exception as error:  # whatever stops it is the result
        said = next(iter(str(error).splitlines()), type(error).__name__)
        # without what would do, the page says it
        answer.send(said.partition("; run it on a GPU")[0].partition(". Please")[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tables(operators: Mapping[str, Record], detectors: Mapping[str, Record]) -> str:
    rows = [[f"`{name}`", one["used_by"], one["cpu"]] for name, one in operators.items()]
    first = table(["operator of mmcv", "used by", "runs on the CPU"], rows)
    rows = [
        [f"`{name}`", f"{one['parameters'] / 1e6:.2f} M", one["trains"], one["predicts"]]
        for name, one in detectors.items()
    ]
    return f"{first}\n\n{table(['detector', 'parameters', 'trains', 'predicts'], rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What of mmcv runs without CUDA.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "mmcv-operators")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "pointcloud.md")
    given = parser.parse_args(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = {
        name: {"used_by": used, "cpu": tried(operator, name)}
        for name, (used, _) in OPERATORS.items()
    }
    detectors: dict[str, Record] = {}
    for name in NAMED:
        count = sum(p.numel() for p in built(name).parameters())
        detectors[name] = {
            "parameters": count,
            "trains": tried(trains, name),
            "predicts": tried(predicts, name),
        }
    record = {
        "claim": "which of mmcv's operators run without CUDA (no goal)",
        "code": code_version("stillhouse_pointcloud"),
        "environment": environment("cpu"),
        "packages": {name: imported(name).__version__ for name in ("mmcv", "mmdet", "mmdet3d")},
        "operators": found,
        "detectors": detectors,
    }
    write(given.out / "mmcv-operators.json", record)
    said = tables(found, detectors)
    print(said)
    text = given.page.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    given.page.write_text(f"{before}{MARKS[0]}\n{said}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
