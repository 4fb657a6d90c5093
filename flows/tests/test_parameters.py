"""What a run may be asked for, by the command line or by whoever can reach Prefect's API."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stillhouse.errors import BadSetting, StillhouseError
from stillhouse_flows.processes.querying import query
from stillhouse_flows.runs.parameters import check_place
from stillhouse_flows.runs.request import Request

if TYPE_CHECKING:
    from conftest import Project

HOSTILE_RECIPES = [
    *("", "distill", "/vision/distill", "vision/distill/", "vision//distill", "Vision/Distill"),
    *("../../etc/passwd", "vision/..", "vision/distill@../../../home", "vision/distill@a b"),
    *("vision/distill;touch /tmp/x", "vision/distill$(id)", "vision/distill@`id`", "a/b\nc"),
    *("--help/x", "vision/distill@tiny@tiny", "vision/distíll", "vision/distill\0", "a/" + "b\n"),
]


@pytest.mark.parametrize("recipe", HOSTILE_RECIPES)
def test_a_recipe_is_a_name_or_nothing(recipe: str) -> None:
    with pytest.raises(BadSetting, match="expected domain/recipe"):
        Request(recipe=recipe)


@pytest.mark.parametrize("scale", ["../../x", "tiny; id", "huge", "tiny\n", " "])
def test_a_scale_is_one_of_three(scale: str) -> None:
    with pytest.raises(BadSetting, match="expected tiny, small or paper"):
        Request(recipe="toy/count", scale=scale)


@pytest.mark.parametrize(
    ("device", "ref"),
    [
        *(("cuda:0;id", ""), ("cpu\n", ""), ("cuda:-1", ""), ("gpu", "")),
        *(("auto", "--upload-pack=id"), ("auto", "main;id"), ("auto", "$(id)"), ("auto", "a\nb")),
    ],
)
def test_a_device_and_a_commit_are_what_they_say(device: str, ref: str) -> None:
    with pytest.raises(BadSetting):
        check_place(device, ref)


def test_prefect_refuses_the_same_before_a_run_starts(own_home: Path) -> None:
    from prefect.exceptions import ParameterTypeError

    from stillhouse_flows.flow import distill

    for recipe in HOSTILE_RECIPES[:-3]:
        with pytest.raises(ParameterTypeError):
            distill.validate_parameters({"recipe": recipe})
    for wrong in ({"scale": "../../x"}, {"device": "cuda:0;id"}, {"ref": "--upload-pack=id"}):
        with pytest.raises(ParameterTypeError):
            distill.validate_parameters(wrong)
    fields = distill.parameters.properties
    # what the form in the UI is made of
    assert fields["scale"]["enum"] == ["", "tiny", "small", "paper"]
    assert all(fields[name].get("description") for name in ("recipe", "scale", "device", "ref"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("data:../../../etc/passwd", "leads out of"),
        ("data:/etc/passwd", "leads out of"),
        ("file:/etc/passwd", "lies outside"),
        ("file:../secret", "leads elsewhere"),
        ("builtin:os:getcwd", "neither stillhouse nor a plugin"),
        ("file:${toy.count}", "mean something else to DVC"),
    ],
)
def test_what_a_run_reads_stays_inside_the_project(
    counting: "Project", monkeypatch: pytest.MonkeyPatch, data: str, told: str
) -> None:
    from stillhouse_flows.runs.run import opened, start
    from stillhouse_flows.workspace.worktree import workspace

    monkeypatch.setenv("PYTHONPATH", str(counting / "src"))
    monkeypatch.syspath_prepend(str(counting / "src"))
    monkeypatch.delenv("STILLHOUSE_INPUTS", raising=False)
    (counting.root.parent / "secret").write_text("1\n")
    request = Request(recipe="toy/count", settings={"data": data})

    def begin() -> None:
        with workspace(counting.root, "toy", keep=False) as space:
            run = opened(space, request, "cpu")
            start(run)
            words = ("stage", run.prepared.ref, "numbers")
            done = subprocess.run(
                [sys.executable, "-m", "stillhouse", *words],
                cwd=space.root,
                env=dict(run.env),
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            raise StillhouseError(done.stderr)

    with pytest.raises(StillhouseError, match=told):
        begin()


def test_unknown_settings_are_refused_with_the_nearest(
    counting: "Project", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(counting / "src"))
    words = json.dumps({"recipe": "toy/count", "scale": "", "settings": {"facto; rm -rf /": 1}})
    with pytest.raises(StillhouseError, match="factor"):
        query("stillhouse_flows.runs.prepare", words, env=os.environ, cwd=counting.root)


@pytest.mark.slow
def test_no_secret_reaches_logs_artifacts_branches_or_reports(
    counting: "Project", own_home: Path, tmp_path: Path
) -> None:
    from dvc.repo import Repo

    secret = "hunter2-correct-horse"
    with Repo(str(counting.root)) as repo, repo.config.edit("local") as config:
        config["remote"] = {
            "store": {"url": "https://127.0.0.1:9/x", "user": "me", "password": secret}
        }
        config["core"]["remote"] = "store"
    env = dict(os.environ) | {
        "PYTHONPATH": str(counting / "src"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "AWS_SECRET_ACCESS_KEY": secret,
        "HF_TOKEN": secret,
        "PREFECT_API_KEY": secret,
    }
    command = [sys.executable, "-m", "stillhouse", "flow", "run", "toy/count"]
    done = subprocess.run(command, cwd=counting.root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert secret not in done.stdout + done.stderr
    assert secret not in counting.git("log", "--all", "-p")
    database = sqlite3.connect(tmp_path / "prefect" / "prefect.db")
    assert secret not in "\n".join(database.iterdump())
    (workspace,) = (p for p in (own_home / "workspaces").glob("*/*") if p.is_dir())
    holders = [
        path.relative_to(workspace).as_posix()
        for path in workspace.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]
    # DVC itself needs it; ignored by git, and nobody else may read it
    assert holders == [".dvc/config.local"]
    assert (workspace / holders[0]).stat().st_mode & 0o777 == 0o600
