"""One whole run in this process: `python -m stillhouse_flows.solo CALL RESULT.json`.

RESULT.json gets its report and its branch.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.files import write_text
from stillhouse_flows.processes.process_group import die_with_parent
from stillhouse_flows.processes.querying import answer
from stillhouse_flows.runs.request import Request


@dataclass(frozen=True, kw_only=True)
class Call:
    """What `distill` is called with."""

    request: Request
    device: str
    ref: str


def run(call: Call) -> Mapping[str, str]:
    """The run's report.json and the name of its branch."""
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.serving import ensure_api

    settle()
    ensure_api()
    from stillhouse_flows.flow import distill

    request = call.request
    scale: Any = request.scale  # Any: checked by Request
    done = distill(
        recipe=request.recipe,
        scale=scale,
        settings=dict(request.settings),
        device=call.device,
        ref=call.ref,
    )
    return {"report": done.page.with_name("report.json").read_text(), "branch": done.branch}


def main(argv: Sequence[str]) -> int:
    words, target = argv
    die_with_parent()
    record = json.loads(words)
    call = Call(**record | {"request": Request(**record["request"])})

    def finish() -> str:
        write_text(Path(target), json.dumps(run(call)))
        return target

    return answer(finish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
