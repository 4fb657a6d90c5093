"""Process groups: one signal ends a command with everything it started."""

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process's whole group go when the process that started it goes, in whatever way
    (Linux; elsewhere only when it is told to). For a process that leads its group.
    """
    if os.getpgid(0) != os.getpid():
        return  # called by hand, in its caller's group
    # the command is a grandchild: a signal to this process alone would leave it running
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(_signal: int, _frame: object) -> None:
    kill_group(os.getpid())


def kill_group(leader: int) -> None:
    """End a group at once; nothing to do where it is gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
