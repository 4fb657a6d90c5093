# `just` is on PyPI as rust-just; it is in the dev group: `uv run just check`

set shell := ["bash", "-euo", "pipefail", "-c"]

# what must pass before a push; under 3 minutes (the domain suites run in `just test`)
check:
    uv run ruff format --check
    uv run ruff check
    uv run pyright
    uv run lint-imports
    uv run stillhouse flow dvc --check
    uv run pytest -n 2 --deselect plugins -k "not test_domain"

# format and fix what can be fixed
fix:
    uv run ruff format
    uv run ruff check --fix

test *args:
    uv run pytest {{ args }}

# tests over 10 seconds
slow:
    uv run pytest -m slow -n 1

# tests on the real data of data/
data:
    uv run pytest -m "data and not slow" -n 1

docs:
    uv run --group docs mkdocs serve --dev-addr 127.0.0.1:8000
