"""torchrun as a child that ends with its parent, and its ranks with it.

`python -m stillhouse.cli.ranks PARENT ARGUMENT...`: the parent's process id, then torchrun's own
arguments.
"""

import os
import signal
import sys
from collections.abc import Sequence

from stillhouse.parallel import die_with

# the environment variable from which a rank knows the process that it must not outlive
AGENT = "STILLHOUSE_AGENT"


def main(argv: Sequence[str]) -> None:
    parent, *arguments = argv
    os.environ[AGENT] = str(os.getpid())
    die_with(int(parent), signal.SIGTERM)  # at which torchrun ends its ranks
    from torch.distributed.run import main as torchrun

    torchrun(arguments)


def end_with_agent() -> None:
    """Have this rank go with the torchrun that started it, in whatever way that goes."""
    if agent := os.environ.pop(AGENT, ""):
        die_with(int(agent))


if __name__ == "__main__":
    main(sys.argv[1:])
