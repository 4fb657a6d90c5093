"""`stillhouse flow server | serve | deploy | worker`: runs that start by themselves."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from stillhouse.errors import StillhouseError
from stillhouse_flows.cli.foreground import answered
from stillhouse_flows.server.serving import API, HOST

PORT = 4200
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DEPLOYMENT]...", help="Names from prefect.yaml; without, all."),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Of the server and its UI.")]


def server(
    port: Port = PORT,
    host: Annotated[
        str, typer.Option(help="Another address than this machine's own is open to its network.")
    ] = HOST,
) -> None:
    """Run Prefect's server with its UI until Ctrl-C; schedules fire while it runs."""
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.serving import ensure_server, reached_at

    if host not in (HOST, "localhost", "::1"):
        typer.echo(
            f"warning: whoever reaches {host}:{port} can start and stop runs here: "
            "Prefect's server asks for no password",
            err=True,
        )
    os.environ.pop(API, None)
    settle()
    with _until_stopped():
        child = ensure_server(host, port)
        print(f"Prefect's UI:  http://{reached_at(host)}:{port}", flush=True)
        print(
            f"In every other shell:  export {API}=http://{reached_at(host)}:{port}/api", flush=True
        )
        code = child.wait()
        raise StillhouseError(f"the server ended by itself ({code}); its log is in PREFECT_HOME")


@contextmanager
def _until_stopped() -> Generator[None]:
    """Ctrl-C and SIGTERM are the ways to end it, so they are no errors."""

    def end(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def serve(names: Names = None, port: Port = PORT) -> None:
    """Run the deployments of prefect.yaml on this machine until Ctrl-C, without a work pool.

    Starts a server of its own where PREFECT_API_URL names none.
    """
    from stillhouse.places import project_root
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.deployments import prepared, read
    from stillhouse_flows.server.serving import check_answers, configured, ensure_server
    from stillhouse_flows.server.worker import condensing

    settle()
    root = project_root()
    with _until_stopped(), answered():
        # before the flows are loaded, and Prefect with them
        if configured():
            check_answers()
        else:
            ensure_server(HOST, port)
        chosen = read(root, names or ())
        # the processes of its runs are this process's children
        os.environ["STILLHOUSE_ROOT"] = str(root)
        ready = [prepared(each, variables={}) for each in chosen]
        print(f"Prefect's UI:  {os.environ.get(API, '').removesuffix('/api')}")
        for each, deployment in zip(chosen, ready, strict=True):
            print(f"  {deployment.full_name:<28} {_when(each.schedules)}", flush=True)
        from prefect import serve as serve_deployments

        with condensing():
            serve_deployments(*ready, print_starting_message=False)
        check_answers()  # it stops by itself where the server is gone


def _when(schedules: "tuple[object, ...]") -> str:
    return (
        "; ".join(
            ", ".join(f"{key} {value}" for key, value in entry.items())
            for entry in schedules
            if isinstance(entry, dict)
        )
        or "by hand"
    )


def deploy(names: Names = None) -> None:
    """Register the deployments of prefect.yaml with a running server, for workers to run."""
    from stillhouse.places import project_root
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.deployments import read, register

    settle()
    root = project_root()
    chosen = read(root, names or ())
    with _reached():
        for each, name in zip(chosen, register(root, chosen), strict=True):
            print(f"  {name:<28} pool {each.pool:<10} {_when(each.schedules)}")
    for pool in dict.fromkeys(each.pool for each in chosen):
        print(f"Runs start where this goes on:  stillhouse flow worker {pool}")


def worker(
    pool: Annotated[str, typer.Argument(help="The work pool; made where there is none.")],
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    """Run what a server hands to a work pool, on this machine's project, until Ctrl-C."""
    from stillhouse.places import home, project_root
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.deployments import register_stages
    from stillhouse_flows.server.worker import log_file, run_worker

    settle()
    root = project_root()
    with _reached():
        offered = register_stages(pool)
    file = log_file(home(), pool)
    print(f"Worker of pool {pool} on {root}; offers {offered}; its log is {file}", flush=True)
    os.environ["STILLHOUSE_ROOT"] = str(root)
    words = ["--pool", pool, "--type", "process", "--limit", str(limit)]
    with _until_stopped():
        if code := run_worker(words, file):
            raise StillhouseError(f"the worker ended by itself ({code}); its log is {file}")


@contextmanager
def _reached() -> Generator[None]:
    """A server of the user's is needed, and answers."""
    from stillhouse_flows.server.serving import check_answers, configured

    if not configured():
        raise StillhouseError(
            f"no Prefect server: {API} is not set. Run: stillhouse flow server, "
            "and in this shell the line that it prints"
        )
    check_answers()
    with answered():
        yield
