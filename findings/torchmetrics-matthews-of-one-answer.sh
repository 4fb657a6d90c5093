#!/usr/bin/env bash
# torchmetrics 1.9.0: Matthews' correlation of a classifier that gives all rows one answer is not
# 0 but depends on the share of labels it meets: +0.18 where five of eight labels are that class,
# -0.18 where three are. The same rows with a third class declared that nobody uses give 0, as
# scikit-learn and GLUE's scorer do for both. CoLA's students with few labels often give one
# answer, and a table of them would rank by this number.
# Expected: 0, as no answer was informed by a row. Seen: 0.1826, -0.1826; 0 with num_classes=3.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.8.0
"$folder/env/bin/python" - <<'PY'
import torch
from sklearn.metrics import matthews_corrcoef
from torchmetrics.functional.classification import multiclass_matthews_corrcoef as measured

found = []
for right in (5, 3):
    labels = torch.tensor([1] * right + [0] * (8 - right))
    answers = torch.ones(8, dtype=torch.long)
    two, three = (float(measured(answers, labels, num_classes=n)) for n in (2, 3))
    found.append((round(two, 4), three, matthews_corrcoef(labels, answers)))
print("two classes, three classes, scikit-learn:", found)
assert found == [(0.1826, 0.0, 0.0), (-0.1826, 0.0, 0.0)], found
PY
