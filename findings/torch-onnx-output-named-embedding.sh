#!/usr/bin/env bash
# torch 2.15.0, onnxscript 0.7.2: torch.onnx.export writes an invalid file where an output's name is
# that of a value within the graph, as "embedding" is of functional.embedding: two nodes then give
# "embedding". The export says nothing; onnx's checker and ONNX Runtime refuse the file. Any other
# name, and the exporter of before (dynamo=False), give a right one.
# Expected: the inner value renamed, as the older exporter does, or an error.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet --python 3.11 env
uv pip install --quiet --python env/bin/python torch==2.15.0 numpy==2.4.6 onnx==1.23.2 \
    onnxscript==0.7.2 onnxruntime==1.32.0
env/bin/python - <<'PY' 2>/dev/null
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).reshape(4, 3))
        self.last = nn.Linear(3, 3)

    def forward(self, numbers):
        return self.last(functional.embedding(numbers, self.table))


model, numbers = Words().eval(), torch.tensor([1, 2])


def exported(name, *, dynamo):
    torch.onnx.export(model, (numbers,), "a.onnx", input_names=["numbers"],
                      output_names=[name], dynamo=dynamo, verbose=False)
    outputs = [out for node in onnx.load("a.onnx").graph.node for out in node.output]
    try:
        found = onnxruntime.InferenceSession("a.onnx").run(None, {"numbers": numbers.numpy()})[0]
    except Exception as error:
        return outputs, str(error).strip().split("Error: ")[-1]
    return outputs, float(abs(torch.from_numpy(found) - model(numbers)).max()) < 1e-5


twice, error = exported("embedding", dynamo=True)
_, other = exported("words", dynamo=True)
_, older = exported("embedding", dynamo=False)
print(f"torch {torch.__version__}: nodes give {twice}; ONNX Runtime {onnxruntime.__version__}: "
      f"{error}; named otherwise right: {other}; by the older exporter right: {older}")
held = twice.count("embedding") == 2 and "Duplicate" in str(error)
raise SystemExit(0 if held and other is True and older is True else 1)
PY
