"""How long the command line takes to start, beside `import torch`: medians of interleaved rounds.

    .venv/bin/python benchmarks/startup.py [--rounds 20] [--out docs/results/startup]

Claim: `stillhouse --help` and `stillhouse list` start in at most 0.5 s. Exits with 1 if not.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from stillhouse.environment import environment

GOAL_SECONDS = 0.5
STILLHOUSE = str(Path(sys.executable).with_name("stillhouse"))
COMMANDS = {
    "stillhouse --help": [STILLHOUSE, "--help"],
    "stillhouse list": [STILLHOUSE, "list"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/results/startup"))
    options = parser.parse_args()
    load = os.getloadavg()[0]  # others at work on the machine make every start slower
    seconds, processor = measure(options.rounds)
    result = {
        "claim": f"--help and list start in at most {GOAL_SECONDS} s",
        "rounds": options.rounds,
        "load_average_before": round(load, 2),
        "median_seconds": {name: round(statistics.median(v), 4) for name, v in seconds.items()},
        "median_processor_seconds": {
            name: round(statistics.median(v), 4) for name, v in processor.items()
        },
        "seconds": {name: [round(s, 4) for s in v] for name, v in seconds.items()},
        "environment": environment("cpu"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "startup.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for name, median in result["median_seconds"].items():
        spread = f"from {min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        cpu = result["median_processor_seconds"][name]
        print(f"{name:<20}{median:.3f} s ({spread}), {cpu:.3f} s of processor time")
    print(file)
    slow = [n for n, s in result["median_seconds"].items() if "torch" not in n and s > GOAL_SECONDS]
    return 1 if slow else 0


def measure(rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds passed and seconds of processor time of each command in every round.

    The first round warms the disk and is left out. Processor time says what a start costs where
    others keep the machine busy.
    """
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(rounds + 1):
        for name, command in COMMANDS.items():
            start, used = time.perf_counter(), _used()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(_used() - used)
    return seconds, processor


def _used() -> float:
    """Processor seconds of all finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
