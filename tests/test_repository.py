"""What the repository promises about itself: its layers, its installs, its documents."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/tutorial.md", "docs/plugin.md", "docs/promotion.md")


def test_imports_go_flows_plugins_kernel() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_readme_begins_with_exactly_two_commands() -> None:
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first is not None
    commands = [line.partition("#")[0].strip() for line in first[1].strip().splitlines()]
    assert commands == ["uv run stillhouse flow run", "uv run pytest"]


def documented() -> list[str]:
    text = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    return sorted(
        set(re.findall(r"(?<!from )stillhouse ((?:flow|data) [a-z]+|[a-z]+)(?=[ `\n])", text))
    )


def test_every_documented_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    from stillhouse.cli import main

    for words in documented():
        code = main([*words.split(), "--help"])
        told = capsys.readouterr()
        assert code == 0, f"stillhouse {words} is documented: {told.err}"
        assert "Usage:" in told.out
    assert main(["flow", "nothing", "--help"]) == 2


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
@pytest.mark.parametrize(
    "plugin",
    ["vision", "landmarks", "sam", "pointcloud", "clip", "language", "diffusion", "contracts"],
)
def test_a_plugin_installs_alone(plugin: str) -> None:
    command = ["uv", "export", "--frozen", "--offline", "--no-default-groups", "--extra", plugin]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line}
    assert {"torch", "mmengine"} <= names
    assert not {"prefect", "dvc", "pytest", "h5py"} & names
    own = {line for line in done.stdout.splitlines() if line.startswith("-e ./plugins/")}
    assert own == {f"-e ./plugins/{plugin}"}


def test_no_document_types_a_path_of_one_machine() -> None:
    kept = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if kept.returncode:
        pytest.skip("not a git checkout")
    texts = [ROOT / n for n in kept.stdout.split() if n.endswith((".md", ".py", ".toml", ".yaml"))]
    bad = [p for p in texts if p != Path(__file__) and "../" + "shared" in p.read_text()]
    assert bad == []


def test_params_name_variants_that_exist() -> None:
    from stillhouse.settings import find_settings, read_params

    assert yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, variants in read_params(ROOT).items():
        for variant in variants:
            assert find_settings(f"{name}@{variant}", ROOT, ROOT / "runs")[1].variant() == variant
