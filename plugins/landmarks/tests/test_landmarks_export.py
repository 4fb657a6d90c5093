"""An exported regressor says how to use it: its card's own lines give what `predict` gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built
from stillhouse.card import Card
from stillhouse.cli.predicting import predictions
from stillhouse.data import TensorData
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_landmarks.models import ImageSpec, model
from stillhouse_landmarks.usage import regressor_usage

ALONE = "import sys; sys.modules['stillhouse'] = None; sys.modules['torch'] = None\n"


def test_the_cards_lines_give_the_points_that_predict_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    spec = model("cnn2", images=ImageSpec(size=16, points=5))
    built = Built(spec=spec, module=spec.new().eval())
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    data = TensorData({"images": pixels, "landmarks": torch.zeros(4, 10)})
    export = Export(
        outputs=("landmarks",),
        card=Card(title="A toy", task="keypoint-detection", paper="none"),
        usage=regressor_usage,
    )
    out = tmp_path / "student"
    export({"student": built, "data": data}, out, work=Work())
    noise = np.random.default_rng(1).integers(0, 256, (41, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out / "image.png")

    prepare, by_onnx, _, read = re.findall(
        r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL
    )
    command = [sys.executable, "-W", "error", "-c", ALONE + prepare + by_onnx + read]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=True)
    points = np.array([line.split() for line in done.stdout.splitlines()], dtype=float)

    (row,) = predictions(str(out), [str(out / "image.png")])
    listed = [line.split() for line in Path(row["listed"]).read_text().splitlines()[3:-1]]
    # 300-W counts pixels from 1 and from their middles
    assert points == pytest.approx(np.array(listed, dtype=float) - 0.5, abs=0.02)
    assert len(points) == 5
    assert json.loads((out / "export.json").read_text())["preprocessing"]["size"] == 16
