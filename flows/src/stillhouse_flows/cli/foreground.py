"""A flow in the foreground of somebody's terminal: what they may read, and how it ends."""

import contextlib
import json
import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stillhouse.errors import StillhouseError
from stillhouse_flows.server.serving import no_server

if TYPE_CHECKING:
    from stillhouse_flows.processes.warm import Warm
    from stillhouse_flows.runs.request import Request

INTERRUPTED = 130
# a RuntimeError of Prefect's own in place of what httpx has raised
SILENT = ("Failed to reach API", "Service exceeded error threshold")


def begin(device: str, ref: str) -> None:
    """Check where a flow is to run, and set up this process for it."""
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.runs.parameters import check_place
    from stillhouse_flows.runs.run import INPUTS

    check_place(device, ref)
    settle()
    # else each line of a log that an absent server does not take is an error on the terminal
    logging.raiseExceptions = False
    # whoever types this may read what they may read
    os.environ.setdefault(INPUTS, os.sep)


def check_requests(requests: "Sequence[Request]", ref: str, *, warm: "Warm | None" = None) -> None:
    """Refuse what cannot run, before there is a run of it; at another commit other settings may
    hold, and the run itself looks there.
    """
    from stillhouse.places import project_root
    from stillhouse_flows.processes.querying import query

    if ref:
        return
    record = {"project": str(project_root()), "requests": [asdict(each) for each in requests]}
    words = json.dumps(record)
    query("stillhouse_flows.runs.checking", words, env=os.environ, cwd=Path.cwd(), warm=warm)


def ready(requests: "Sequence[Request]", ref: str) -> None:
    """Have a Prefect API and the first half of a zygote, and refuse what cannot run: each takes
    seconds, and they go side by side.
    """
    from concurrent.futures import ThreadPoolExecutor

    from stillhouse_flows.processes.warm import start_ahead
    from stillhouse_flows.server.serving import ensure_api

    warm = start_ahead()  # by this thread: it would end with the one that starts it
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_requests, requests, ref, warm=warm)

        def refused() -> None:
            """A refused request need not wait for a server that nobody will need."""
            if checked.done():
                checked.result()

        try:
            ensure_api(refused, beside="stillhouse_flows.flow")
        except StillhouseError:
            checked.result()  # whoever requested it can put this right sooner
            raise
        checked.result()


@contextlib.contextmanager
def one_line() -> Generator[None]:
    """Ctrl-C, and a server that is missing or went, without a traceback."""
    try:
        with answered():
            yield
    except KeyboardInterrupt:
        raise _interrupted() from None


@contextlib.contextmanager
def answered() -> Generator[None]:
    """Raises StillhouseError in place of what Prefect raises where its server went or refuses."""
    try:
        yield
    except Exception as error:
        if found := _no_answer(error):
            raise no_server(found) from error
        raise


def _no_answer(error: BaseException) -> str:
    """What became of the server; empty where the error is another."""
    from httpx import HTTPStatusError, TransportError

    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_no_answer, error.exceptions)), "")
    if isinstance(error, HTTPStatusError) and error.response.is_client_error:
        return f"answers {error.response.status_code} to {error.request.url.path}"
    gone = isinstance(error, TransportError | HTTPStatusError)
    return "does not answer" if gone or any(text in str(error) for text in SILENT) else ""


def _interrupted() -> typer.Exit:
    text = "\nInterrupted; finished stages are in DVC's cache, so the next run goes on."
    typer.echo(text, err=True)
    return typer.Exit(INTERRUPTED)
