"""Multiply-accumulates against what they are by hand, of layers whose kernels are fused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from stillhouse.objectives.objective import Tensors
from stillhouse.profile import macs, operations
from stillhouse.report.build import build
from stillhouse.report.tables import costs

from .report.written import ONE, write_run

WIDTH, HEADS, HIDDEN, TOKENS = 32, 4, 64, 10
LONG, INPUT, STATE = 5, 8, 16


class Asked(nn.Module):
    """A network of one input, asked by a batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensors) -> Tensors:
        return {"out": self.net(batch["x"])}


class First(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[0]


class Own(nn.Module):
    """Each token's attention to all of them, by torch's fused kernel, and to itself alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x) + torch.cdist(x, x) @ x


def counted(net: nn.Module, *shape: int) -> int:
    return macs(Asked(net).eval(), {"x": torch.randn(*shape)})


def encoder_macs() -> int:
    projections = TOKENS * 4 * WIDTH * WIDTH
    return projections + 2 * TOKENS * TOKENS * WIDTH + 2 * TOKENS * WIDTH * HIDDEN


def test_an_encoder_layer_in_eval_mode_has_all_of_its_products() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
    assert counted(layer, 1, TOKENS, WIDTH) == encoder_macs() == 88_320
    assert counted(layer, 3, TOKENS, WIDTH) == 3 * encoder_macs()
    assert torch.backends.mha.get_fastpath_enabled()


def test_recurrent_layers() -> None:
    gates = STATE * (INPUT + STATE)
    first = nn.LSTM(INPUT, STATE)
    both = nn.LSTM(INPUT, STATE, 2, bidirectional=True)
    assert counted(First(first), LONG, 1, INPUT) == LONG * 4 * gates
    deep = STATE * (2 * STATE + STATE)
    assert counted(First(both), LONG, 1, INPUT) == LONG * 2 * 4 * (gates + deep) == 46_080
    assert counted(First(nn.GRU(INPUT, STATE)), LONG, 1, INPUT) == LONG * 3 * gates


def test_vit_tiny_has_its_published_macs() -> None:
    net = timm.create_model("vit_tiny_patch16_224")
    blocks = 12 * (197 * 12 * 192 * 192 + 2 * 197 * 197 * 192)
    patches, head = 196 * 3 * 16 * 16 * 192, 192 * 1000
    assert counted(net, 1, 3, 224, 224) == blocks + patches + head == 1_253_683_200


def test_products_with_vectors_are_counted() -> None:
    class Vectors(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mv(x, x[0]) + torch.dot(x[0], x[1])

    assert counted(Vectors(), 7, 7) == 7 * 7 + 7


def test_what_cannot_be_counted_is_named() -> None:
    found = operations(Asked(Own()), {"x": torch.randn(1, 6, 4)})
    assert found.uncounted == ("aten._cdist_forward",)
    assert found.macs == 2 * 6 * 6 * 4 + 6 * 6 * 4  # attention, and the product after cdist
    plain = Asked(nn.Conv2d(3, 8, 3))
    assert operations(plain, {"x": torch.randn(1, 3, 8, 8)}).uncounted == ()


def test_a_report_names_it(tmp_path: Path) -> None:
    recipe = write_run(ONE, tmp_path)
    file = tmp_path / "kd-0-scores.run.json"
    record = json.loads(file.read_text())
    record["measured"]["uncounted"] = {"macs of student": ["aten._cdist_forward"]}
    file.write_text(json.dumps(record))
    lines = {line.head: line for line in costs(build(recipe, "toy", tmp_path, tmp_path)).lines}
    assert lines["kd-0-scores"].cells[-1].text == (
        "macs of student without aten._cdist_forward, which cannot be counted"
    )


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_the_mode_alone(training: bool) -> None:
    net = Asked(nn.Linear(2, 2)).train(training)
    macs(net, {"x": torch.ones(1, 2)})
    assert net.training == training
