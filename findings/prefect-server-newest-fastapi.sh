#!/usr/bin/env bash
# prefect 3.8.8 and fastapi 0.165.0, which an installer puts beside it (prefect requires
# fastapi<1.0.0,>=0.139.0): the server of Prefect does not start. Its own module gives Body() the
# argument min_items, which FastAPI no longer takes, so that importing the API ends in a TypeError.
# Clients and flows import as ever: the first to notice is `prefect server start`, or a flow that
# waits for a server of its own.
# Expected: an upper end that holds. Seen: TypeError; with fastapi 0.150.0 none.
set -euo pipefail
folder="$(mktemp -d)"; trap 'rm -rf "$folder"' EXIT
export PREFECT_HOME="$folder/home" DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env/bin/python" prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.165.0
required="$("$folder/env/bin/python" -c 'from importlib.metadata import requires; print([r for r in requires("prefect") if r.startswith("fastapi")][0])')"
serve() { "$folder/env/bin/python" -c 'from prefect.server.api.server import create_app' 2>&1 | tail -n 1; }
newest="$(serve || true)"
uv pip install --quiet --python "$folder/env/bin/python" fastapi==0.150.0
older="$(serve)"
echo "prefect 3.8.8 requires $required; fastapi 0.165.0: '$newest'; fastapi 0.150.0: '${older:-starts}'"
[ "$required" = "fastapi<1.0.0,>=0.139.0" ]
[ "$newest" = "TypeError: Body() got an unexpected keyword argument 'min_items'" ]
[ -z "$older" ]
"$folder/env/bin/python" -c 'import prefect'  # the rest imports with either
