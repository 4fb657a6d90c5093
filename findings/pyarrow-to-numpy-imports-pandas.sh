#!/usr/bin/env bash
# pyarrow 26.0.1 with pandas 3.1.1 installed: a view of a column of integers by
# `to_numpy(zero_copy_only=True)` imports pandas, though nothing of pandas is used: hundreds of
# modules and most of a second in every process that reads shards, each worker of a loader too.
# The same numbers by numpy.frombuffer of the column's buffer import nothing.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
python="$folder/env/bin/python"; file="$folder/numbers.arrow"
"$python" - "$file" <<'PY'
import sys
import pyarrow as pa

batch = pa.record_batch([pa.array([3, 1, 2])], names=["n"])
with pa.OSFile(sys.argv[1], "wb") as sink, pa.ipc.new_file(sink, batch.schema) as out:
    out.write_batch(batch)
PY
read_by() {
    "$python" - "$file" "$1" <<'PY'
import sys
import numpy as np
import pyarrow as pa

column = pa.ipc.open_file(pa.memory_map(sys.argv[1])).get_batch(0).column(0)
before = len(sys.modules)
if sys.argv[2] == "to_numpy":
    found = column.to_numpy(zero_copy_only=True)
else:
    found = np.frombuffer(column.buffers()[1], np.int64, count=len(column))
assert found.tolist() == [3, 1, 2]
print("pandas" in sys.modules, len(sys.modules) - before > 100)
PY
}
by_arrow="$(read_by to_numpy)"; by_numpy="$(read_by frombuffer)"
echo "pandas imported, and more than 100 modules: to_numpy $by_arrow, frombuffer $by_numpy"
[ "$by_arrow" = "True True" ]
[ "$by_numpy" = "False False" ]
