"""An exported student runs in a fresh environment that has ONNX Runtime and neither torch nor us."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NEEDS = ("onnxruntime", "numpy", "pillow")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_exports_own_readme_runs_without_stillhouse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (uv := shutil.which("uv")):
        pytest.skip("needs uv to make an environment")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    cli = [sys.executable, "-m", "stillhouse"]
    subprocess.run([*cli, "run", "vision/distill"], check=True)
    subprocess.run(
        [*cli, "export", "vision/distill", "--to", "onnx", "--out", "student"], check=True
    )
    student = tmp_path / "student"
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(student / "image.png")

    fresh = tmp_path / "fresh"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(fresh)], check=True)
    python = str(fresh / "bin" / "python")
    packages = [f"{name}=={version(name)}" for name in NEEDS]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    for absent in ("stillhouse", "torch"):
        assert subprocess.run([python, "-c", f"import {absent}"], capture_output=True).returncode

    prepare, by_onnx, _, read = re.findall(
        r"```python\n(.*?)```", (student / "README.md").read_text(), re.DOTALL
    )
    done = subprocess.run(
        [python, "-W", "error", "-c", prepare + by_onnx + read],
        cwd=student, check=True, capture_output=True, text=True,
    )  # fmt: skip
    predicted = subprocess.run(
        [*cli, "predict", "student", "student/image.png", "--format", "csv"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()[1].split(",")  # fmt: skip
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in printed] == predicted[1::2]
    assert [float(p) for _, p in printed] == pytest.approx(
        [float(p) for p in predicted[2::2]], abs=2e-4
    )
