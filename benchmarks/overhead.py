"""Claim: `fit` costs no more than 1.05 of a plain loop, and no more than its peers.

    uv run python benchmarks/overhead.py

CPU milliseconds and Python calls an iteration of `stillhouse.engine.fit`, of the bare loop, of
torchdistill and of nvidia-modelopt (KD mode): same weights, batches and formula, one thread, one
process each, in rounds that alternate. The peers live in an environment of their own (.bench/).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import overhead_core as core
import plots
import torch
from overhead_contestants import CHANGED
from rounds import Worker, interleaved, paired, summary, write

from stillhouse.code import code_version

ROOT = Path(__file__).parent.parent
PEERS = ("torchdistill==1.1.5", "nvidia-modelopt==0.47.0", "requests")
NAMES = tuple(CHANGED)
GOAL = 1.05
SAME_AFTER, WARM, CALLS = 50, 100, 64
# steps the training is planned for, of which the rounds see a part: its start-up is in none of them
LONG = 20_000
# in double precision: single precision drifts apart by rounding alone, whoever computes
SAME = 1e-9

Record = Mapping[str, Any]  # Any: JSON


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made on first use."""
    folder = ROOT / ".bench" / "peers"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    torch_pin = f"torch=={torch.__version__.partition('+')[0]}"
    wanted = ["-e", str(ROOT / "packages" / "kernel"), torch_pin, *PEERS]
    if stamp.is_file() and stamp.read_text() == "\n".join(wanted):
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("error: `uv` is not on the PATH; it makes the peers' environment")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([uv, "venv", "--clear", "--python", version, str(folder)], check=True)
    subprocess.run([uv, "pip", "install", "--python", str(python), *wanted], check=True)
    stamp.write_text("\n".join(wanted))
    return python


def start(steps: int, dtype: str) -> list[Worker]:
    script = Path(__file__).with_name("overhead_contestants.py")
    command = [str(peers_python()), str(script)]
    return [Worker(name, [*command, name, str(steps), dtype]) for name in NAMES]


def measure_equal() -> dict[str, Any]:  # Any: JSON
    """Train all in double precision and compare weights and losses with the bare loop's."""
    workers = start(SAME_AFTER + 1, "float64")
    for worker in workers:
        worker.ask("time", SAME_AFTER)
    states = {worker.name: worker.ask("state") for worker in workers}
    for worker in workers:
        worker.close()
    return {"equal": check_equal(states), "environment": states["bare"]["environment"]}


def measure_cost(rounds: int, steps: int) -> dict[str, Any]:  # Any: JSON
    """Time and count all in rounds, in single precision."""
    workers = start(max(LONG, WARM + rounds * steps + CALLS + 1), "float32")
    for worker in workers:
        worker.ask("time", WARM)
    seconds = interleaved(workers, rounds, steps)
    calls = {worker.name: worker.ask("calls", CALLS)["calls"] for worker in workers}
    for worker in workers:
        worker.close()
    return {
        name: {
            "cpu_ms": summary([1000 * s for s in seconds[name]]),
            "cpu_ms_rounds": [1000 * s for s in seconds[name]],
            "ratio_to_bare": summary(paired(seconds[name], seconds["bare"])),
            "python_calls": calls[name],
            "set_away_from_defaults": CHANGED[name],
        }
        for name in NAMES
    }


def check_equal(states: Mapping[str, Record]) -> Record:
    """How far each is from the bare loop; ends the program where they differ."""
    base = torch.tensor(states["bare"]["weights"], dtype=torch.float64)
    found: dict[str, dict[str, float]] = {}
    for name, state in states.items():
        gap = torch.tensor(state["weights"], dtype=torch.float64) - base
        found[name] = {
            "loss": state["loss"],
            "loss_gap": abs(state["loss"] / states["bare"]["loss"] - 1),
            "weights_gap": float(gap.norm() / base.norm()),
        }
        if max(found[name]["loss_gap"], found[name]["weights_gap"]) > SAME:
            raise SystemExit(
                f"error: after {SAME_AFTER} steps '{name}' is not where the bare loop is: "
                f"{found[name]}; the comparison would be unfair"
            )
    return {"after_steps": SAME_AFTER, "dtype": "float64", "contestants": found}


