"""Refuse requests that cannot run, in a process of its own: it imports torch, and a flow does not.

`python -m stillhouse_flows.runs.checking REQUEST`: "project", and "requests" with what `Request`
has.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse_flows.processes.querying import answer
from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import check_request


def main(argv: Sequence[str]) -> int:
    words = json.loads(argv[0])

    def checked() -> str:
        for each in words["requests"]:
            check_request(Path(words["project"]), Request(**each))
        return ""

    return answer(checked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
