"""Quantization after training: every op is found, the gradients lead, the model comes back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, load_model
from stillhouse.errors import BadRecipe, BadSetting, ContractError, PluginError
from stillhouse.quantize.ops import Ops
from stillhouse.quantize.ptq import (
    Likelihood,
    Quantize,
    QuantizedNetwork,
    divergence,
    quantized,
    task_gradients,
)
from stillhouse.quantize.scales import Op
from stillhouse.work import Work

from ..toys import SITE, Net, toy_data  # noqa: TID252  # pyright: ignore[reportAttributeAccessIssue]
from .networks import Mixed, images

OUTPUTS: dict[str, Likelihood] = {"logits": "categorical", "mask": "bernoulli"}


def mixed() -> Built:
    torch.manual_seed(0)
    spec = Model(build=Mixed, kwargs={"width": 8})
    return Built(spec=spec, module=spec.new().eval())


def applied(**changes: Any) -> QuantizedNetwork:
    given: dict[str, Any] = {"outputs": OUTPUTS, "candidates": 20, "rounds": 1, **changes}
    how = Quantize(**given)
    module = how.applied(mixed(), {"images": images(8)}).module
    assert isinstance(module, QuantizedNetwork)
    return module


def loss(module: nn.Module, batch: Tensor) -> float:
    with torch.no_grad():
        found, expected = module({"images": batch}), mixed().module({"images": batch})
    return sum(float(divergence(found[name], expected[name], how)) for name, how in OUTPUTS.items())


def equal_gradients(net: nn.Module, batch: Tensor) -> list[float]:
    """The largest gradient of KL(y || y) for each op of the network in floats."""
    held: list[Tensor] = []

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        held.append(op.compute(x, weight))
        return held[-1].clone()

    with Ops(each, forms=None):
        found = net({"images": batch})
    losses = [divergence(found[name], found[name], how) for name, how in OUTPUTS.items()]
    gradients = torch.autograd.grad(losses[0] + losses[1], held, allow_unused=True)
    return [float(g.abs().max()) for g in gradients if g is not None]


def test_every_product_is_found_in_order_and_in_its_form():
    module = applied(metric="minmax")
    assert [(p["form"], p["channels"]) for p in module.ops] == [
        ("asymmetric", 8),
        ("asymmetric", 8),
        ("symmetric", None),  # qkv
        ("symmetric", None),  # query by key
        ("softmax", None),  # by value
        ("symmetric", None),  # up
        ("gelu", None),  # down
        ("symmetric", None),  # head
        ("asymmetric", 1),
        ("symmetric", None),  # lost
    ]


def test_taking_attention_apart_changes_nothing():
    net = mixed().module
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    mask = torch.rand(5, 5) < 0.7
    mask.fill_diagonal_(True)

    def plain(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        return op.compute(x, weight)

    attention = nn.functional.scaled_dot_product_attention
    for given in (mask, torch.randn(5, 5)):
        expected = attention(q, k, v, attn_mask=given)
        with Ops(plain, forms=None):
            found = attention(q, k, v, attn_mask=given)
        torch.testing.assert_close(found, expected)
    with torch.no_grad(), Ops(plain, forms=None):
        found = net({"images": images(2)})
    torch.testing.assert_close(found, net({"images": images(2)}))


def test_the_task_gradient_is_not_that_of_equal_outputs():
    module = applied(metric="minmax")
    gradients = task_gradients(module, {"images": images(8)}, OUTPUTS)
    assert gradients[-1] is None  # no scored output depends on `lost`
    sizes = [float(g.abs().max()) for g in gradients if g is not None]
    assert len(sizes) == 9
    degenerate = equal_gradients(mixed().module, images(8))
    assert all(s > 10 * d for d, s in zip(degenerate, sizes, strict=True))


@pytest.mark.parametrize(("likelihood", "expected"), [("normal", 2.0), ("bernoulli", 0.1308)])
def test_divergences_by_hand(likelihood: Likelihood, expected: float):
    if likelihood == "normal":  # half of 2 squared
        found = divergence(torch.tensor([3.0]), torch.tensor([1.0]), likelihood)
    else:  # KL(1/2 || 3/4) = 1/2 log(2/3) + 1/2 log 2 = .1438; of 3/4 from 1/2, .1308
        found = divergence(torch.tensor([0.0]), torch.tensor([3.0]).log(), likelihood)
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_a_class_that_the_float_model_excludes_adds_nothing():
    # [1/2, 1/2, 0] from [1/2, 1/4, 1/4]: 1/2 ln 2
    found = torch.tensor([[0.5, 0.25, 0.25]]).log()
    expected = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert float(divergence(found, expected, "categorical")) == pytest.approx(0.5 * math.log(2))


def test_more_bits_are_nearer_to_the_floats():
    losses = [loss(applied(bits=bits, metric="minmax"), images(8)) for bits in (4, 6, 8)]
    assert losses[0] > 3 * losses[1] > 9 * losses[2] > 0


@pytest.mark.parametrize("metric", ["mse", "hessian"])
def test_a_search_is_nearer_to_the_floats_than_covering_scales(metric: str):
    assert loss(applied(bits=4, metric=metric), images(8)) < loss(
        applied(bits=4, metric="minmax"), images(8)
    )


def test_a_quantized_model_is_written_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(SITE))
    torch.manual_seed(0)
    spec = Model(build=Net, kwargs={"width": 4})
    built = Built(spec=spec, module=spec.new().eval())
    before = {name: value.clone() for name, value in built.module.state_dict().items()}
    how = Quantize(candidates=5, rounds=1)
    how({"student": built, "data": toy_data()}, tmp_path / "q", work=Work.seeded(2))
    read = load_model(tmp_path / "q").module
    batch = {"images": toy_data().rows(torch.arange(4))["images"]}
    again = Quantize(candidates=5, rounds=1)
    data = {"student": built, "data": toy_data()}
    again(data, tmp_path / "again", work=Work.seeded(2))
    assert (tmp_path / "q/model.safetensors").read_bytes() == (
        tmp_path / "again/model.safetensors"
    ).read_bytes()
    assert isinstance(read, QuantizedNetwork)
    # the names in users' files: those of every version
    record = json.loads((tmp_path / "q/model.json").read_text())
    assert record["build"] == "stillhouse.quantize.ptq:quantized"
    assert sorted(record["kwargs"]) == ["bits", "network", "products"]
    assert record["kwargs"]["products"] == list(read.ops)
    assert sorted(dict(read.named_buffers(recurse=False))) == sorted(
        f"{kind}_{i}" for kind in ("weight", "activation", "zero_point") for i in range(2)
    )
    difference = (read(batch)["logits"] - built.module(batch)["logits"]).abs().max()
    assert 0 < difference < 0.1
    assert all(torch.equal(before[k], v) for k, v in built.module.state_dict().items())


def test_it_says_how_many_ops_are_done():
    said: list[tuple[int, int, str]] = []
    how = Quantize(outputs=OUTPUTS, candidates=2, rounds=1)
    how.applied(mixed(), {"images": images(2)}, progress=lambda *event: said.append(event))
    assert said == [(i + 1, 10, "ops") for i in range(10)]


def test_other_ops_than_calibrated_are_refused():
    module = applied(metric="minmax")
    short = QuantizedNetwork(module.net, bits=8, ops=module.ops[:3])
    with pytest.raises(ContractError, match="more ops than the 3 that were calibrated"):
        short({"images": images(1)})
    long = QuantizedNetwork(module.net, bits=8, ops=(*module.ops, module.ops[-1]))
    with pytest.raises(ContractError, match="10 ops, but 11 were calibrated"):
        long({"images": images(1)})


def test_what_cannot_be_quantized_is_refused(tmp_path: Path):
    with pytest.raises(BadSetting, match=r"samples must be >= 1 \(got 0\)"):
        Quantize(samples=0)
    with pytest.raises(BadRecipe, match=r"needs the ports 'student' and 'data' \(got \[\]\)"):
        Quantize()({}, tmp_path, work=Work())
    with pytest.raises(PluginError, match="nothing of it is imported"):
        quantized(network={"build": "os:system", "kwargs": {}}, bits=8, products=[])
    attention = nn.MultiheadAttention(4, 1).eval()
    x = torch.ones(2, 1, 4)

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        return op.compute(x, weight)

    with pytest.raises(BadRecipe, match="hides its ops"), Ops(each, forms=None):
        attention(x, x, x)
