"""Functions a second of a detector, from Solidity source to findings, on one core.

    uv run python benchmarks/contracts_speed.py STUDENT CONTRACTS [--teacher FOLDER] [--rounds 5]

STUDENT is the folder export/model of a finished run (its ONNX file runs in ONNX Runtime, one
thread), CONTRACTS a folder of .sol files. Each round does all of it in one process: parsing,
normalising and cutting, the network on what is no copy of another function (as `predict` does it),
and the teacher on the same tokens (by torch, one thread) in turns, so that both meet the same
machine; medians over the rounds are printed as JSON, in processor seconds, and written to
docs/results/contracts-speed/. Without --teacher, a fresh network of the default size stands for it:
weights play no part in the time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rounds import write

from stillhouse.artifact import load_model
from stillhouse.environment import environment
from stillhouse.files import each_file
from stillhouse_contracts.excerpts import distinct, rows_of_tokens
from stillhouse_contracts.formats import SOLIDITY, read_solidity
from stillhouse_contracts.models import model
from stillhouse_contracts.solidity import parse
from stillhouse_contracts.usage import detected_by

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32  # as `predict` has it
TEACHER_ROWS = 64  # of the teacher, whose time is scaled to all functions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("contracts", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "contracts-speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = measured(given.student, given.contracts, given.teacher, given.rounds)
    print(json.dumps(record, indent=1))
    write(given.out / "contracts-speed.json", record)


def measured(
    student: Path, contracts: Path, teacher: Path | None, rounds: int
) -> Mapping[str, Any]:  # Any: JSON values
    built = load_model(student)
    detected = detected_by(built.spec)
    assert detected is not None, f"{student}: no detector"
    types, length = detected
    session = _session(student / "model.onnx")
    if teacher is None:
        network = model("af-teacher", types=types, length=length, vectors=600).new().eval()
    else:
        network = load_model(teacher).module
    files = list(each_file([contracts], {SOLIDITY}, kind="contract"))
    sources = [read_solidity(file) for file in files]
    seconds: dict[str, list[float]] = {"parse": [], "tokens": [], "student": [], "teacher": []}
    functions, copies = 0, 1.0
    for _ in range(rounds):
        codes = _timed(seconds["parse"], _codes, sources)
        functions = len(codes)
        rows = _timed(seconds["tokens"], rows_of_tokens, codes, length)
        _timed(seconds["student"], _by_onnx, session, rows)
        own = distinct(rows)[0]
        copies = functions / len(own)
        some = torch.from_numpy(own[:: max(1, len(own) // TEACHER_ROWS)])
        _timed(seconds["teacher"], _by_torch, network, some)
        seconds["teacher"][-1] *= len(own) / len(some)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    whole = middle["parse"] + middle["tokens"] + middle["student"]
    return {
        "files": len(files),
        "functions": functions,
        "functions_of_a_distinct_one": round(copies, 2),
        "functions_per_second": {
            **{name: round(functions / each) for name, each in middle.items()},
            "student from source": round(functions / whole),
        },
        "teacher_over_student": round(middle["teacher"] / middle["student"], 1),
        "teacher_over_student_from_source": round(
            (middle["parse"] + middle["tokens"] + middle["teacher"]) / whole, 1
        ),
        "rounds": rounds,
        "environment": environment("cpu"),
    }


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _codes(sources: list[str]) -> list[str]:
    return [each.code for source in sources for each in parse(source).fragments]


def _timed(into: list[float], function: Callable[..., Any], *given: Any) -> Any:
    """What the function gives; its processor seconds go into the list. Any: as it has them."""
    start = time.process_time()
    found = function(*given)
    into.append(time.process_time() - start)
    return found


def _by_onnx(session: onnxruntime.InferenceSession, rows: NDArray[np.int64]) -> None:
    own, places = distinct(rows)
    parts = [own[first : first + BATCH] for first in range(0, len(own), BATCH)]
    found = [np.asarray(session.run(["logits"], {"tokens": part})[0]) for part in parts]
    np.take(np.concatenate(found), places, axis=0)


def _by_torch(network: torch.nn.Module, rows: torch.Tensor) -> None:
    with torch.no_grad():
        for part in rows.split(BATCH):
            network({"tokens": part})


if __name__ == "__main__":
    main()
