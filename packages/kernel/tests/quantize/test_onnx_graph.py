"""Graphs written by hand: the same numbers after folding, and the roundings that are put in."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import CheckerPass

from stillhouse.quantize.onnx_graph import (
    fold,
    ranged,
    round_outputs,
    rounding,
    store_biases,
)

FLOATS = npt.NDArray[np.float32]
# three channels: multiplied by a positive number, by a negative one, and by none
NORMED = """
<ir_version: 9, opset_import: ["" : 18]>
graph (float[N, 1, 3, 3] x) => (float[N, 3, 3, 3] y)
<float xs = {0.05}, uint8 xz = {100},
 float[3] ws = {0.01, 0.02, 0.03}, int8[3] wz = {0, 0, 0},
 float[3, 1, 1, 1] w = {0.5, -0.7, 0.304}, float[3] b = {0.2, -0.4, 0.6},
 float[3] gain = {2, -3, 0}, float[3] shift = {1, 2, 3},
 float[3] mean = {0.1, 0.2, 0.3}, float[3] variance = {0.5, 1, 2}>
{
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear <axis = 0> (w, ws, wz)
  wd = DequantizeLinear <axis = 0> (wq, ws, wz)
  c = Conv(xd, wd, b)
  y = BatchNormalization <epsilon = 0.25> (c, gain, shift, mean, variance)
}
"""
# the second channel's scales are so small that its bias has no int32 number of them
TINY = """
<ir_version: 9, opset_import: ["" : 18]>
graph (float[N, 1, 3, 3] x) => (float[N, 2, 3, 3] y)
<float xs = {0.05}, uint8 xz = {100}, float[2] ws = {0.01, 1e-12}, int8[2] wz = {0, 0},
 float[2, 1, 1, 1] w = {0.5, 0}, float[2] b = {0.2, -4}>
{
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear <axis = 0> (w, ws, wz)
  wd = DequantizeLinear <axis = 0> (wq, ws, wz)
  y = Conv(xd, wd, b)
}
"""
# a layer, its weight turned as torch's exporter turns it
LAYER = """
<ir_version: 9, opset_import: ["" : 18]>
graph (float[N, 3] x) => (float[N, 2] y)
<float xs = {0.05}, uint8 xz = {128}, float ws = {0.01}, int8 wz = {0},
 float[2, 3] w = {0.11, 0.22, 0.33, -0.44, 2, -2}>
{
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear(w, ws, wz)
  wd = DequantizeLinear(wq, ws, wz)
  t = Transpose <perm = [1, 0]> (wd)
  y = MatMul(xd, t)
}
"""
# two readers of what is left between 0 and 6, and a sum
CLIproductsED = """
<ir_version: 9, opset_import: ["" : 18]>
graph (float[N, 1, 3, 3] x) => (float[N, 1, 3, 3] y, float[N, 1, 3, 3] s)
<float xs = {0.05}, uint8 xz = {100}, float ws = {0.01}, int8 wz = {0},
 float[1, 1, 1, 1] w = {0.9}, float low = {0}, float high = {6},
 float as = {0.03}, uint8 az = {0}, float bs = {0.02}, uint8 bz = {0}>
{
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear(w, ws, wz)
  wd = DequantizeLinear(wq, ws, wz)
  c = Conv(xd, wd)
  r = Clip(c, low, high)
  aq = QuantizeLinear(r, as, az)
  ad = DequantizeLinear(aq, as, az)
  y = Conv(ad, wd)
  bq = QuantizeLinear(r, bs, bz)
  bd = DequantizeLinear(bq, bs, bz)
  p = Conv(bd, wd)
  s = Add(r, p)
}
"""


# what is read behind a ReLU6 with a scale that reaches beyond 6, by an op with a large bias
BIASED = """
<ir_version: 9, opset_import: ["" : 18]>
graph (float[N, 1, 3, 3] x) => (float[N, 2, 3, 3] y)
<float xs = {0.05}, uint8 xz = {100}, float ws = {0.01}, int8 wz = {0},
 float[1, 1, 1, 1] w = {0.9}, float[1] b = {0.5}, float low = {0}, float high = {6},
 float as = {0.05}, uint8 az = {0}, float[2] vs = {0.01, 0.02}, int8[2] vz = {0, 0},
 float[2, 1, 1, 1] v = {0.5, -1.2}, float[2] c = {40, -70}>
{
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear(w, ws, wz)
  wd = DequantizeLinear(wq, ws, wz)
  p = Conv(xd, wd, b)
  r = Clip(p, low, high)
  aq = QuantizeLinear(r, as, az)
  ad = DequantizeLinear(aq, as, az)
  vq = QuantizeLinear <axis = 0> (v, vs, vz)
  vd = DequantizeLinear <axis = 0> (vq, vs, vz)
  y = Conv(ad, vd, c)
}
"""


def run(model: ir.Model, x: FLOATS, *, optimized: bool = False) -> list[FLOATS]:
    options, level = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    content = ir.to_proto(CheckerPass()(model).model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, {"x": x})]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("text", [NORMED, TINY])
def test_folding_changes_no_number_beyond_a_scale_of_the_bias(text: str):
    x = np.random.default_rng(0).normal(0, 3, (4, 1, 3, 3)).astype(np.float32)
    model = ir.from_onnx_text(text)
    (before,) = run(model, x)
    fold(model.graph)
    store_biases(model.graph)
    (after,) = run(model, x)
    np.testing.assert_allclose(after, before, atol=2e-3, rtol=1e-6)
    assert kinds(model) == [
        *("QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv")
    ]
    stored = {value.dtype for value in model.graph.initializers.values()}
    assert {ir.DataType.INT8, ir.DataType.INT32} <= stored
    assert "w" not in model.graph.initializers  # the floats are gone


def test_a_norm_multiplies_the_scales_and_turns_the_signs():
    model = ir.from_onnx_text(NORMED)
    fold(model.graph)
    conv = model.graph[-1]
    assert conv.op_type == "Conv"
    back = conv.inputs[1].producer()  # pyright: ignore[reportOptionalMemberAccess]
    assert back is not None
    found = rounding(back)
    assert found is not None
    # by hand: |gain| / sqrt(variance + 0.25), a channel of zeros with the scale one
    factors = np.array([2 / 0.75**0.5, 3 / 1.25**0.5])
    np.testing.assert_allclose(found[0], [*(np.array([0.01, 0.02]) * factors), 1], rtol=1e-6)
    value = back.inputs[0]
    assert value is not None
    assert value.const_value is not None
    assert value.const_value.numpy().ravel().tolist() == [50, 35, 0]


def test_a_layers_weight_is_kept_as_it_is_read():
    x = np.random.default_rng(0).normal(0, 2, (4, 3)).astype(np.float32)
    model = ir.from_onnx_text(LAYER)
    (before,) = run(model, x)
    fold(model.graph)
    np.testing.assert_allclose(run(model, x)[0], before, atol=1e-6)
    assert "Transpose" not in kinds(model)
    stored = [v for v in model.graph.initializers.values() if v.name == "w_int8"]
    assert stored[0].const_value is not None
    assert stored[0].const_value.numpy().tolist() == [[11, -44], [22, 127], [33, -128]]


def test_what_two_ops_read_is_rounded_once_and_no_further_than_it_is_cut():
    x = np.random.default_rng(0).normal(0, 3, (4, 1, 3, 3)).astype(np.float32)
    model = ir.from_onnx_text(CLIproductsED)
    before = run(model, x)
    fold(model.graph)
    assert ranged(model.graph) == ["c", "r", "y", "p", "s"]
    ranges = {"c": (-9.0, 9.0), "r": (0.0, 6.0), "y": (0.0, 5.4), "p": (0.0, 5.4), "s": (0.0, 9.0)}
    round_outputs(model.graph, ranges)
    assert [value.name for value in model.graph.outputs] == ["y", "s"]
    scales = [
        found[0].item()
        for node in model.graph
        if node.op_type == "QuantizeLinear" and (found := rounding(node)) is not None
    ]
    # 0.03 x 255 would reach 7.65, where clipping ends at 6; the finer scales are kept
    assert sorted(scales) == pytest.approx([0.02, 5.4 / 255, 5.4 / 255, 6 / 255, 9 / 255, 0.05])
    for found, expected, scale in zip(run(model, x), before, (5.4 / 255, 9 / 255), strict=True):
        assert 0 < np.abs(found - expected).max() < 3 * scale


def test_a_bias_is_stored_in_the_scales_that_its_product_reads_in_the_end():
    x = np.random.default_rng(0).normal(0, 4, (8, 1, 3, 3)).astype(np.float32)
    model = ir.from_onnx_text(BIASED)
    (before,) = run(model, x)
    fold(model.graph)
    round_outputs(model.graph, {"p": (-9.0, 9.0), "r": (0.0, 6.0), "y": (-77.2, 43.0)})
    store_biases(model.graph)
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        scales: list[npt.NDArray[np.float32]] = []
        for value in conv.inputs:
            back = None if value is None else value.producer()
            assert back is not None
            found = back.inputs[1]
            assert found is not None
            assert found.const_value is not None
            scales.append(found.const_value.numpy())
        np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)
    scale = (77.2 + 43) / 255
    # the kernels of integers take a bias's scales for granted: they alone would be off
    for optimized in (False, True):
        (found,) = run(model, x, optimized=optimized)
        assert np.abs(found - before).max() < 1.1 * scale
