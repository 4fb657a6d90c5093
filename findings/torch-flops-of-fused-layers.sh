#!/usr/bin/env bash
# torch 2.15.0: FlopCounterMode gives 0 flops for nn.TransformerEncoderLayer in eval mode (its fused
# fast path, which is on by default) and for nn.LSTM on the CPU (oneDNN's kernel), without a warning.
# The same layer in training mode, the same LSTM without oneDNN, and a GRU are counted.
# Expected: the same count whatever kernel computes it, or a word on what was left out.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet --python 3.11 env
uv pip install --quiet --python env/bin/python torch==2.15.0 numpy==2.4.6
env/bin/python - <<'PY' 2>/dev/null
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(module, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


x = torch.randn(3, 5, 8)
layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
training, evaluation = flops(layer.train(), x), flops(layer.eval(), x)
lstm = nn.LSTM(8, 8, batch_first=True).eval()
fused = flops(lstm, x)
with torch.backends.mkldnn.flags(enabled=False):
    plain = flops(lstm, x)
gru = flops(nn.GRU(8, 8, batch_first=True).eval(), x)
print(f"torch {torch.__version__}: encoder layer {training} in training, {evaluation} in eval; "
      f"LSTM {fused}, without oneDNN {plain}; GRU {gru}")
raise SystemExit(0 if evaluation == fused == 0 and min(training, plain, gru) > 0 else 1)
PY
