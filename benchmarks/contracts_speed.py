"""Functions a second of a detector, from Solidity source to findings, on one core.

    uv run python benchmarks/contracts_speed.py STUDENT CONTRACTS [--teacher FOLDER] [--rounds 5]

STUDENT is the folder export/model of a finished run (its ONNX file runs in ONNX Runtime, one
thread), CONTRACTS a folder of .sol files. Each round, in one process, does what `predict` does from
the files to the findings, and its parts alone: parsing, tokens, the network on what is no copy of
another function; and the teacher on the same tokens (by torch, one thread), all in turns, so that
they meet the same machine. Medians over the rounds are printed as JSON, in processor seconds, and
written to docs/results/contracts-speed/ with the machine's load. Without --teacher, a fresh network
of the default size stands for it: weights play no part in the time.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rounds import write

from stillhouse.artifact import load_model
from stillhouse.environment import environment
from stillhouse.files import each_file
from stillhouse.quantize.onnx_network import ONNX, load_onnx
from stillhouse_contracts.excerpts import distinct, rows_of_tokens
from stillhouse_contracts.formats import SOLIDITY, read_solidity
from stillhouse_contracts.models import model
from stillhouse_contracts.predict import BATCH, predict, shares
from stillhouse_contracts.solidity import parse
from stillhouse_contracts.usage import detected_by

ROOT = Path(__file__).resolve().parents[1]
TEACHER_ROWS = 64  # of the teacher, whose time is scaled to all functions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("contracts", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="contracts-speed", help="of the record")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "contracts-speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = measured(given.student, given.contracts, given.teacher, given.rounds)
    print(json.dumps(record, indent=1))
    write(given.out / f"{given.name}.json", record)


def measured(
    student: Path, contracts: Path, teacher: Path | None, rounds: int
) -> Mapping[str, Any]:  # Any: JSON values
    built = load_onnx(student / ONNX)
    detected = detected_by(built.spec)
    assert detected is not None, f"{student}: no detector"
    types, length = detected
    if teacher is None:
        network = model("af-teacher", types=types, length=length, vectors=600).new().eval()
    else:
        network = load_model(teacher).module
    files = list(each_file([contracts], {SOLIDITY}, kind="contract"))
    sources = [read_solidity(file) for file in files]
    parts = ("predict", "parse", "tokens", "student", "teacher")
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    functions, copies = 0, 1.0
    for _ in range(rounds):
        _timed(seconds["predict"], predict, built, [contracts])
        codes = _timed(seconds["parse"], _codes, sources)
        functions = len(codes)
        rows = _timed(seconds["tokens"], rows_of_tokens, codes, length)
        _timed(seconds["student"], shares, built, rows)
        own = distinct(rows)[0]
        copies = functions / len(own)
        some = torch.from_numpy(own[:: max(1, len(own) // TEACHER_ROWS)])
        _timed(seconds["teacher"], _by_torch, network, some)
        seconds["teacher"][-1] *= len(own) / len(some)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    taught = middle["predict"] - middle["student"] + middle["teacher"]
    return {
        "files": len(files),
        "functions": functions,
        "functions_of_a_distinct_one": round(copies, 2),
        "functions_per_second": {name: round(functions / each) for name, each in middle.items()},
        "teacher_over_student": round(middle["teacher"] / middle["student"], 1),
        "teacher_over_student_from_source": round(taught / middle["predict"], 1),
        "rounds": rounds,
        "load": os.getloadavg()[1],
        "environment": environment("cpu"),
    }


def _codes(sources: list[str]) -> list[str]:
    return [each.code for source in sources for each in parse(source).fragments]


def _timed(into: list[float], function: Callable[..., Any], *given: Any) -> Any:
    """What the function gives; its processor seconds go into the list. Any: as it has them."""
    start = time.process_time()
    found = function(*given)
    into.append(time.process_time() - start)
    return found


def _by_torch(network: torch.nn.Module, rows: torch.Tensor) -> None:
    with torch.no_grad():
        for part in rows.split(BATCH):
            network({"tokens": part})


if __name__ == "__main__":
    main()
