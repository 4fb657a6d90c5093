"""Note a run as the newest of its recipe and variant in a project.

`python -m stillhouse_flows.runs.registering REQUEST`: "project", "root", "recipe" and "variant" as
JSON.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse.newest import register_run
from stillhouse.runs import Runs
from stillhouse_flows.processes.querying import answer


def main(argv: Sequence[str]) -> int:
    request = json.loads(argv[0])

    def registered() -> str:
        root = Path(request["root"])
        runs = Runs(root=root, recipe=request["recipe"], variant=request["variant"])
        register_run(Path(request["project"]), runs)
        return ""

    return answer(registered)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
