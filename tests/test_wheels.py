"""What a stranger installs: the wheels, in an environment of their own, away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parent.parent
DOMAINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "src").is_dir())
PLUGIN = "stillhouse_{}-0.1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheels")
    uv("build", "-q", "--all-packages", "-o", str(out), cwd=ROOT)  # sdists, and wheels from them
    return out


@pytest.fixture(scope="module")
def command(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs `stillhouse` of an environment that has the wheels and what they ask for."""
    place = tmp_path_factory.mktemp("away")
    python = place / "env" / "bin" / "python"
    uv("venv", "-q", "--python", sys.executable, str(place / "env"))
    # the versions of this environment, so that nothing is resolved or downloaded anew
    frozen = uv("pip", "freeze", "--exclude-editable", "--python", sys.executable)
    (place / "tried.txt").write_text(frozen)
    extras = ",".join(DOMAINS)
    uv(
        *("pip", "install", "-q", "--python", str(python), "--find-links", str(wheels)),
        *("--constraint", str(place / "tried.txt"), f"stillhouse[{extras}]"),
    )
    spared = ("PYTHONPATH", "STILLHOUSE_ROOT", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in spared}
    env |= {"STILLHOUSE_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python.with_name("stillhouse")), *words],
            capture_output=True,
            text=True,
            env=env,
            cwd=place,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return run


def test_every_distribution_has_the_license() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    for place in (ROOT / "packages" / "kernel", ROOT / "flows", *(ROOT / "plugins").iterdir()):
        if (place / "pyproject.toml").is_file():
            assert (place / "LICENSE").read_bytes() == text
            assert not (place / "LICENSE").is_symlink()  # of which no sdist can be built


def uv(*words: str, cwd: Path | None = None) -> str:
    found = shutil.which("uv")
    assert found, "uv is not on the PATH"
    return subprocess.run(
        [found, *words], check=True, capture_output=True, text=True, cwd=cwd
    ).stdout


def test_each_wheel_is_licensed_typed_and_pinned_to_the_kernel(wheels: Path) -> None:
    for domain in DOMAINS:
        with zipfile.ZipFile(wheels / PLUGIN.format(domain)) as wheel:
            names = wheel.namelist()
            metadata = wheel.read(f"stillhouse_{domain}-0.1.0.dist-info/METADATA").decode()
        assert f"stillhouse_{domain}/py.typed" in names
        assert any(name.endswith("licenses/LICENSE") for name in names)
        assert "Requires-Dist: stillhouse==0.1.0\n" in metadata
        assert "License-Expression: Apache-2.0\n" in metadata


def test_every_domain_is_there_and_shows_a_recipe(command: Any) -> None:
    found = {each["domain"]: each for each in json.loads(command("list", "--json"))}
    assert sorted(found) == DOMAINS
    assert [each["missing"] for each in found.values()] == [[]] * len(DOMAINS)
    for each in found.values():
        recipe = min(each["recipes"])
        assert json.loads(command("show", recipe, "--json"))["stages"]


def test_a_run_away_from_the_repository_leaves_a_student(command: Any) -> None:
    *_, last = command("run", "vision/distill", "--json").splitlines()
    result = json.loads(last)
    assert result["rows"]["student + kd"]["accuracy"] > 0.7
    (model,) = Path(result["report"]).parents[1].glob("export/model/*.onnx")
    assert model.stat().st_size > 0
