"""Seconds of `stillhouse flow run` at tiny, against another commit of this repository.

Claims: at most 0.4 of commit 3c11541 where all 8 stages of vision/distill run, at most 0.3 where
they have nothing to do. Each round works in clones of its own with nothing cached before it; the
two commits alternate in who begins. Wall time is what the claims are about; processor time, of the
flow with all that it started, is beside it, for a machine that others use too. The other commit:

    git worktree add --detach ../base 3c11541 && (cd ../base && uv sync)
    .venv/bin/python benchmarks/flow_warm.py --base ../base

Exits with 1 if a claim does not hold.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.environment import environment

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "vision/distill@tiny"
GOALS = {"stages run": 0.4, "nothing to do": 0.3}
IMPORTS = "import torch, torchvision, prefect, dvc.repo, stillhouse_flows.flow, stillhouse_vision"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time flows against another commit.")
    parser.add_argument("--base", type=Path, required=True, help="A checkout with its .venv.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/flow-warm"))
    options = parser.parse_args()
    checkouts = {"base": options.base.resolve(), "new": ROOT}
    for checkout in checkouts.values():
        subprocess.run([checkout / ".venv/bin/python", "-c", IMPORTS], check=True)
    rounds = [one_round(number, checkouts) for number in range(options.rounds)]
    ratios = {case: _ratio(rounds, case, "seconds") for case in GOALS}
    medians = {
        case: {name: _median([r[case][name]["seconds"] for r in rounds]) for name in checkouts}
        for case in GOALS
    }
    result = {
        "claim": "; ".join(f"{case}: at most {goal} of base" for case, goal in GOALS.items()),
        "recipe": RECIPE,
        "commits": {name: _commit(checkout) for name, checkout in checkouts.items()},
        "median_seconds": medians,
        "median_ratio": ratios,
        "median_ratio_of_processor_time": {c: _ratio(rounds, c, "cpu_seconds") for c in GOALS},
        "rounds": rounds,
        "environment": environment("cpu"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "flow-warm.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for case, found in medians.items():
        times = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
        print(f"{case:<16}{times}  ratio {ratios[case]} (goal {GOALS[case]})")
    print(file)
    return 0 if all(ratios[case] <= goal for case, goal in GOALS.items()) else 1


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def _ratio(rounds: Sequence[Any], case: str, what: str) -> float:  # Any: JSON
    """The median of each round's ratio: both of a pair saw the same machine."""
    return _median([r[case]["new"][what] / r[case]["base"][what] for r in rounds])


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def one_round(number: int, checkouts: dict[str, Path]) -> dict[str, Any]:  # Any: JSON
    """Case -> commit -> what its run took."""
    names = list(checkouts) if number % 2 == 0 else list(reversed(checkouts))
    found: dict[str, Any] = {case: {} for case in GOALS}
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        for name in names:
            command = ["git", "clone", "--quiet", checkouts[name], Path(scratch, name)]
            subprocess.run(command, check=True)
        for case in GOALS:  # the second run finds all that the first has left
            for name in names:
                found[case][name] = flow(Path(scratch), name, checkouts[name])
    return found


def flow(place: Path, name: str, checkout: Path) -> dict[str, float]:
    """Seconds, and processor seconds, of a flow run in the clone `name`."""
    command = [str(checkout / ".venv/bin/stillhouse"), "flow", "run", RECIPE]
    env = dict(os.environ) | {
        "STILLHOUSE_HOME": str(place / f"home-{name}"),
        "STILLHOUSE_ROOT": str(place / name),
    }
    load, before, started = os.getloadavg()[0], os.times(), time.monotonic()
    subprocess.run(command, cwd=place / name, env=env, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.monotonic() - started, os.times()
    used = after.children_user + after.children_system
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used - before.children_user - before.children_system, 3),
        "load_average_before": round(load, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
