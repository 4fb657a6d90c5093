"""Exported students as OpenVINO's files: what OpenVINO gives is what ONNX Runtime gives."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from stillhouse import openvino_files
from stillhouse.errors import ContractError, MissingExtra
from stillhouse.export import MIN_OPSET, write_onnx
from stillhouse.openvino_files import write_openvino


class Reads(nn.Module):
    """Images uint8 [B, 3, 8, 8] and tokens [B, S] to logits [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.words, self.head = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4), nn.Linear(4, 5)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen = torch.relu(self.conv(batch["images"].float() / 255)).mean((2, 3))
        return {"logits": self.head(seen + self.words(batch["tokens"]).mean(1))}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    batch = {"images": images, "tokens": torch.ones(2, 4, dtype=torch.int64)}
    axes = {"tokens": ("length",)}
    write_onnx(Reads(), batch, ("logits",), path, opset=MIN_OPSET, dynamic=axes)
    return path


def test_openvino_gives_what_onnx_runtime_gives(file: Path, tmp_path: Path) -> None:
    import openvino

    out = tmp_path / "out"
    out.mkdir()
    assert write_openvino(file, out) == ["model.xml", "model.bin"]
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    tokens = rng.integers(0, 9, (3, 6))
    compiled: Any = openvino.Core().compile_model(str(out / "model.xml"), "CPU")
    found = compiled({"images": images, "tokens": tokens})[0]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"images": images, "tokens": tokens})
    np.testing.assert_allclose(
        found, np.asarray(expected), rtol=2e-2, atol=1e-3
    )  # bf16 where the CPU has it


def test_what_openvino_computes_otherwise_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(content: bytes) -> Any:
        inner = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

        class Doubled:
            get_inputs, get_outputs = inner.get_inputs, inner.get_outputs

            def run(self, names: list[str], given: Any) -> list[Any]:
                return [2 * each for each in inner.run(names, given)]  # type: ignore[operator]

        return Doubled()

    monkeypatch.setattr(openvino_files, "session", doubled)
    with pytest.raises(ContractError, match=r"model\.onnx: OpenVINO's 'logits' is .* in the mean"):
        write_openvino(file, tmp_path)


def test_without_the_package_it_says_how_to_get_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"needs `openvino`.* Run: uv pip install openvino"):
        write_openvino(file, tmp_path)
