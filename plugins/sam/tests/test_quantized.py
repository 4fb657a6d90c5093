"""A whole SAM in fewer bits: every product of encoder, prompt encoder and decoder is found."""

from pathlib import Path

import torch
from torch import Generator

from stillhouse.artifact import Built, load_model
from stillhouse.data.data import TensorData
from stillhouse.quantize.ptq import Quantize, QuantizedNetwork
from stillhouse_sam.models import Shape, named

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)


def test_a_quantized_sam_is_saved_and_opened_again(tmp_path: Path):
    torch.manual_seed(0)
    spec = named("sam-32x1", shape=SHAPE)
    built = Built(spec=spec, module=spec.new().eval())
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=Generator().manual_seed(1))
    batch = {
        "images": images.to(torch.uint8),
        "sizes": torch.tensor([[64, 64]] * 4),
        "boxes": torch.tensor([[[4.0, 4.0, 40.0, 30.0]]] * 4),
    }
    quantize = Quantize(
        inputs=("images", "sizes", "boxes"),
        outputs={"logits": "bernoulli", "iou": "normal"},
        samples=2,
        candidates=6,
        rounds=1,
    )
    ports = {"student": built, "data": TensorData(batch)}
    quantize(ports, tmp_path / "w8", rng=Generator().manual_seed(0))
    found = load_model(tmp_path / "w8")
    assert isinstance(found.module, QuantizedNetwork)
    forms = [product["form"] for product in found.module.products]
    # one attention in the encoder; two of three in each of two decoder blocks, one at the end
    assert forms.count("softmax") == 1 + 2 * 3 + 1
    assert "gelu" in forms
    with torch.no_grad():
        exact, rounded = built.module(batch), found.module(batch)
    gap = (exact["logits"] - rounded["logits"]).abs().mean() / exact["logits"].abs().mean()
    assert 0 < float(gap) < 0.1
