"""Detectors from checkpoints and to files."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Generator

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_pointcloud import standalone
from stillhouse_pointcloud.converts import DensePillars, ExportDetector, LoadDetector, dense
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import SMALL_GRID, PillarGrid, model
from stillhouse_pointcloud.detectors.anchors import anchors
from stillhouse_pointcloud.predict import boxes_in, read
from stillhouse_pointcloud.samples import scenes
from stillhouse_pointcloud.usage import decoding

SPEC = model("pillars-4", grid=SMALL_GRID, layers=(1, 1, 1), momentum=0.1)
OTHER = model("pillars-4", grid=PillarGrid(x=(0.0, 8.0), y=(-4.0, 4.0), cell=1.0))
RNG = Generator()


def data():
    return TensorData(ReadKitti()({"source": scenes()}, work=Work.seeded(0))["test"])


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
    given = {"student": built, "data": data(), "scores": {"mean_3d_moderate_ap": 0.25}}
    ExportDetector(title="A", paper="B")(given, out, work=Work(rng=RNG))
    again = load_model(out)
    rows = data().rows(torch.tensor([0]))
    with torch.no_grad():
        assert torch.equal(again.module(rows)["cls"], built.module(rows)["cls"])
    record = json.loads((out / "export.json").read_text())
    assert record["inputs"]["pillar_points"]["shape"] == ["pillars", 32, 9]
    assert record["outputs"]["cls"]["shape"] == [1, 18, 32, 32]
    assert record["classes"] == ["Car", "Pedestrian", "Cyclist"]
    assert (record["checked_samples"], record["agrees_within"]) == (4, 1e-3)
    card = (out / "README.md").read_text()
    assert "# A" in card
    assert "| Mean 3d moderate ap | 0.2500 |" in card
    told = onnxruntime.InferenceSession(out / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == record["classes"]
    assert json.loads(told["decoding"]) == record["decoding"]
    assert json.loads(told["preprocessing"]) == record["preprocessing"]


def found_there(folder, text, tmp_path):
    """What Python that has numpy and onnxruntime alone prints."""
    lines = [
        "import sys",
        "class Alone:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name.partition('.')[0] in ('stillhouse', 'stillhouse_pointcloud', 'torch'):",
        "            raise ImportError(name + ' must not be needed')",
        "sys.meta_path.insert(0, Alone())",
        "sys.path.insert(0, '.')",
        text,
    ]
    (tmp_path / "lines.py").write_text("\n".join(lines))
    run = subprocess.run(
        [sys.executable, "-P", str(tmp_path / "lines.py")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_cards_lines_find_the_boxes_that_predict_finds(tmp_path, monkeypatch):
    """From a .bin to boxes by numpy and onnxruntime, without stillhouse and torch."""
    monkeypatch.chdir(tmp_path)
    built = detector()
    with torch.no_grad():  # 80 anchors above 0.3, some of which overlap, none as sure as another
        built.module.head.cls.weight *= 20
        scores = built.module(data().rows(torch.tensor([0])))["cls"].flatten()
        built.module.head.cls.bias += -0.847 - scores.topk(80).values[-1]
    out = tmp_path / "out"
    ExportDetector(title="A", paper="B")(
        {"student": built, "data": data()}, out, work=Work(rng=RNG)
    )
    points = data().rows(torch.tensor([0]))["points"].numpy()
    points.astype("<f4").tofile(out / "cloud.bin")
    card = (out / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0]
    says = "import json; print(json.dumps([boxes.tolist(), scores.tolist(), labels.tolist()]))"
    found = json.loads(found_there(out, lines + says, tmp_path))
    cloud = read(out / "cloud.bin")
    expected = boxes_in(built.module, cloud.points)
    assert len(expected.labels) > 10
    assert found[2] == expected.labels.tolist()
    assert found[1] == pytest.approx(expected.scores.tolist(), abs=1e-3)
    assert np.array(found[0]) == pytest.approx(expected.boxes.numpy(), abs=2e-3)
    # the file as a program
    run = found_there(out, "import runpy; sys.argv = ['detect.py', 'cloud.bin']\nrunpy.run_path('detect.py', run_name='__main__')", tmp_path)  # fmt: skip
    assert [line.split()[0] for line in run.splitlines()] == [
        record_classes(out)[label] for label in expected.labels.tolist()
    ]


def record_classes(folder):
    return json.loads((folder / "export.json").read_text())["classes"]


@pytest.mark.parametrize(("most", "pillars"), [(32, 4096), (2, 40)])
def test_pillars_without_torch_are_those_of_torch(most, pillars):
    grid = replace(SMALL_GRID, max_points=most, max_pillars=pillars)
    rows = data().rows(torch.tensor([2]))
    expected = dense(rows, grid)
    found = standalone.pillars(rows["points"].numpy(), grid.json())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.numpy(), abs=1e-4), name


def test_anchors_without_torch_are_those_of_torch():
    use = decoding({"grid": SMALL_GRID.json(), "strides": [2, 2, 2]})["anchors"]
    found = standalone.anchors(use, (32, 32))
    assert found == pytest.approx(anchors(SMALL_GRID, 2).numpy(), abs=1e-5)


def test_a_checkpoint_is_loaded_whole_and_of_the_same_grid(tmp_path):
    built = detector()
    load = LoadDetector(model=SPEC)
    file = tmp_path / "a.safetensors"
    save_file(built.module.state_dict(), file)
    load({"checkpoint": file}, tmp_path / "from-file", work=Work(rng=RNG))
    load({"checkpoint": built}, tmp_path / "from-folder", work=Work(rng=RNG))
    for name in ("from-file", "from-folder"):
        state = load_model(tmp_path / name).module.state_dict()
        assert all(
            torch.equal(value, state[key]) for key, value in built.module.state_dict().items()
        )
    torch.manual_seed(0)
    save_model(tmp_path / "other", Built(spec=OTHER, module=OTHER.new()))
    with pytest.raises(BadData, match="the given teacher has the grid PillarGrid.*set x, y, cell"):
        load({"checkpoint": load_model(tmp_path / "other")}, tmp_path / "no", work=Work(rng=RNG))
    wide = model("pillars-8", grid=SMALL_GRID, layers=(1, 1, 1))
    with pytest.raises(
        BadData, match="is a pillars-8, the recipe's a pillars-4; set teacher_model=pillars-8"
    ):
        load(
            {"checkpoint": Built(spec=wide, module=wide.new())}, tmp_path / "no", work=Work(rng=RNG)
        )
    line = Built(spec=SPEC, module=torch.nn.Linear(2, 2))
    with pytest.raises(BadData, match="no detector of pillars"):
        load({"checkpoint": line}, tmp_path / "no", work=Work(rng=RNG))
    with pytest.raises(BadData, match="a Linear has no pillars"):
        ExportDetector(title="", paper="")(
            {"student": line, "data": data()}, tmp_path, work=Work(rng=RNG)
        )
