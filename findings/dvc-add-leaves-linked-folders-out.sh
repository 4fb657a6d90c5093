#!/usr/bin/env bash
# dvc 3.67.1: `dvc add data` of a folder with a link to a folder in it tracks the folder's own files
# and leaves those behind the link out, without a word and with exit code 0 (files that are links
# themselves are tracked). A data version then lacks a whole class. Expected: the files, or an error.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" dvc==3.67.1 "pygtrie<2.7"
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir -p "$folder/elsewhere/dogs" "$folder/project/data/cats"; cd "$folder/project"
echo cat > data/cats/1.txt
echo dog > "$folder/elsewhere/dogs/1.txt"
ln -s "$folder/elsewhere/dogs" data/dogs
ln -s "$folder/elsewhere/dogs/1.txt" data/cats/linked.txt
dvc init --no-scm --quiet
said="$(dvc add data 2>&1)"
rm -rf data
dvc checkout --quiet
found="$(find data -mindepth 1 | sort | tr '\n' ' ')"
echo "dvc $(dvc --version): of data/cats/{1,linked}.txt and data/dogs -> folder, checkout gives: $found"
[ "$found" = "data/cats data/cats/1.txt data/cats/linked.txt " ]
! grep -qi dogs <<< "$said"
