"""A whole SAM in fewer bits: every op of encoder, prompt encoder and decoder is found; those of
the encoder run with integers.
"""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built, load_model
from stillhouse.data.data import TensorData
from stillhouse.quantize.onnx_network import session
from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.ptq import Quantize, QuantizedNetwork
from stillhouse.work import Work
from stillhouse_sam.models import Shape, named

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)


INPUTS = ("images", "sizes", "point_coords", "point_labels")
DYNAMIC = dict.fromkeys(INPUTS[2:], ("prompts", "points"))


def rows(count: int, prompts: int = 1) -> dict[str, Tensor]:
    """Images with boxes, each a little farther right than the one before."""
    images = torch.randint(0, 256, (count, 3, 64, 64), generator=Generator().manual_seed(1))
    boxes = torch.tensor([[4.0, 4.0], [40.0, 30.0]]) + torch.arange(prompts)[:, None, None]
    return {
        "images": images.to(torch.uint8),
        "sizes": torch.tensor([[64, 64]] * count),
        "point_coords": boxes.expand(count, -1, -1, -1).contiguous(),
        "point_labels": torch.tensor([2, 3]).expand(count, prompts, 2).contiguous(),
    }


def quantized(encoder: str, folder: Path) -> tuple[Built, Built]:
    """A SAM, whose BatchNorm has seen images, and as it is opened after rounding."""
    torch.manual_seed(0)
    spec = named(encoder, shape=SHAPE)
    module = spec.new().train()
    with torch.no_grad():
        for _ in range(20):
            module(rows(4))
    built = Built(spec=spec, module=module.eval())
    quantize = Quantize(
        inputs=INPUTS,
        outputs={"logits": "bernoulli", "iou": "normal"},
        samples=2,
        candidates=6,
        rounds=1,
    )
    ports = {"student": built, "data": TensorData(rows(4))}
    quantize(ports, folder, work=Work.seeded(0))
    return built, load_model(folder)


def gap(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().mean() / expected.abs().mean()).item()


def test_a_quantized_sam_is_saved_and_opened_again(tmp_path: Path):
    built, found = quantized("sam-32x1", tmp_path / "w8")
    assert isinstance(found.module, QuantizedNetwork)
    forms = [op["form"] for op in found.module.ops]
    # one attention in the encoder; two of three in each of two decoder blocks, one at the end
    assert forms.count("softmax") == 1 + 2 * 3 + 1
    assert "gelu" in forms
    with torch.no_grad():
        exact, rounded = built.module(rows(4)), found.module(rows(4))
    assert 0 < gap(rounded["logits"], exact["logits"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "convolutions"), [("cnn8", 11), ("sam-32x1", 3)])
def test_a_sams_encoder_runs_with_integers(encoder: str, convolutions: int, tmp_path: Path):
    built, rounded = quantized(encoder, tmp_path / "w8")
    how = ToIntegers(
        parts=("sam.image_encoder",),
        inputs=INPUTS,
        outputs=("logits", "iou"),
        dynamic=DYNAMIC,
        samples=2,
        tolerance=0.5,  # processors without VNNI may overflow; the file is judged without kernels
    )
    ports = {"student": rounded, "data": TensorData(rows(4))}
    how(ports, tmp_path / "int8", work=Work.seeded(0))
    found = load_model(tmp_path / "int8")
    counts = found.spec.kwargs["integers"]
    content = found.module.get_buffer("file").numpy().tobytes()
    # prompt encoder and decoder stay floats, as in the recipe
    assert 0 < counts["rounded"] < counts["ops"]
    assert counts["kernels"]["QLinearConv"] == convolutions
    for count, prompts in ((1, 1), (4, 3), (2, 7)):
        given = rows(count, prompts)
        with torch.no_grad():
            assert found.module(given)["logits"].shape == (count, prompts, 3, 32, 32)
            near, exact = (one.module(given)["logits"] for one in (rounded, built))
        arrays = {name: value.numpy() for name, value in given.items()}
        whole = torch.as_tensor(session(content, plain=True).run(["logits"], arrays)[0])
        assert 0 < gap(whole, near) < 0.06
        assert 0 < gap(whole, exact) < 0.06
