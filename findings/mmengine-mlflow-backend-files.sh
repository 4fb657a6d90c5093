#!/usr/bin/env bash
# mmengine 0.10.7: MLflowVisBackend without a tracking_uri logs to files below save_dir, its documented default. With
# mlflow 3.17.2 its first add_scalar raises MlflowException, since MLflow's store of files needs an opt-in by now.
# Expected: a scalar is logged. With MLFLOW_ALLOW_FILE_STORE=true it is.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" mmengine==0.10.7 mlflow-skinny==3.17.2 torch==2.13.0 \
    "opencv-python-headless<5" "setuptools<81"
cat > "$folder/log.py" <<'PY'
import sys
from mmengine.visualization import MLflowVisBackend
try:
    MLflowVisBackend(save_dir=sys.argv[1]).add_scalar("loss", 0.5, step=1)
    print("logged")
except Exception as error:
    print(type(error).__name__)
PY
python="$folder/env/bin/python"
refused="$(cd "$folder" && "$python" log.py "$folder/a" 2>/dev/null | tail -1)"
allowed="$(cd "$folder" && MLFLOW_ALLOW_FILE_STORE=true "$python" log.py "$folder/b" 2>/dev/null | tail -1)"
echo "mmengine 0.10.7 with mlflow-skinny 3.17.2: by default $refused, with the opt-in $allowed"
[ "$refused" = "MlflowException" ]
[ "$allowed" = "logged" ]
