"""`push`: real bytes over HTTP to a server on 127.0.0.1, and what is refused in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from stillhouse.artifact import Built, Model
from stillhouse.card import Card
from stillhouse.export import Export
from stillhouse.hub_card import Origin, hub_card
from stillhouse.work import Work

from ..toys import SITE, Net, toy_data  # noqa: TID252  # pyright: ignore[reportAttributeAccessIssue]
from .conftest import Main
from .hub_server import Hub

TOKEN, REPO = "hf_write", "ada/toy-student"
Push = Callable[..., subprocess.CompletedProcess[str]]
ORIGIN = Origin(
    ref="toys/fit@tiny",
    headline="Distillation added 2.0 points.",
    head=("Model", "Accuracy, %", "Difference, points"),
    rows=(("teacher", "95.00", ""), ("student", "88.00", "baseline"), ("kd", "90.00", "+2.00")),
    legend="Difference to student; one seed, so no interval.",
    notes=("A reconstruction: the paper's code is not public.",),
    read=("file:/home/ada/photos", "data:digits", "builtin:toys:digits"),
    stillhouse="0.1.0",
    commit="c044ebe" + 33 * "0",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an exported student, with an image and a table that are no part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE))
        torch.manual_seed(0)
        spec = Model(build=Net, kwargs={"width": 4})
        scores = {"accuracy": 0.9, "nll_loss": 0.5, "parameters": 145.0, "mode_count": float("nan")}
        out = tmp_path_factory.mktemp("exported") / "model"
        Export(card=Card(title="A toy", task="image-classification", paper="nobody"))(
            {
                "student": Built(spec=spec, module=spec.new().eval()),
                "data": toy_data(),
                "scores": scores,
            },
            out,
            work=Work.seeded(0),
        )
        (out / "faces.png").write_bytes(b"\x89PNG")
        (out / "faces.parquet").write_bytes(b"PAR1")
        (out / "tables").mkdir()
        (out / "tables" / "words.json").write_text("{}")
        yield out


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({TOKEN: "ada", "hf_other": "bob"}) as hub:
        yield hub


@pytest.fixture
def push(hub: Hub, tmp_path: Path) -> Push:
    """`push(FOLDER, REPO, ...)` in a process of its own, as huggingface_hub reads its environment
    once."""

    def run(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # large files go by Git LFS
            **changed,
        }
        return subprocess.run(
            [sys.executable, "-m", "stillhouse", "push", *words],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["1", ""], ids=["lfs", "xet"])
def test_the_hub_has_the_same_bytes(hub: Hub, push: Push, exported: Path, disabled: str) -> None:
    words = (str(exported), REPO, "--license", "mit", "--private", "--json")
    done = push(*words, HF_HUB_DISABLE_XET=disabled)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["url"] == f"{hub.url}/{REPO}"
    there = hub.repositories[REPO]
    assert there.private
    assert there.commits == ["Upload a student exported by Stillhouse"]
    kept = ("export.json", "model.json", "model.onnx", "model.safetensors", "tables/words.json")
    assert sorted(there.files) == sorted([*kept, "README.md"])
    for name in kept:
        assert there.files[name] == (exported / name).read_bytes()
    assert told["files"] == {name: len(data) for name, data in sorted(there.files.items())}
    assert told["left_out"] == ["faces.parquet", "faces.png"]
    assert yaml.safe_load(there.files["README.md"].decode().split("---\n")[1])["license"] == "mit"
    assert ("POST /v2/shards" in hub.paths) is not bool(disabled)
    # the large ones by their digests
    assert set(hub.objects.values()) == {
        there.files["model.onnx"],
        there.files["model.safetensors"],
    }
    assert (exported / "README.md").read_text().count("## Limits") == 0


@pytest.mark.slow
def test_a_repository_that_is_there_needs_update(hub: Hub, push: Push, exported: Path) -> None:
    assert push(str(exported), REPO).returncode == 0
    again = push(str(exported), REPO)
    assert (again.returncode, again.stderr) == (
        2,
        f"error: {REPO} is there already; give another name, or --update for a new commit of it\n",
    )
    hidden = push(str(exported), REPO, "--update", "--private")
    assert (hidden.returncode, hidden.stderr) == (
        2,
        f"error: {REPO} is public; leave out --private, or make it private on the hub\n",
    )
    assert len(hub.repositories[REPO].commits) == 1
    done = push(str(exported), REPO, "--update", "--license", "apache-2.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"6 files: {hub.url}/{REPO}\nLeft out, no files of a model: faces.parquet, faces.png\n"
    )
    assert len(hub.repositories[REPO].commits) == 2
    assert b"license: apache-2.0" in hub.repositories[REPO].files["README.md"]


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(hub: Hub, push: Push, exported: Path) -> None:
    refused = {
        (REPO, "hf_unknown"): f"{hub.url} does not know this token. Set HF_TOKEN to a valid one, "
        "or run: hf auth login",
        (REPO, "hf_other"): f"{REPO}: this token may not write there; give a repository of its "
        "owner instead of 'ada', or a token with the right to write",
        (REPO, ""): "no token of the Hugging Face hub. Set HF_TOKEN to one that may write, or "
        "run: hf auth login",
    }
    for (repo, token), line in refused.items():
        done = push(str(exported), repo, HF_TOKEN=token)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")
    assert hub.repositories == {}


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(push: Push, exported: Path) -> None:
    done = push(str(exported), REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: http://127.0.0.1:9 cannot be reached (")
    assert len(done.stderr.splitlines()) == 1
    offline = push(str(exported), REPO, HF_HUB_OFFLINE="1")
    assert (offline.returncode, len(offline.stderr.splitlines())) == (2, 1)
    assert "HF_HUB_OFFLINE is set" in offline.stderr


def test_wrong_words_need_no_hub(stillhouse: Main, exported: Path, tmp_path: Path) -> None:
    code, _, err = stillhouse("push", str(exported), "toy-student")
    assert (code, err) == (2, "error: 'toy-student': give the repository as OWNER/NAME\n")
    code, _, err = stillhouse("push", str(exported), "ada/toy..student")
    assert code == 2
    assert err.startswith("error: 'ada/toy..student': ")
    code, _, err = stillhouse("push", str(tmp_path), REPO)
    assert (code, err) == (
        2,
        f"error: {tmp_path}: no export.json in this folder, so no exported student; give one that "
        "`stillhouse export` wrote\n",
    )
    bad = tmp_path / "bad"
    shutil.copytree(exported, bad)
    (bad / "export.json").write_text("[]")
    code, _, err = stillhouse("push", str(bad), REPO, "--dry-run")
    assert code == 2
    assert err.startswith(f"error: {bad / 'export.json'}: not the record of an export")


def test_a_dry_run_shows_the_card_and_the_files(stillhouse: Main, exported: Path) -> None:
    code, out, err = stillhouse("push", str(exported), REPO, "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("---\nlicense: other\n") or "\nlicense: other\n" in out.split("---")[1]
    assert f"Would be uploaded to {REPO}:\n  README.md  " in out
    assert "  model.safetensors  " in out
    assert "Left out, no files of a model: faces.parquet, faces.png\n" in out
    code, out, _ = stillhouse("push", str(exported), REPO, "--dry-run", "--json")
    told = json.loads(out)
    assert told["files"]["README.md"] == len(told["card"].encode())


def test_the_card_says_scores_comparison_and_limits(exported: Path) -> None:
    text = hub_card(exported, REPO, origin=ORIGIN)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert front["library_name"] == "stillhouse"
    assert front["tags"] == [
        "distillation", "knowledge-distillation", "stillhouse", "onnx", "safetensors",
    ]  # fmt: skip
    (index,) = front["model-index"]
    assert index["name"] == "toy-student"
    (result,) = index["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"]["name"] == "held-out data of toys/fit@tiny"
    # costs and what is no number are left out
    assert [(m["type"], m["value"], m["name"]) for m in result["metrics"]] == [
        ("accuracy", 0.9, "Accuracy"),
        ("nll_loss", 0.5, "NLL (lower is better)"),
    ]
    assert "| teacher | 95.00 |  |\n| student | 88.00 | baseline |\n| kd | 90.00 | +2.00 |" in text
    assert "- A reconstruction: the paper's code is not public.\n" in text
    assert "- No licence was stated for these weights: contact their owner before use.\n" in text
    read = "files of whoever trained it (not published), `data:digits`, the built-in `toys:digits`"
    assert f"- What the run read: {read}.\n" in text
    assert "/home/ada" not in text
    assert 'folder = snapshot_download("ada/toy-student")' in text
    assert text.index("## Download") < text.index("## Inputs and outputs") < text.index("## Limits")
    assert "No licence" not in hub_card(exported, REPO, licence="mit", origin=ORIGIN)
    assert "without the report of the run" in hub_card(exported, REPO)


def test_scores_are_indexed_in_their_order_without_tables(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    record = json.loads((folder / "export.json").read_text())
    scores = [{"name": "recall", "better": "higher"}, {"name": "iou", "better": "higher"}]
    scores.append({"name": "accuracy", "better": "higher"})
    record["scores"] = {"recall/cat": 0.5, "accuracy": 0.9, "iou": 0.7}
    record["declared"] = {"cells": {"recall/cat": ["cat", "recall"]}, "scores": scores}
    (folder / "export.json").write_text(json.dumps(record))
    front = yaml.safe_load(hub_card(folder, REPO).split("---\n")[1])
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert [metric["type"] for metric in metrics] == ["iou", "accuracy"]


@pytest.mark.slow
def test_a_recipe_brings_its_report(stillhouse: Main, project: Path) -> None:
    assert stillhouse("run", "spirals/distill", "--device", "cpu", "--no-report")[0] == 0
    code, out, _ = stillhouse("push", "spirals/distill", REPO, "--dry-run")
    assert code == 0
    assert "The report of `spirals/distill@tiny`:" in out
    for row in ("teacher", "student", "student + kd"):
        assert f"| {row} |" in out
    assert str(project) not in out
