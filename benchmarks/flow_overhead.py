"""What a flow costs beside its stages: seconds a stage, to start, and with nothing to run.

    .venv/bin/python benchmarks/flow_overhead.py [--rounds 3] [--out docs/results/flow-overhead]

Claim: a flow adds at most 2 s a stage to `stillhouse stage` run alone, and a run whose stages DVC
has all takes at most 15 s (vision/distill tiny has 8 stages; the claim is for 6). Each round works
in clones of its own, with nothing cached before it. Exits with 1 if not.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.environment import environment

ROOT = Path(__file__).resolve().parents[1]
STILLHOUSE = str(Path(sys.executable).with_name("stillhouse"))
RECIPE = "vision/distill@tiny"
GOAL_STAGE, GOAL_NOTHING = 2.0, 15.0
ENDED = re.compile(r"^ +\d+/\d+ +(\S+) +(ran|restored|unchanged) +([\d.]+) s$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results/flow-overhead"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rounds = [one_round(number) for number in range(options.rounds)]
    medians = {
        "stage alone": _median([s for r in rounds for s in r["alone"].values()]),
        "stage in a flow": _median([s for r in rounds for s in r["flow"].values()]),
        "a flow adds, a stage": _median(
            [r["flow"][name] - r["alone"][name] for r in rounds for name in r["alone"]]
        ),
        "nothing to run, a stage": _median([s for r in rounds for s in r["nothing"].values()]),
        "whole run": _median([r["seconds"]["flow"] for r in rounds]),
        "whole run, nothing to run": _median([r["seconds"]["nothing"] for r in rounds]),
        "the same with a running server": _median([r["seconds"]["server"] for r in rounds]),
        "to the first line": _median([r["first"]["nothing"] for r in rounds]),
        "to the first line with a running server": _median([r["first"]["server"] for r in rounds]),
    }
    result = {
        "claim": f"at most {GOAL_STAGE} s a stage, at most {GOAL_NOTHING} s with nothing to run",
        "recipe": RECIPE,
        "stages": len(rounds[0]["alone"]),
        "load_average_before": round(load, 2),
        "median_seconds": medians,
        "rounds": rounds,
        "environment": environment("cpu"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "flow-overhead.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for name, seconds in medians.items():
        print(f"{name:<42}{seconds:7.2f} s")
    print(file)
    late = medians["whole run, nothing to run"] > GOAL_NOTHING
    return 1 if late or medians["a flow adds, a stage"] > GOAL_STAGE else 0


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def one_round(number: int) -> dict[str, Any]:  # Any: JSON
    """The stages alone, the same in a flow, and twice a flow with nothing to run."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        place = Path(name)
        for project in ("alone", "flow"):
            command = ["git", "clone", "--quiet", str(ROOT), str(place / project)]
            subprocess.run(command, check=True)
        first, seconds = dict[str, float](), dict[str, float]()
        runs = {
            "alone": lambda: stages_alone(place),
            "flow": lambda: flow(place, "flow", first, seconds, {}),
        }
        # neither is always the one that warms the machine up
        order = ("alone", "flow") if number % 2 == 0 else ("flow", "alone")
        found = {name: runs[name]() for name in order}
        nothing = flow(place, "nothing", first, seconds, {})
        with server(place) as api:
            flow(place, "server", first, seconds, {"PREFECT_API_URL": api})
        return {**found, "nothing": nothing, "first": first, "seconds": seconds}


def _environment(place: Path, project: str) -> dict[str, str]:
    return dict(os.environ) | {
        "STILLHOUSE_HOME": str(place / f"home-{project}"),
        "STILLHOUSE_ROOT": str(place / project),
    }


def stages_alone(place: Path) -> dict[str, float]:
    """Stage -> seconds of `stillhouse stage`."""
    env = _environment(place, "alone")
    show = subprocess.run(
        [sys.executable, "-c", LISTING], env=env, capture_output=True, text=True, check=True
    )
    spent: dict[str, float] = {}
    for stage in show.stdout.split():
        started = time.monotonic()
        command = [STILLHOUSE, "stage", RECIPE, stage]
        subprocess.run(command, env=env, check=True, capture_output=True)
        spent[stage] = round(time.monotonic() - started, 3)
    return spent


LISTING = (
    "from stillhouse.settings import make_recipe, make_settings as s; "
    "print(*[g.name for g in make_recipe('vision/distill', s('vision/distill', 'tiny')).stages])"
)


def flow(
    place: Path,
    label: str,
    first: dict[str, float],
    seconds: dict[str, float],
    more: Mapping[str, str],
) -> dict[str, float]:
    """Stage -> seconds of its task in `stillhouse flow run`."""
    env, started, lines = _environment(place, "flow") | dict(more), time.monotonic(), list[str]()
    command = [STILLHOUSE, "flow", "run", RECIPE]
    with subprocess.Popen(
        command, cwd=place / "flow", env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            first.setdefault(label, round(time.monotonic() - started, 3))
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    seconds[label] = round(time.monotonic() - started, 3)
    return {name: float(spent) for name, _, spent in ENDED.findall("".join(lines))}


@contextlib.contextmanager
def server(place: Path) -> Generator[str]:
    """A Prefect server that is there before the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = _environment(place, "flow") | {"PREFECT_HOME": str(place / "server")}
    (place / "server").mkdir()
    process = subprocess.Popen([*SERVE, str(port)], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{api}/health", timeout=5):
                break
            time.sleep(0.2)
        yield api
    finally:
        process.terminate()
        process.wait()


SERVE = [sys.executable, "-m", "stillhouse_flows.server.serving", "127.0.0.1"]

if __name__ == "__main__":
    sys.exit(main())
