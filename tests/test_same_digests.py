"""`dvc repro`, the Prefect flow and `stillhouse run` leave the same artifacts."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ("steps=6", "teacher_steps=6")


def digests(root: Path) -> dict[str, str]:
    """Digest of every output of every stage of the one variant that ran below `root`."""
    found: dict[str, str] = {}
    for file in sorted(root.glob("runs/vision/distill/*/*/stage.json")):
        outputs = json.loads(file.read_text())["outputs"]
        found |= {f"{file.parent.name}.{port}": entry["digest"] for port, entry in outputs.items()}
    return found


def call(clone: Path, env: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_ways_give_the_same_artifacts(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    binaries = Path(sys.executable).parent
    env = {
        **os.environ,
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "STILLHOUSE_ROOT": "",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    settings = [word for pair in SHORT for word in ("--set", pair)]

    call(clone, env, "stillhouse", "run", "vision/distill", *settings)
    by_hand = digests(clone)
    assert {"data.train", "teacher.teacher", "kd-0.student", "export.model"} <= by_hand.keys()

    printed = call(clone, env, "stillhouse", "flow", "run", "vision/distill", *settings)
    page = Path(printed.strip().splitlines()[-1].removeprefix("Report: "))
    workspace = next(p for p in page.parents if (p / "params.yaml").is_file())
    assert workspace != clone
    assert digests(workspace) == by_hand

    variant = page.parents[1].name
    subprocess.run(["rm", "-r", str(clone / "runs")], check=True)
    (clone / "params.yaml").write_text((workspace / "params.yaml").read_text())
    call(clone, env, "stillhouse", "flow", "dvc")
    call(clone, env, "dvc", "repro", f"pipelines/vision/distill/{variant}/dvc.yaml")
    assert digests(clone) == by_hand
