"""K students are stages of their own: two workers of a flow train them at the same time."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SETTINGS = {
    "rows": "k1,k2", "baseline": "k1", "method": "k2", "widths": "8,8", "teacher_steps": "10",
    "dm_steps": "150", "feature_steps": "10", "samples": "20", "heun_steps": "2", "grid": "2",
    "ema": "0.5",
}  # fmt: skip


def git(project: Path, *words: str) -> None:
    command = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words)
    subprocess.run(command, cwd=project, check=True, capture_output=True)


def test_two_workers_train_two_students_at_once(tmp_path: Path) -> None:
    from dvc.repo import Repo

    project = tmp_path / "project"
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main")
    (project / "params.yaml").write_text("diffusion:\n  msd:\n    tiny: {}\n")
    (project / ".gitignore").write_text("/runs/\n/data\n")
    Repo.init(str(project)).close()
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "project")
    words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STILLHOUSE_"))}
    env |= {
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "stillhouse", "flow", "run", "diffusion/msd"]
    ran = subprocess.run(
        [*command, "--device", "cpu", "--workers", "2", *words],
        cwd=project, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    page = Path(ran.stdout.splitlines()[-1].removeprefix("Report: "))
    spans = [span(page.parent.parent / f"k2-0-s{number}.run.json") for number in range(2)]
    assert max(start for start, _ in spans) < min(end for _, end in spans)


def span(record: Path) -> tuple[datetime, datetime]:
    run = json.loads(record.read_text())
    start = datetime.fromisoformat(run["started"])
    return start, start + timedelta(seconds=run["seconds"])
