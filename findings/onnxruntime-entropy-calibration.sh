#!/usr/bin/env bash
# onnxruntime 1.31.1: quantize_static with CalibrationMethod.Entropy writes the file of
# CalibrationMethod.MinMax, byte for byte. The entropy calibrator is made with 128 bins and 128
# quantized bins, so that the whole range is its only candidate, and quantize_static passes neither
# number on from extra_options. Seen: two equal files, also with num_bins given; Percentile differs.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv -q --python 3.11 env
uv pip install -q --python env/bin/python onnxruntime==1.31.1 onnx==1.22.0 sympy
env/bin/python - <<'PY' 2>/dev/null
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import __version__
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

rng = np.random.default_rng(0)
weight = numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), "w")
value = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [value("x", TensorProto.FLOAT, [64, 8])], [value("y", TensorProto.FLOAT, [64, 8])], [weight],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "a.onnx")
rows = rng.standard_t(2, size=(64, 8)).astype(np.float32)  # long tails: what entropy is for


class Reader(CalibrationDataReader):
    def __init__(self): self.left = [{"x": rows}]
    def get_next(self): return self.left.pop() if self.left else None


def made(method, **extra):
    quantize_static("a.onnx", "b.onnx", Reader(), calibrate_method=method, extra_options=extra)
    return open("b.onnx", "rb").read()


minmax = made(CalibrationMethod.MinMax)
same = made(CalibrationMethod.Entropy) == minmax
more = made(CalibrationMethod.Entropy, num_bins=2048, num_quantized_bins=128) == minmax
other = made(CalibrationMethod.Percentile) != minmax
print(f"onnxruntime {__version__}: Entropy is MinMax's file: {same}; with 2048 bins: {more}; Percentile differs: {other}")
raise SystemExit(0 if same and more and other else 1)
PY
