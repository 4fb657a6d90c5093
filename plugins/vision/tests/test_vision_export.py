"""An exported classifier says how to use it, and its card's own lines give what torch gives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built
from stillhouse.card import Card
from stillhouse.cli.predicting import as_text, predictions
from stillhouse.data import TensorData
from stillhouse.errors import CorruptArtifact, MissingData
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.usage import classifier_usage

CARD = Card(title="A toy", task="image-classification", paper="none")
RGB = ImageSpec(size=12, names=("cat", "dog", "owl"))
GREY = ImageSpec(size=12, mean=(0.5,), std=(0.5,))
# a process of its own in which `import stillhouse` fails
ALONE = "import sys; sys.modules['stillhouse'] = None; sys.modules['torch'] = None\n"


@pytest.fixture(params=[RGB, GREY], ids=["rgb", "grey"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a small classifier with random weights, and image.png of another shape."""
    images: ImageSpec = request.param
    torch.manual_seed(0)
    spec = model("cnn4", classes=3, images=images)
    built = Built(spec=spec, module=spec.new().eval())
    pixels = torch.randint(0, 256, (8, images.channels, 12, 12), dtype=torch.uint8)
    ports = {
        "student": built,
        "data": TensorData({"images": pixels, "labels": torch.zeros(8).long()}),
        "scores": {"accuracy": 0.5, "parameters": 7},
    }
    out = tmp_path / "student"
    Export(card=CARD, usage=classifier_usage)(ports, out, work=Work())
    noise = np.random.default_rng(1).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB" if images.channels == 3 else "L").save(out / "image.png")
    return out


def run(code: str, folder: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout


def test_the_cards_lines_give_what_predict_gives_with_and_without_torch(exported: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    prepare, by_onnx, by_torch, read = blocks
    (row,) = predictions(str(exported), [str(exported / "image.png")])
    ranked = [(row[f"class{n}"], row[f"probability{n}"]) for n in ("", " 2", " 3")]
    for code in (ALONE + prepare + by_onnx + read, prepare + by_torch + read):
        printed = [line.split() for line in run(code, exported).splitlines()]
        assert [name for name, _ in printed] == [name for name, _ in ranked]
        assert [float(p) for _, p in printed] == pytest.approx([p for _, p in ranked], abs=2e-4)


def test_names_preprocessing_and_shapes_stand_in_the_file_and_beside_it(exported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    channels = record["inputs"]["images"]["shape"][1]
    names = ["cat", "dog", "owl"] if channels == 3 else ["0", "1", "2"]
    assert record["classes"] == names
    assert record["inputs"]["images"]["dtype"] == "uint8"
    assert record["inputs"]["images"]["shape"] == ["batch", channels, 12, 12]
    assert record["outputs"]["logits"]["shape"] == ["batch", 3]
    assert record["preprocessing"]["size"] == 12
    assert record["preprocessing"]["mode"] == ("RGB" if channels == 3 else "L")
    kept = {p.key: p.value for p in onnx.load(str(exported / "model.onnx")).metadata_props}
    assert kept["task"] == "image-classification"
    for key in ("inputs", "outputs", "classes", "preprocessing"):
        assert json.loads(kept[key]) == record[key]
    card = (exported / "README.md").read_text()
    assert "| Accuracy, % | 50.00 |" in card
    assert "| Parameters (lower is better) | 7 |" in card


def test_files_follow_the_umask(exported: Path) -> None:
    probe = exported / "probe"
    probe.touch()
    assert {oct(p.stat().st_mode) for p in exported.iterdir()} == {oct(probe.stat().st_mode)}


def test_predict_takes_folders_and_onnx_exports(exported: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        (images / name).write_bytes((exported / "image.png").read_bytes())
    rows = predictions(str(exported), [str(images)])
    assert [row["file"] for row in rows] == [str(images / n) for n in ("a.png", "more/b.png")]
    alone = tmp_path / "onnx"
    alone.mkdir()
    for name in ("model.onnx", "export.json"):
        (alone / name).write_bytes((exported / name).read_bytes())
    for student in (alone, alone / "model.onnx"):
        found = predictions(str(student), [str(images)])
        assert [r["class"] for r in found] == [r["class"] for r in rows]
        assert found[0]["probability"] == pytest.approx(rows[0]["probability"], abs=2e-4)
    assert json.loads(as_text(rows, "json")) == rows
    lines = as_text(rows, "csv").splitlines()
    assert lines[0].startswith("file,class,probability,class 2")
    assert len(lines) == 3


def test_a_broken_onnx_export_is_named(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"none")
    with pytest.raises(MissingData, match=r"model.onnx: there is no export.json beside it"):
        predictions(str(file), [str(exported / "image.png")])
    for text in ("[]", "{", '{"inputs": 3}'):
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(CorruptArtifact, match=r"export.json: .*; export it again$"):
            predictions(str(file), [str(exported / "image.png")])
    (tmp_path / "export.json").write_bytes((exported / "export.json").read_bytes())
    with pytest.raises(CorruptArtifact, match=r"model.onnx: no whole ONNX file"):
        predictions(str(file), [str(exported / "image.png")])
