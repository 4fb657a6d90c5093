"""The lines about a user's own data in README.md and docs/tutorial.md, as they stand there, on a
small folder; only the numbers of steps are made smaller.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.samples import digits

ROOT = Path(__file__).parents[1]
FEW = ("steps=3", "views=1", "batch=16")
NAMES = ("finch", "owl", "wren")
GREY = ImageSpec(size=8, mean=(0.5,), std=(0.25,), names=NAMES)


def lines(document: str) -> list[list[str]]:
    """Commands with data=file:, their words behind `stillhouse`."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    found = re.findall(r"^uv run stillhouse (run .*data=file:.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def write_images(source: Path, names: Sequence[str] = NAMES) -> None:
    arrays = digits()
    for part, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(names):
            (source / part / name).mkdir(parents=True)
            rows = np.flatnonzero(arrays[f"{part}_labels"] == label)[:count]
            for row in rows:
                file = source / part / name / f"{row}.png"
                Image.fromarray(arrays[f"{part}_images"][row][0]).save(file)


def write_teacher(file: Path) -> None:
    """A ResNet-56 that knows the three digits a little."""
    arrays = digits()
    rows = np.flatnonzero(arrays["train_labels"] < len(NAMES))
    images = torch.from_numpy(arrays["train_images"][rows])
    labels = torch.from_numpy(arrays["train_labels"][rows])
    torch.manual_seed(0)
    module = model("cifar-resnet56", classes=3, images=GREY).new()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(module({"images": images})["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # BatchNorm's statistics follow the weights
        for _ in range(30):
            module({"images": images})
    torch.save({"state_dict": module.state_dict(), "classes": list(NAMES)}, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "number"), [("README.md", 0), ("README.md", 1), ("docs/tutorial.md", 0)]
)
def test_a_documented_line_on_own_data_runs(document: str, number: int, tmp_path: Path) -> None:
    words = lines(document)[number]
    write_images(tmp_path / "images")
    write_teacher(tmp_path / "teacher.pth")
    there = {"data": tmp_path / "images", "teacher": tmp_path / "teacher.pth"}
    given = [re.sub(r"^(data|teacher)=file:.*", lambda m: f"{m[1]}=file:{there[m[1]]}", w)
             for w in words]  # fmt: skip
    trained = () if any(word.startswith("teacher=") for word in words) else ("teacher_steps=5",)
    few = [word for value in (*FEW, *trained) for word in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse", *given, *few],
        env={
            "PATH": "/usr/bin:/bin",
            "STILLHOUSE_ROOT": str(tmp_path),
            "STILLHOUSE_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "runs/vision/distill").glob("*/report/report.json")
    settings = json.loads(report.read_text())["settings"]
    assert (settings["classes"], settings["names"]) == (3, list(NAMES))
