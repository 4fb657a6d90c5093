"""docs/nightly.md, command by command, as a new user would: a clone, a server, a worker, a schedule."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "nightly.md"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# `uv run` without uv: the environment is there already
UV = 'uv() { shift; "$@"; }\n'


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_page_holds(tmp_path: Path) -> None:
    text = PAGE.read_text()
    script = "".join(BLOCK.findall(text)).replace("4200", free_port())
    clone = next(line for line in script.splitlines() if line.startswith("git clone"))
    script = script.replace(clone, f"git clone --quiet {ROOT} stillhouse")
    # the clone's own code, as the environment of a clone would have it
    folders = [p.relative_to(ROOT) for p in (ROOT / "plugins").glob("*/src")]
    sources = [tmp_path / "stillhouse" / p for p in (*folders, "packages/kernel/src", "flows/src")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "GIT_AUTHOR_NAME": "new",
        "GIT_AUTHOR_EMAIL": "new@localhost",
        "GIT_COMMITTER_NAME": "new",
        "GIT_COMMITTER_EMAIL": "new@localhost",
    }
    (tmp_path / "prefect").mkdir()
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        shell = subprocess.Popen(
            ["bash", "-eu", "-c", f"{UV}{script}\nkill $(jobs -p)\nwait || true\n"],
            cwd=tmp_path,
            env=env,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=1200)
        finally:
            subprocess.run(["pkill", "-KILL", "--session", str(shell.pid)], check=False)
    said = log.read_text()
    assert code == 0, said[-6000:]
    # what is put to use, once
    student = tmp_path / "stillhouse" / "models/vision/distill/student"
    assert (student / "model.safetensors").is_file()
    ends = re.findall(r"Flow run finished successfully in '(\w+)'", said)
    assert ends == ["Promoted", "Unchanged"], said[-3000:]
    history = [line for line in said.splitlines() if line.endswith("; promoted")]
    assert len(history) == 1, said[-3000:]
