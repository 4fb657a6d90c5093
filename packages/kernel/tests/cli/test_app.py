"""Exit codes, one-line errors, and what a start must not import."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.cli import app

HEAVY = ("torch", "pydantic", "rich", "numpy", "mmengine", "prefect", "dvc", "matplotlib", "yaml")
STARTED = """
import json, sys
from stillhouse.cli import main
code = main(sys.argv[1:])
print(json.dumps([m for m in {heavy} if m in sys.modules]))
sys.exit(code)
"""


@pytest.mark.parametrize("words", [["--help"], ["list"], ["run", "--help"], ["--version"]])
def test_starts_without_heavy_packages(words: list[str]) -> None:
    program = STARTED.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_names_every_command(stillhouse) -> None:
    code, out, _ = stillhouse("--help")
    assert code == 0
    for name in (
        "list",
        "show",
        "run",
        "stage",
        "report",
        "diagnose",
        "compare",
        "export",
        "predict",
    ):
        assert f"\n  {name} " in out
    assert stillhouse()[1] == out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lst"], "error: No such command 'lst'. Did you mean 'list'?"),
        (
            ["run", "--scal", "tiny"],
            "error: No such option: --scal (Possible options: --scale, --shard)",
        ),
        (["run"], "error: Missing argument 'RECIPE[@VARIANT]'."),
        (["run", "x/y", "--nproc", "0"], "error: Invalid value for '--nproc': "),
        (["export", "x/y", "--to", "tflite"], "error: Invalid value for '--to': "),
        (["new"], "error: Missing command."),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(stillhouse, words: list[str], told: str) -> None:
    code, out, err = stillhouse(*words)
    assert (code, out) == (2, "")
    assert err.startswith(told)
    assert err.count("\n") == 1


def test_the_installed_command_and_the_module_are_the_same() -> None:
    command = Path(sys.executable).with_name("stillhouse")
    for start in ([str(command)], [sys.executable, "-m", "stillhouse"]):
        done = subprocess.run([*start, "lst"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == "error: No such command 'lst'. Did you mean 'list'?\n"


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: file system: no space left on the device")
    assert done.stderr.count("\n") == 1


def test_what_the_file_system_refuses_is_one_line(stillhouse, monkeypatch) -> None:
    refuse(monkeypatch, OSError(errno.EROFS, "Read-only file system", "/there/runs"))
    assert stillhouse("refuse") == (2, "", "error: /there/runs: the file system is read-only\n")


def test_an_unexpected_error_keeps_its_traceback(stillhouse, monkeypatch) -> None:
    refuse(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file", "/there"))
    with pytest.raises(FileNotFoundError):
        stillhouse("refuse")


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Give the command line a command that fails like this, for one test."""

    def command() -> None:
        raise error

    monkeypatch.setattr(app.app, "registered_commands", [*app.app.registered_commands])
    app.app.command("refuse")(command)
