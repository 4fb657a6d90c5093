"""Integers in an ONNX file: the scales that were found, near the rounded network, integer kernels."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from stillhouse.artifact import Built, Model, load_model
from stillhouse.data.data import TensorData
from stillhouse.digest import path_digest
from stillhouse.environment import environment
from stillhouse.errors import BadRecipe, BadSetting, ContractError, UnknownName
from stillhouse.profile import macs, parameters
from stillhouse.quantize.fake import GELU_MINIMUM
from stillhouse.quantize.onnx_graph import Grid, rounding
from stillhouse.quantize.onnx_network import ONNX, OnnxNetwork
from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.ptq import Quantize, QuantizedNetwork
from stillhouse.quantize.scales import Op
from stillhouse.work import Work

from .networks import Mixed, Residual, images

DATA = TensorData({"images": images(8)})
VNNI = any("vnni" in flag for flag in environment("cpu")["vector_flags"].split())
# outputs of each network that is tried, and of what its loss is
OUTPUTS: dict[str, dict[str, Any]] = {
    "Residual": {"map": "normal", "logits": "categorical"},
    "Mixed": {"mask": "bernoulli", "logits": "categorical"},
}


def quantized(build: Callable[..., nn.Module], **given: Any) -> Built:
    """With BatchNorm that has seen other images, some of its factors below zero."""
    torch.manual_seed(0)
    spec = Model(build=build, kwargs=given)
    module = spec.new().train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias, std=0.3)
    with torch.no_grad():
        for _ in range(20):
            module({"images": images(8)})
    how = Quantize(outputs=OUTPUTS[build.__name__], candidates=20, rounds=1)
    return how.applied(Built(spec=spec, module=module.eval()), {"images": images(8)})


@pytest.fixture(scope="module")
def models() -> dict[str, Built]:
    return {"Residual": quantized(Residual), "Mixed": quantized(Mixed, width=8)}


def converted(built: Built, folder: Path, outputs: tuple[str, ...], **given: Any) -> Built:
    how = ToIntegers(outputs=outputs, **given)
    how({"student": built, "data": DATA}, folder, work=Work.seeded(1))
    return load_model(folder)


@pytest.fixture(scope="module")
def files(
    models: dict[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Built, Path]]:
    found: dict[str, tuple[Built, Path]] = {}
    for name, built in models.items():
        folder = tmp_path_factory.mktemp("integers") / name
        # how near it is a test of its own, which needs a processor that does not overflow
        given = converted(built, folder, tuple(OUTPUTS[name]), tolerance=float("inf"))
        found[name] = given, folder
    return found


def outputs_of(module: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return module({"images": images(8)})


def gap(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().mean() / expected.abs().mean()).item()


def grids(file: Path) -> list[tuple[Grid, Grid]]:
    """Of the activation and the weight of each op of rounded operands, in order."""
    ops = [
        node
        for node in ir.load(str(file)).graph
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and all(v is not None and v.producer() is not None for v in node.inputs[:2])
    ]
    found: list[tuple[Grid, Grid]] = []
    for node in ops:
        pair = [_grid(value) for value in node.inputs[:2]]
        found.append((pair[0], pair[1]))
    return found


def _grid(value: ir.Value | None) -> Grid:
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in ("Transpose", "Reshape"):
        inside = maker.inputs[0]
        maker = inside.producer() if inside is not None else None
    assert maker is not None
    assert maker.op_type == "DequantizeLinear"
    found = rounding(maker)
    assert found is not None
    return found


def optimized(file: Path, out: Path) -> Counter[str]:
    """The types of the kernels that ONNX Runtime takes for a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(out)).graph.node)


def largest(module: QuantizedNetwork, wanted: int) -> float:
    """The largest number that an op takes, on the images that calibrate."""
    found: list[float] = []

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        if index == wanted:
            found.append(x.max().item())
        return module.rounded(index, op, x, weight)

    with torch.no_grad():
        module.computed({"images": images(8)}, each)
    return found[0]


