"""Detectors from checkpoints and to files."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse_pointcloud.converts import DensePillars, ExportDetector, LoadDetector, dense
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import SMALL_GRID, PillarGrid, model
from stillhouse_pointcloud.samples import scenes

SPEC = model("pillars-4", grid=SMALL_GRID, layers=(1, 1, 1), momentum=0.1)
OTHER = model("pillars-4", grid=PillarGrid(x=(0.0, 8.0), y=(-4.0, 4.0), cell=1.0))
RNG = Generator()


def data():
    return TensorData(ReadKitti()({"source": scenes()}, rng=Generator().manual_seed(0))["test"])


def detector(spec=SPEC):
    """One whose BatchNorms have seen data."""
    torch.manual_seed(0)
    module = spec.new().train()
    with torch.no_grad():
        for rows in data().batches(8, rng=None):
            module(rows)
    return Built(spec=spec, module=module.eval())


def test_dense_rows_give_the_maps_of_the_ragged_pillars():
    built = detector()
    rows = data().rows(torch.tensor([1]))
    given = dense(rows, SMALL_GRID)
    # what stands beyond a pillar's count is not read
    beyond = torch.arange(32)[None] >= given["pillar_counts"][:, None]
    given["pillar_points"][beyond] = 7.0
    with torch.no_grad():
        found, expected = DensePillars(built.module)(given), built.module(rows)
    for name in ("cls", "box", "dir"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_the_exported_student_opens_and_its_onnx_is_checked(tmp_path):
    built = detector()
    out = tmp_path / "out"
    ExportDetector(title="A", paper="B")({"student": built, "data": data()}, out, rng=RNG)
    again = load_model(out)
    rows = data().rows(torch.tensor([0]))
    with torch.no_grad():
        assert torch.equal(again.module(rows)["cls"], built.module(rows)["cls"])
    record = json.loads((out / "export.json").read_text())
    assert record["inputs"]["pillar_points"] == ["float32", ["pillars", 32, 9]]
    assert record["outside"][0] == "voxelisation"
    assert (record["checked_samples"], record["agrees_within"]) == (4, 1e-3)
    assert "# A" in (out / "README.md").read_text()


def test_a_checkpoint_is_loaded_whole_and_of_the_same_grid(tmp_path):
    built = detector()
    load = LoadDetector(model=SPEC)
    file = tmp_path / "a.safetensors"
    save_file(built.module.state_dict(), file)
    load({"checkpoint": file}, tmp_path / "from-file", rng=RNG)
    load({"checkpoint": built}, tmp_path / "from-folder", rng=RNG)
    for name in ("from-file", "from-folder"):
        state = load_model(tmp_path / name).module.state_dict()
        assert all(
            torch.equal(value, state[key]) for key, value in built.module.state_dict().items()
        )
    torch.manual_seed(0)
    save_model(tmp_path / "other", Built(spec=OTHER, module=OTHER.new()))
    with pytest.raises(BadData, match="the given teacher has the grid PillarGrid.*set x, y, cell"):
        load({"checkpoint": load_model(tmp_path / "other")}, tmp_path / "no", rng=RNG)
    wide = model("pillars-8", grid=SMALL_GRID, layers=(1, 1, 1))
    with pytest.raises(
        BadData, match="is a pillars-8, the recipe's a pillars-4; set teacher_model=pillars-8"
    ):
        load({"checkpoint": Built(spec=wide, module=wide.new())}, tmp_path / "no", rng=RNG)
    line = Built(spec=SPEC, module=torch.nn.Linear(2, 2))
    with pytest.raises(BadData, match="no detector of pillars"):
        load({"checkpoint": line}, tmp_path / "no", rng=RNG)
    with pytest.raises(BadData, match="a Linear has no pillars"):
        ExportDetector(title="", paper="")({"student": line, "data": data()}, tmp_path, rng=RNG)
