"""A flow in the foreground of somebody's terminal: what they may read, and how it ends."""

import contextlib
import os
from collections.abc import Generator

import typer

from stillhouse.errors import StillhouseError

INTERRUPTED = 130


def begin(device: str, ref: str) -> None:
    """Check where a flow is to run, and set up this process for it."""
    from stillhouse_flows.local import settle
    from stillhouse_flows.parameters import check_place
    from stillhouse_flows.run import INPUTS

    check_place(device, ref)
    settle()
    # whoever types this may read what they may read
    os.environ.setdefault(INPUTS, os.sep)


@contextlib.contextmanager
def one_line() -> Generator[None]:
    """Ctrl-C, and a server that is not there or went, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    except Exception as error:
        from httpx import TransportError

        if not isinstance(error, TransportError) and "Failed to reach API" not in str(error):
            raise
        raise StillhouseError(
            f"Prefect's server at {os.environ.get('PREFECT_API_URL')} does not answer; what is "
            "finished is kept. Start it (stillhouse flow server), or unset PREFECT_API_URL"
        ) from error


def _interrupted() -> typer.Exit:
    text = "\nInterrupted; finished stages are in DVC's cache, so the next run goes on."
    typer.echo(text, err=True)
    return typer.Exit(INTERRUPTED)