class Even(nn.Module):
    """Attention of one query that all keys please alike: the mean of the values."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        value = batch["images"]
        even = torch.zeros_like(value)
        return {"mean": functional.scaled_dot_product_attention(even[:, :1], even, value)}


@pytest.mark.parametrize("keys", [196, 1024])
def test_a_softmax_over_many_even_keys_sums_to_one(keys: int, tmp_path: Path) -> None:
    """With the scale 1 / 255 the weights of 196 keys sum to 0.77, those of 1,024 to 0."""
    values = torch.rand(4, keys, 8, generator=Generator().manual_seed(0)) + 0.5
    built = Built(spec=Model(build=Even), module=Even().eval())
    how = Quantize(outputs={"mean": "normal"}, metric="minmax", samples=4)
    rounded = how.applied(built, {"images": values})
    # two ranges hold them as well: one range from 0 to 1 had 1 / 127 for 1 / 196
    exact = values.mean(1, keepdim=True)
    with torch.no_grad():
        assert rounded.module({"images": values})["mean"] == pytest.approx(exact, rel=0.02)
    folder = tmp_path / "file"
    ToIntegers(outputs=("mean",), samples=4)(
        {"student": rounded, "data": TensorData({"images": values})}, folder, work=Work()
    )
    with torch.no_grad():
        found = load_model(folder).module({"images": values})["mean"]
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)


def test_the_file_holds_the_scales_that_were_found(
    models: dict[str, Built], files: dict[str, tuple[Built, Path]]
) -> None:
    module = models["Mixed"].module
    assert isinstance(module, QuantizedNetwork)
    found = grids(files["Mixed"][1] / ONNX)
    taken = range(8)  # then come a transposed convolution and what no output depends on
    assert len(module.ops) == 10
    assert len(found) == 8
    for i, ((scale, zero, _), (outer, middle, axis)) in zip(taken, found, strict=True):
        scales, form = module.scales(i), module.ops[i]["form"]
        if form == "softmax":
            assert (scale.item(), zero.item()) == (pytest.approx(largest(module, i) / 255), 0)
        elif form == "gelu":
            top = 127 * scales.activation.item()
            assert 255 * scale.item() == pytest.approx(top + GELU_MINIMUM)
            assert zero.item() == round(GELU_MINIMUM / scale.item())
        else:
            assert scale.item() == scales.activation.item()
            assert zero.item() == scales.zero_point.item() + 128
        assert torch.equal(torch.from_numpy(outer.copy()), scales.weight)
        assert not middle.any()
        assert axis == (0 if module.ops[i]["axis"] == 0 else None)


def test_the_scales_of_convolutions_are_those_found_times_the_norms_factors(
    models: dict[str, Built], files: dict[str, tuple[Built, Path]]
) -> None:
    module = models["Residual"].module
    assert isinstance(module, QuantizedNetwork)
    net = module.net
    assert isinstance(net, Residual)
    found = grids(files["Residual"][1] / ONNX)
    assert len(found) == len(module.ops) == 5
    for i, norm in enumerate((net.first[1], net.beside[1], net.alone[1])):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().abs()
        expected = module.scales(i).weight * factor
        torch.testing.assert_close(torch.from_numpy(found[i][1][0].copy()), expected)
    for i in (0, 1, 4):  # 2 reads what the sum and 3 what ReLU6 gives: perhaps smaller scales
        assert found[i][0][0].item() == module.scales(i).activation.item()


@pytest.mark.skipif(not VNNI, reason="without VNNI sums of two products overflow in 16 bits")
@pytest.mark.parametrize("name", ["Residual", "Mixed"])
def test_integers_are_near_the_rounded_network_and_near_the_floats(
    name: str, models: dict[str, Built], files: dict[str, tuple[Built, Path]]
) -> None:
    module = models[name].module
    assert isinstance(module, QuantizedNetwork)
    exact, rounded = outputs_of(module.net), outputs_of(module)
    whole = outputs_of(files[name][0].module)
    for output in OUTPUTS[name]:
        assert 0 < gap(whole[output], rounded[output]) < 0.03
        assert 0 < gap(whole[output], exact[output]) < 0.05


def test_convolutions_and_ops_run_as_integers(
    files: dict[str, tuple[Built, Path]], tmp_path: Path
) -> None:
    convolutions = optimized(files["Residual"][1] / ONNX, tmp_path / "a.onnx")
    assert convolutions["QLinearConv"] == 4
    assert convolutions["QGemm"] == 1
    assert convolutions["QLinearAdd"] == 1
    assert not {"Conv", "Gemm", "BatchNormalization", "Relu", "Clip"} & set(convolutions)
    mixed = optimized(files["Mixed"][1] / ONNX, tmp_path / "b.onnx")
    assert mixed["QLinearConv"] == 2
    assert mixed["MatMulIntegerToFloat"] + mixed["QGemm"] == 6
    assert not {"Conv", "MatMul", "Gemm", "FusedMatMul"} & set(mixed)
    assert mixed["ConvTranspose"] == 1


def test_the_spec_says_what_runs_as_integers(
    models: dict[str, Built], files: dict[str, tuple[Built, Path]]
) -> None:
    file, folder = files["Mixed"]
    counts = file.spec.kwargs["integers"]
    assert (counts["ops"], counts["rounded"]) == (10, 8)
    assert sum(counts["kernels"].values()) == 8
    assert isinstance(file.module, OnnxNetwork)
    assert bytes(file.module.file.tolist()) == (folder / ONNX).read_bytes()
    net = models["Mixed"].module
    assert parameters(file.module) == parameters(net)
    assert isinstance(net, QuantizedNetwork)
    one = {"images": images(1)}
    assert macs(file.module, one) == macs(net.net, one)


def test_the_same_seed_gives_the_same_bytes(
    models: dict[str, Built], files: dict[str, tuple[Built, Path]], tmp_path: Path
) -> None:
    converted(models["Residual"], tmp_path / "again", ("map", "logits"), tolerance=float("inf"))
    assert path_digest(tmp_path / "again") == path_digest(files["Residual"][1])


def test_other_parts_stay_floats(models: dict[str, Built], tmp_path: Path) -> None:
    built = models["Mixed"]
    found = converted(built, tmp_path / "x", ("logits",), parts=("up", "down"))
    assert found.spec.kwargs["integers"]["rounded"] == 2
    assert sum(found.spec.kwargs["integers"]["kernels"].values()) == 2
    module = built.module
    assert isinstance(module, QuantizedNetwork)
    # two rounded layers are nearer to the floats than all of them
    exact = outputs_of(module.net)["logits"]
    two, all_ = (outputs_of(one)["logits"] for one in (found.module, module))
    assert 0 < gap(two, exact) < gap(all_, exact)
    with pytest.raises(UnknownName, match="unknown part 'upp'"):
        converted(built, tmp_path / "y", ("logits",), parts=("upp",))


def test_what_stays_a_float_is_not_judged(models: dict[str, Built], tmp_path: Path) -> None:
    """A scale that makes the rounded network useless, of a layer that the file leaves in floats."""
    module = copy.deepcopy(models["Mixed"].module)
    assert isinstance(module, QuantizedNetwork)
    module.get_buffer("activation_0").fill_(1000.0)
    built = Built(spec=models["Mixed"].spec, module=module)
    found = converted(built, tmp_path / "x", ("logits",), parts=("up", "down"))
    exact = outputs_of(module.net)["logits"]
    assert gap(outputs_of(found.module)["logits"], exact) < 0.1
    assert gap(outputs_of(module)["logits"], exact) > 0.2  # more than is allowed
    with pytest.raises(ContractError, match="'logits' is off"):
        converted(built, tmp_path / "y", ("logits",), parts=("first",), tolerance=1e-9)


def test_what_cannot_be_used_is_named(models: dict[str, Built], tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"samples must be >= 1 \(got 0\)"):
        ToIntegers(samples=0)
    with pytest.raises(BadSetting, match=r"opset must be >= 17 \(got 9\)"):
        ToIntegers(opset=9)
    with pytest.raises(BadRecipe, match="needs the ports 'student' and 'data'"):
        ToIntegers()({"data": DATA}, tmp_path / "a", work=Work())
    module = models["Mixed"].module
    assert isinstance(module, QuantizedNetwork)
    floats = Built(spec=models["Mixed"].spec, module=module.net)
    with pytest.raises(BadRecipe, match="'student' is a Mixed; make its scales with Quantize"):
        converted(floats, tmp_path / "b", ("logits",))
    four = QuantizedNetwork(module.net, bits=4, ops=module.ops)
    with pytest.raises(BadSetting, match="'student' is of 4 bits, ONNX Runtime computes with 8"):
        converted(Built(spec=floats.spec, module=four), tmp_path / "c", ("logits",))
    with pytest.raises(ContractError, match="'logits' is off the rounded network's by"):
        converted(models["Mixed"], tmp_path / "d", ("logits",), tolerance=1e-6)
    assert not (tmp_path / "d").exists()
