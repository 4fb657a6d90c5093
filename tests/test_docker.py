"""Dockerfile: what it copies is there, and what it installs is what uv.lock has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
KEPT = [
    line[1:]
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line.startswith("!")
]  # fmt: skip


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    assert copied()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert name in KEPT, name
    assert sorted(copied()) == sorted(KEPT)


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_the_locked_versions_without_cuda() -> None:
    extras = re.search(r'^ARG EXTRAS="([a-z ]+)"$', TEXT, re.MULTILINE)
    pattern = re.search(r"grep -vE '([^']+)'", TEXT)
    assert extras is not None
    assert pattern is not None
    flags = [word for extra in extras[1].split() for word in ("--extra", extra)]
    options = "--no-emit-workspace --no-hashes --no-annotate --no-header"
    assert options in " ".join(TEXT.replace("\\\n", " ").split())
    command = ["uv", "export", "--frozen", "--offline", "--no-default-groups", *flags]
    done = subprocess.run(
        [*command, *options.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if not re.match(pattern[1], line)]
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "torchvision", "prefect", "dvc", "timm"} <= names
    assert {name for name in names if "cu1" in name or "nvidia" in name} == {"nvidia-ml-py"}
    assert len(lines) < len(done.stdout.splitlines())
