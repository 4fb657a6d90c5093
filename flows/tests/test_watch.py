"""`stillhouse flow watch` as a schedule calls it: real git, DVC, Prefect and processes."""

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Learnt, Project

GATE = "gate:\n  toy/learn:\n    minimum: {accuracy: 0.7}\n    not_worse: [accuracy]\n"


def branches(project: "Project") -> list[str]:
    return project.git("branch", "--list", "--format=%(refname:short)").splitlines()


def states(home: Path) -> list[str]:
    """Names of the states in which the flow runs of `watch` ended, as Prefect's UI has them."""
    with sqlite3.connect(home / "prefect" / "prefect.db") as base:
        query = (
            "SELECT r.state_name FROM flow_run r JOIN flow f ON r.flow_id = f.id "
            "WHERE f.name = 'watch' ORDER BY r.start_time"
        )
        return [name for (name,) in base.execute(query)]


def artifacts(home: Path) -> list[str]:
    with sqlite3.connect(home / "prefect" / "prefect.db") as base:
        query = "SELECT data FROM artifact WHERE key = 'toy-learn-tiny-gate' ORDER BY created"
        return [json.loads(text) for (text,) in base.execute(query)]


@pytest.mark.slow
def test_without_a_gate_nothing_runs_and_how_to_write_one_is_said(
    learnt: "Learnt", monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.errors import StillhouseError
    from stillhouse_flows.runs.request import Request
    from stillhouse_flows.watch import look

    monkeypatch.setenv("PYTHONPATH", learnt.env["PYTHONPATH"])
    monkeypatch.syspath_prepend(learnt.env["PYTHONPATH"])
    project = learnt.project
    before = (branches(project), project.git("worktree", "list"))
    with pytest.raises(StillhouseError) as caught:
        look(project.root, Request(recipe="toy/learn"), "")
    assert str(caught.value) == (
        "toy/learn has no gate in params.yaml, so none of its students is promoted; write one, "
        "as in gate: {toy/learn: {minimum: {accuracy: 0.9}, not_worse: [accuracy]}}"
    )
    assert (branches(project), project.git("worktree", "list")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            "{row: studnt, minimum: {accuracy: 0.7}}",
            "unknown row 'studnt'. Did you mean 'student'?",
        ),
        (
            "{minimum: {acuracy: 0.7}}",
            "row 'student': unknown score 'acuracy'. Did you mean 'accuracy'?",
        ),
    ],
)
def test_a_row_or_score_that_the_report_will_not_have_is_refused_before_anything_runs(
    learnt: "Learnt", monkeypatch: pytest.MonkeyPatch, rules: str, words: str
) -> None:
    from stillhouse.errors import StillhouseError
    from stillhouse_flows.runs.request import Request
    from stillhouse_flows.watch import look

    monkeypatch.setenv("PYTHONPATH", learnt.env["PYTHONPATH"])
    monkeypatch.syspath_prepend(learnt.env["PYTHONPATH"])
    params = learnt.project.root / "params.yaml"
    before = params.read_text()
    params.write_text(f"{before}gate:\n  toy/learn: {rules}\n")
    try:
        with pytest.raises(StillhouseError) as caught:
            look(learnt.project.root, Request(recipe="toy/learn"), "")
    finally:
        params.write_text(before)
    assert str(caught.value).startswith(f"params.yaml: gate toy/learn: {words}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nights(learnt: "Learnt", own_home: Path) -> None:
    """Promoted; unchanged; other data, refused; still those; better data, promoted."""
    project = learnt.project
    params = project / "params.yaml"
    params.write_text(params.read_text() + GATE)
    runs = len(branches(project))

    first = learnt.call("watch", "toy/learn")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.startswith("toy/learn@tiny was never judged\n")
    last = first.stdout.splitlines()[-1]
    assert last.startswith("Promoted: toy-learn-tiny-")
    assert last.endswith(": accuracy 0.8, at least 0.7 asked; no student was promoted before")
    promoted = project.git("rev-parse", "promoted")

    state = (project.state(), branches(project), project.git("worktree", "list"))
    second = learnt.call("watch", "toy/learn")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.startswith("Unchanged: toy/learn@tiny unchanged since toy-learn-tiny-")
    assert len(second.stdout.splitlines()) == 1
    # neither a branch nor a workspace is left
    assert (project.state(), branches(project), project.git("worktree", "list")) == state

    new_data(project, "1\n1\n1\n")
    third = learnt.call("watch", "toy/learn")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "changed since toy-learn-tiny-" in third.stdout.splitlines()[0]
    assert "data:a/numbers.txt " in third.stdout.splitlines()[0]
    last = third.stdout.splitlines()[-1]
    assert last.startswith("Refused: toy-learn-tiny-")
    assert "accuracy 0.4, at least 0.7 asked" in last
    assert "the scores are of different data" in last
    assert project.git("rev-parse", "promoted") == promoted

    fourth = learnt.call("watch", "toy/learn")
    assert "refused" in fourth.stdout
    assert "; to judge it again: stillhouse flow promote toy-learn-tiny-" in fourth.stdout

    # data that the recipe does not read
    (project / "data/b/other.txt").write_text("else\n")
    pin(project)
    assert learnt.call("watch", "toy/learn").stdout.startswith("Unchanged: ")

    new_data(project, "3\n3\n3\n")
    fifth = learnt.call("watch", "toy/learn")
    assert fifth.stdout.splitlines()[-1].startswith("Promoted: "), fifth.stdout + fifth.stderr
    assert project.git("rev-parse", "promoted^") == promoted

    lines = learnt.call("history", "toy/learn").stdout.splitlines()
    lines = [line for line in lines if not line.startswith(" ")]  # a page's path
    told = [line.split("; ", 4)[-1] for line in lines]
    assert told[0] == "promoted"
    assert told[1].startswith("refused: accuracy 0.4, at least 0.7 asked; accuracy 0.4, worse than")
    assert told[2] == "promoted"
    assert len(told) == 5
    assert len(branches(project)) == runs + 4  # three runs and the branch `promoted`
    assert states(own_home) == [
        "Promoted",
        "Unchanged",
        "Refused",
        "Unchanged",
        "Unchanged",
        "Promoted",
    ]
    assert [text.splitlines()[0] for text in artifacts(own_home)] == [
        "# Promoted: toy/learn@tiny",
        "# Refused: toy/learn@tiny",
        "# Promoted: toy/learn@tiny",
    ]
    assert "- accuracy 0.4, at least 0.7 asked" in artifacts(own_home)[1]


def new_data(project: "Project", numbers: str) -> None:
    (project / "data/a/numbers.txt").unlink()  # perhaps a link into DVC's cache
    (project / "data/a/numbers.txt").write_text(numbers)
    pin(project)


def pin(project: "Project") -> None:
    from dvc.repo import Repo

    with Repo(str(project.root)) as repo:
        repo.add(str(project / "data"))
    project.commit()
