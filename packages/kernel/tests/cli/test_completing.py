"""Completion on TAB: what a shell is given, and what it is answered."""

import os
import subprocess
import sys

import pytest

PROGRAM = "from stillhouse.cli import main; main()"


def answered(words: str) -> list[str]:
    env = {**os.environ, "_STILLHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    env["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stillhouse rep", ["report"]),
        ("stillhouse run spir", ["spirals/distill"]),
        ("stillhouse report spirals/distill@", ["spirals/distill@small", "spirals/distill@tiny"]),
        ("stillhouse run --dry", ["--dry-run"]),
        ("stillhouse flow dep", ["deploy"]),
    ],
)
def test_a_shell_is_answered(project, words: str, expected: list[str]) -> None:
    for variant in ("tiny", "small"):
        folder = project / "runs" / "spirals" / "distill" / variant
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text("{}")
    assert answered(words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_lines(stillhouse, shell: str) -> None:
    code, out, _ = stillhouse("completion", shell)
    assert code == 0
    assert f"_STILLHOUSE_COMPLETE=complete_{shell}" in out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)


def test_another_shell_is_refused(stillhouse) -> None:
    code, _, err = stillhouse("completion", "csh")
    assert code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in err
