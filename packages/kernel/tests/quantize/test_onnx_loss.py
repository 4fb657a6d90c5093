"""Where an int8 file leaves its float file: a network with one huge channel, and one without."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model
from stillhouse.data.data import Columns
from stillhouse.quantize.onnx_loss import losses
from stillhouse.quantize.onnx_static import QuantizeStatic, ToOnnx
from stillhouse.recipe import Recipe
from stillhouse.report.measured import int8_differs
from stillhouse.runs import Runs, finished, run_recipe
from stillhouse.stages import Convert, Make
from stillhouse.work import Work


class Net(nn.Module):
    """Two convolutions; the first one's channel 0 is `huge` times as large as it says, which the
    second takes back: the outputs are the same.
    """

    def __init__(self, *, huge: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.first.weight[0] *= huge
            self.first.bias[0] = 1.0 * huge  # it is never off
            self.second.weight[:, 0] /= huge

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.first(batch["images"].float() / 255).relu()
        return {"logits": self.head(self.second(x).relu().mean((2, 3)))}


@dataclass(frozen=True, kw_only=True)
class Rows:
    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        return {
            "train": {"images": torch.randint(0, 256, (64, 3, 8, 8), generator=work.rng).byte()}
        }


@dataclass(frozen=True, kw_only=True)
class Made:
    huge: float

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        spec = Model(build=Net, kwargs={"huge": self.huge})
        student = Built(spec=spec, module=spec.new().eval())
        ToOnnx()({**inputs, "student": student}, out, work=work)


def recipe(huge: float) -> Recipe:
    data = Make(name="data", make=Rows(), inputs={}, ports=("train",))
    both = {"data": "data.train"}
    onnx = Convert(name="onnx", convert=Made(huge=huge), inputs=both)
    int8 = Convert(
        name="int8",
        convert=QuantizeStatic(samples=32, tolerance=100.0),
        inputs={**both, "student": "onnx.model"},
    )
    return Recipe(name="toy/int8", reference="none", stages=(data, onnx, int8), rows={})


def run(root: Path, huge: float) -> tuple[Recipe, Runs]:
    made, runs = recipe(huge), Runs(root=root, recipe="toy/int8", variant="tiny")
    run_recipe(made, runs)
    return made, runs


def test_a_healthy_network_is_told_nothing(tmp_path: Path) -> None:
    assert list(int8_differs(*run(tmp_path, 1.0))) == []


def test_the_layer_behind_a_huge_channel_is_named(tmp_path: Path) -> None:
    (finding,) = int8_differs(*run(tmp_path, 3000.0))
    assert finding.check == "int8 differs from floats"
    assert finding.figure.startswith("'logits' of int8 has ")
    assert "the first tensor as far off is '" in finding.figure
    # the huge channel's own tensor is right to a thousandth of it
    before = float(finding.figure.rpartition(" with ")[2].split()[0])
    assert before > 40


def test_ratios_are_those_of_the_arrays(tmp_path: Path) -> None:
    """Those of the outputs, from both files' answers by hand."""
    made, runs = run(tmp_path, 1.0)
    floats, int8 = (
        found.outputs["model"].open().module
        for name in ("onnx", "int8")
        if (found := finished(made.stage(name), runs)) is not None
    )
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    batches = [{"images": images[:8]}, {"images": images[8:]}]
    inner, (logits,) = losses(floats, int8, batches)
    with torch.no_grad():
        whole, rounded = (
            net({"images": torch.from_numpy(images)})["logits"].double() for net in (floats, int8)
        )
    expected = 20 * torch.log10(whole.norm() / (whole - rounded).norm())
    assert logits.tensor == "logits"
    assert logits.decibels == pytest.approx(float(expected), abs=0.05)
    assert len(inner) >= 3
    assert all(loss.decibels > 20 for loss in inner)
