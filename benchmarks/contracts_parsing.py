"""How much of real Solidity the grammar knows: ERROR nodes by compiler version.

    uv run python benchmarks/contracts_parsing.py [--data data/smart-contracts]

Every contract of contracts.parquet and every .sol file below sol-samples/ is parsed. A version is
the first that the file's pragma names, "none" without one. The record counts files, files in which
the grammar met an ERROR or MISSING node, and the functions that were found all the same, those with
such a node inside counted apart: docs/results/contracts-parsing/contracts-parsing.json.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from grids import guarded
from rounds import write

from stillhouse.environment import environment
from stillhouse.errors import MissingData
from stillhouse_contracts.formats import SOLIDITY, read_solidity
from stillhouse_contracts.solidity import parse

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"0\.\d+")
COUNTS = ("files", "files_with_errors", "functions", "functions_with_errors")


def sources(data: Path) -> Iterator[tuple[str, str]]:
    """Each text with the set that it is of. Raises MissingData."""
    import pyarrow.parquet as pq

    table, folder = data / "contracts.parquet", data / "sol-samples"
    for there in (table, folder):
        if not there.exists():
            raise MissingData(f"{there} not found; give a folder that has it (--data)")
    rows = pq.read_table(table, columns=["dataset", "source"]).to_pylist()
    yield from ((row["dataset"], row["source"]) for row in rows)
    for file in sorted(folder.rglob(f"*{SOLIDITY}")):
        yield folder.name, read_solidity(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "smart-contracts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "contracts-parsing")
    options = parser.parse_args()
    versions: dict[str, Counter[str]] = {}
    sets: dict[str, Counter[str]] = {}
    for name, source in sources(options.data):
        parsed = parse(source)
        version = VERSION.search(parsed.pragma)
        found = {
            "files": 1,
            "files_with_errors": int(bool(parsed.error_lines)),
            "functions": len(parsed.fragments),
            "functions_with_errors": sum(each.error for each in parsed.fragments),
        }
        versions.setdefault(version[0] if version else "none", Counter()).update(found)
        sets.setdefault(name, Counter()).update(found)
    record = {
        "by_version": {key: dict(versions[key]) for key in sorted(versions)},
        "by_set": {key: dict(sets[key]) for key in sorted(sets)},
        "all": {count: sum(own[count] for own in versions.values()) for count in COUNTS},
        "environment": environment("cpu"),
    }
    write(options.out / "contracts-parsing.json", record)
    for key in sorted(versions):
        own = versions[key]
        share = own["files_with_errors"] / own["files"]
        print(f"{key:<6}{own['files']:>6} files, {100 * share:.1f} % with errors")


if __name__ == "__main__":
    guarded(main)
