"""The server on PostgreSQL instead of SQLite: a throw-away cluster of Debian's, on 127.0.0.1."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flow_servers import COUNT, flow_runs, free_port, going, wait_for

if TYPE_CHECKING:
    from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def programs() -> Path | None:
    """Debian keeps them off the PATH: /usr/lib/postgresql/<version>/bin."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def as_postgres(*words: str) -> None:
    """PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*prefix, *words], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def database() -> Generator[str]:
    """The URL of an empty database."""
    place = programs()
    if place is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    # not under pytest's own folder, which is closed to other users
    folder, port = Path(tempfile.mkdtemp(prefix="stillhouse-postgres-")), str(free_port())
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    control = (str(place / "pg_ctl"), "--pgdata", str(folder / "data"), "--wait")
    as_postgres(
        str(place / "initdb"),
        "--pgdata",
        str(folder / "data"),
        "--auth=trust",
        "--username=stillhouse",
    )
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    as_postgres(*control, "--log", str(folder / "log"), "--options", options, "start")
    try:
        address = ("--host=127.0.0.1", f"--port={port}", "--username=stillhouse")
        as_postgres(str(place / "createdb"), *address, "prefect")
        yield f"postgresql+asyncpg://stillhouse@127.0.0.1:{port}/prefect"
    finally:
        as_postgres(*control, "--mode=immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def test_the_server_keeps_everything_in_postgresql(
    counting: "Project", own_home: Path, tmp_path: Path, database: str
) -> None:
    counting.write({"prefect.yaml": COUNT.replace("    schedules: [{interval: 15}]\n", "")})
    counting.commit()
    port, log, work = free_port(), tmp_path / "server.log", tmp_path / "worker.log"
    env = dict(os.environ) | {
        "PYTHONPATH": str(counting / "src"),
        "STILLHOUSE_HOME": str(own_home),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "OMP_NUM_THREADS": "1",
    }
    own = env | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    with going(counting, own, log, "server", "--port", str(port)):
        wait_for(lambda: "export PREFECT_API_URL" in log.read_text(), 180, log.read_text)
        for words in (
            ("-m", "stillhouse", "flow", "deploy"),
            ("-m", "prefect", "deployment", "run", "distill/count"),
        ):
            done = subprocess.run(
                [sys.executable, *words], cwd=counting.root, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with going(counting, env, work, "worker", "local"):
            wait_for(lambda: flow_runs(port, "COMPLETED"), 240, work.read_text)
        # a run by hand, on the same server
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse", "flow", "run", "toy/count"],
            cwd=counting.root,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(flow_runs(port, "COMPLETED")) == 2
    assert not list((tmp_path / "prefect").glob("prefect.db*"))
    # a server that starts again finds it all
    with going(counting, own, log, "server", "--port", str(port)):
        wait_for(lambda: "export PREFECT_API_URL" in log.read_text(), 180, log.read_text)
        assert len(flow_runs(port, "COMPLETED")) == 2
