"""What `export` hands over of the folder that a recipe's last stage left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.cli import exporting
from stillhouse.errors import MissingData

FILES = ("model.json", "model.safetensors", "README.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    left = tmp_path / "left"
    left.mkdir()
    for name in FILES:
        (left / name).write_text(name)

    def student_of(target: object) -> SimpleNamespace:
        return SimpleNamespace(path=left)

    monkeypatch.setattr(exporting, "student_of", student_of)
    return left


def export(to: str, out: Path) -> list[str]:
    target: Any = SimpleNamespace(ref="toys/fit@tiny")
    exporting.export_student(target, to, out)
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_folders_that_a_plugin_adds_go_along(folder: Path, tmp_path: Path) -> None:
    for name in ("assets/words.json", "pipeline/unet/config.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    found = export("safetensors", tmp_path / "out")
    assert found == sorted([*FILES, "assets/words.json", "pipeline/unet/config.json"])


def test_a_student_of_several_networks_has_an_onnx_file_each(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"toys/fit@tiny was exported without model\.onnx"):
        export("onnx", tmp_path / "none")
    for number in range(2):
        (folder / f"student{number}.onnx").write_text("x")
    found = export("onnx", tmp_path / "out")
    assert found == ["README.md", "student0.onnx", "student1.onnx"]
