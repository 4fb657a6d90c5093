"""Devices that one stage holds at a time: a lock of the operating system for each.

The lock belongs to an open file that the stage's process inherits: it is free when the last process
of the stage is gone, in whatever way. No server takes part. $STILLHOUSE_SLOTS names the devices of
this machine ("0,1"; any words will do, "cpu" for one stage at a time); without it they are the GPUs
that nvidia-smi lists, and a machine without one has no slots.
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stillhouse.errors import BadSetting
from stillhouse.files import storage
from stillhouse.places import home

SLOTS = "STILLHOUSE_SLOTS"
POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """The devices a stage holds, and the open files that are the locks."""

    devices: tuple[str, ...] = ()
    files: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        """What lets a stage see its GPUs only."""
        if not self.devices or not all(name.isdecimal() for name in self.devices):
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)}


def devices(device: str) -> tuple[str, ...]:
    """Names of the slots that a stage on `device` may take; empty for none needed."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and index:
        return (index,)
    named = os.environ.get(SLOTS)
    if named is not None:
        names = tuple(name.strip() for name in named.split(",") if name.strip())
        if bad := [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]:
            raise BadSetting(f"{SLOTS}: '{bad[0]}' is not a name of letters and digits")
        return names
    return () if kind == "cpu" else _gpus()


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    every = tuple(done.stdout.split()) if done.returncode == 0 else ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return every if visible is None else tuple(n for n in visible.split(",") if n in every)


@contextlib.contextmanager
def hold(
    names: Sequence[str], count: int, owner: str, waiting: Callable[[str], None]
) -> Generator[Held]:
    """Hold `count` of the devices `names` while the block runs; `waiting` gets once who has them.

    All of them or none, so that two stages that need several never wait for each other. Raises
    BadSetting when there are fewer.
    """
    if not names:
        yield Held()
        return
    if count > len(names):
        raise BadSetting(f"the stage needs {count} devices; here are {', '.join(names)}")
    noted = False
    while True:
        with contextlib.ExitStack() as stack:
            files = _take(names, count, owner, stack)
            if len(files) == count:
                yield Held(
                    devices=tuple(files), files=tuple(file.fileno() for file in files.values())
                )
                return
        if not noted:
            waiting(f"waits for a device: {_owners(names)}")
            noted = True
        time.sleep(POLL_SECONDS)


def _take(
    names: Sequence[str], count: int, owner: str, stack: contextlib.ExitStack
) -> dict[str, IO[str]]:
    taken: dict[str, IO[str]] = {}
    for name in names:
        if len(taken) == count:
            break
        file = stack.enter_context(_file(name).open("a+"))
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(json.dumps({"owner": owner}))
            file.flush()
            taken[name] = file
    return taken


def _file(name: str) -> Path:
    folder = home() / "slots"
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _owners(names: Sequence[str]) -> str:
    """ "0 is held by vision-distill-tiny-1f2e3d4c/teacher", for each."""
    return "; ".join(f"{name} is held by {_owner(name)}" for name in names)


def _owner(name: str) -> str:
    try:
        return json.loads(_file(name).read_text())["owner"]
    except (OSError, ValueError, KeyError):
        return "another run"
