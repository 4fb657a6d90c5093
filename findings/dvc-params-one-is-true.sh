#!/usr/bin/env bash
# dvc 3.67.1: a parameter that changes from 1 to true, or to 1.0, is no change for `dvc status` and
# `dvc repro`: values are compared as Python compares them. A stage that reads the parameter (here:
# prints its type) would do something else, but its old output is kept.
# Expected: the stage runs again. Seen: "Data and pipelines are up to date."
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" dvc==3.67.1 "pygtrie<2.7" pyyaml
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project"; cd "$folder/project"
dvc init --no-scm --quiet
echo 'value: 1' > params.yaml
cat > dvc.yaml <<'YAML'
stages:
  show:
    cmd: python -c "import yaml; print(type(yaml.safe_load(open('params.yaml'))['value']).__name__)" > out.txt
    params: [value]
    outs: [out.txt]
YAML
dvc repro --quiet
for value in true 1.0; do
    echo "value: $value" > params.yaml
    status="$(dvc status)"
    dvc repro --quiet
    echo "dvc $(dvc --version): value: 1 -> $value: $status; out.txt says $(cat out.txt)"
    [ "$status" = "Data and pipelines are up to date." ]
    [ "$(cat out.txt)" = int ]
done
echo 'value: 2' > params.yaml
status="$(dvc status)"
grep -q value <<< "$status"  # a real change is seen