def verdict(contestants: Mapping[str, Record]) -> Record:
    ours = contestants["stillhouse"]
    base = ours["ratio_to_bare"]
    found: dict[str, Any] = {
        "goal": f"time <= {GOAL} of bare; time and calls not above either peer",
        "time_of_bare": f"{spoken(base)}, {placed(base, GOAL)} the goal of {GOAL}",
    }
    for name in ("torchdistill", "modelopt"):
        peer = contestants[name]
        ratio = summary(paired(ours["cpu_ms_rounds"], peer["cpu_ms_rounds"]))
        found[f"ratio_to_{name}"] = ratio
        found[f"time_of_{name}"] = f"{spoken(ratio)}, {placed(ratio, 1.0)} it"
        found[f"calls_not_above_{name}"] = ours["python_calls"] <= peer["python_calls"]
    return found


def spoken(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} [{ratio['median_low']:.3f}, {ratio['median_high']:.3f}]"


def placed(ratio: Mapping[str, float], limit: float) -> str:
    """Where the 95 % interval of a median lies."""
    if ratio["median_high"] <= limit:
        return "below"
    return "above" if ratio["median_low"] > limit else "not told apart from"


def table(record: Record) -> str:
    lines = [f"{'':14}{'CPU ms/iteration':>18}{'of bare':>10}{'Python calls':>15}{'loss':>12}"]
    for name, one in record["contestants"].items():
        loss = record["equal"]["contestants"][name]["loss"]
        time, ratio = one["cpu_ms"]["median"], one["ratio_to_bare"]["median"]
        lines.append(f"{name:14}{time:18.3f}{ratio:10.3f}{one['python_calls']:15.1f}{loss:12.6f}")
    verdicts = record["verdict"].items()
    lines += [f"{name}: {value}" for name, value in verdicts if not name.startswith("ratio")]
    return "\n".join(lines)


def draw(contestants: Mapping[str, Record], path: Path) -> None:
    base = contestants["bare"]["cpu_ms_rounds"]
    drawn = plots.figure(10.5, 2.6)
    left, right = drawn.subplots(1, 2, width_ratios=[3, 2])
    others = {name: one for name, one in contestants.items() if name != "bare"}
    plots.strip(left, _rows(others, base), "CPU time an iteration, of the plain loop")
    # a few rounds hit by other work on the machine must not squeeze the rest
    left.set_xlim(*_range([v for o in others.values() for v in paired(o["cpu_ms_rounds"], base)]))
    left.axvline(1.0, color=plots.THEME.ink, linewidth=1)
    plots.limit(left, GOAL, f"goal {GOAL}")
    calls = [
        plots.Row(
            label=name,
            values=[one["python_calls"]],
            ours=name == "stillhouse",
            note=f"{one['python_calls']:.0f}",
        )
        for name, one in contestants.items()
    ]
    plots.bars(right, calls, "Python calls an iteration")
    plots.save(drawn, path)


def _rows(contestants: Mapping[str, Record], base: Sequence[float]) -> list[plots.Row]:
    return [
        plots.Row(
            label=name,
            values=paired(one["cpu_ms_rounds"], base),
            ours=name == "stillhouse",
            note=spoken(one["ratio_to_bare"]),
        )
        for name, one in contestants.items()
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    edge = 0.25 * (cuts[-1] - cuts[0])
    return min(0.99, cuts[0] - edge), max(GOAL + 0.02, cuts[-1] + edge)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=161)
    parser.add_argument("--steps", type=int, default=15, help="iterations a round")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "overhead")
    given = parser.parse_args()
    record = {
        "claim": "fit costs no more than 1.05 of a plain loop, and no more than its peers",
        "setting": {
            "rounds": given.rounds,
            "iterations_a_round": given.steps,
            "counted": "processor time of the process; Python functions called (sys.setprofile)",
            "formula": "0.1 CE + 0.9 T^2 KL(teacher || student), batchmean, T = 4, teacher eval",
            "networks": f"six residual blocks, widths {core.WIDTHS}, {core.SIDE} px",
            "batch": core.BATCH,
            "threads": 1,
        },
        "code": code_version("stillhouse"),
        **measure_equal(),
        "load_average_before": os.getloadavg(),
        "contestants": measure_cost(given.rounds, given.steps),
        "load_average_after": os.getloadavg(),
    }
    record["verdict"] = verdict(record["contestants"])
    write(given.out / "overhead.json", record)
    draw(record["contestants"], given.out / "overhead.svg")
    print(table(record))
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
