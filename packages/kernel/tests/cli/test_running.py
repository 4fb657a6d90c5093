"""`run`, `stage`, `report`, `compare`, `export` and `predict` on a plugin that is really there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.cli.app import main
from stillhouse.cli.running import check_shard
from stillhouse.cli.target import make_target
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.newest import newest_run, register_run
from stillhouse.runs import Runs
from stillhouse.settings import make_recipe, make_settings

from .conftest import declare, see

STAGES = 8
NAME = "spirals/distill"


@pytest.fixture(scope="module")
def first_run(spirals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which the recipe has run once."""
    root = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        see(spirals, patch)
        patch.setenv("STILLHOUSE_ROOT", str(root))
        patch.setenv("STILLHOUSE_HOME", str(root / "home"))
        assert main(["run", NAME, "--device", "cpu", "--no-report"]) == 0
        yield root


@pytest.fixture
def ran(first_run: Path, project: Path) -> Path:
    """A copy of it, to do with as a test likes."""
    shutil.copytree(first_run, project, dirs_exist_ok=True)
    return project / "runs" / NAME / "tiny"


def test_a_second_run_skips_everything_and_reports(stillhouse, ran) -> None:
    code, out, err = stillhouse("run", NAME)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == f"{NAME}@tiny on cpu, in {ran}"
    assert lines[1] == "stage data: skipped: up to date"
    assert out.count("skipped: up to date") == STAGES
    rows = [line.split("  ")[1].strip() for line in lines if line.startswith("  ")]
    assert [r for r in rows if r in ("teacher", "student", "student + kd")] == [
        *("teacher", "student", "student + kd")
    ]
    assert lines[-1] == f"Report: {ran / 'report' / 'report.html'}"
    assert (ran / "report" / "report.html").is_file()


def test_a_dry_run_says_what_would_run_and_runs_nothing(stillhouse, ran) -> None:
    shutil.rmtree(ran / "kd-0")
    before = {path: path.stat().st_mtime_ns for path in ran.rglob("*")}
    code, out, _ = stillhouse("run", NAME, "--dry-run", "--json")
    assert code == 0
    planned = {each["stage"]: each for each in json.loads(out)["stages"]}
    waiting = {
        name: each["after"] for name, each in planned.items() if each["state"] == "would run"
    }
    assert waiting == {"kd-0": [], "kd-0-scores": ["kd-0"], "export": ["kd-0", "kd-0-scores"]}
    assert all(each["seconds"] > 0 for each in planned.values())
    code, out, _ = stillhouse("run", NAME, "--dry-run")
    assert f"3 of {STAGES} stages would run (fewer where what they read comes out the same" in out
    assert "; 3 of them took " in out
    assert {path: path.stat().st_mtime_ns for path in ran.rglob("*")} == before


def test_how_long_it_may_take_is_said_by_earlier_runs(stillhouse, ran) -> None:
    _, out, _ = stillhouse("run", NAME, "--set", "temperature=3", "--dry-run")
    assert f"of {STAGES} stages would run" in out
    shutil.rmtree(ran / "kd-0-scores")
    _, out, _ = stillhouse("run", NAME, "--no-report")
    assert re.search(r"in .*tiny, about [0-9.]+ s by earlier runs here$", out.splitlines()[0])


def test_a_run_in_json_is_lines_for_another_program(stillhouse, ran) -> None:
    shutil.rmtree(ran / "kd-0")
    code, out, err = stillhouse("run", NAME, "--json")
    assert (code, err) == (0, "")
    *events, last = [json.loads(line) for line in out.splitlines()]
    assert {event["stage"] for event in events if event["text"] == "done"} == {"kd-0"}
    assert last["report"] == str(ran / "report" / "report.html")
    assert set(last["rows"]) == {"teacher", "student", "student + kd"}
    assert 0 <= last["rows"]["student"][last["primary"]] <= 1
    code, out, _ = stillhouse("compare", NAME, str(ran / "report"), "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["score"]["name"]


def test_a_stage_that_is_gone_is_run_again_and_told(stillhouse, ran) -> None:
    shutil.rmtree(ran / "kd-0")
    code, out, _ = stillhouse("run", NAME, "--no-report")
    assert code == 0
    assert "stage kd-0: step 150/150 loss " in out
    assert "stage kd-0: done in " in out
    assert out.count("skipped: up to date") == STAGES - 1


def test_stage_runs_one_stage_and_nothing_else(stillhouse, ran) -> None:
    shutil.rmtree(ran / "kd-0")
    shutil.rmtree(ran / "plain-0")
    code, out, _ = stillhouse("stage", f"{NAME}@tiny", "kd-0", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {event["stage"] for event in events} == {"kd-0"}
    assert events[-1]["text"] == "done"
    assert not (ran / "plain-0").exists()
    code, _, err = stillhouse("stage", NAME, "plain-0-scores")
    assert code == 2
    assert err.startswith("error: 'plain-0.student': stage 'plain-0' has not run. Run: ")
    code, _, err = stillhouse("stage", NAME, "kd0")
    assert code == 2
    assert err.startswith(f"error: {NAME}: unknown stage 'kd0'. Did you mean 'kd-0'?")


def test_settings_come_from_params_yaml_or_from_the_last_run(stillhouse, ran, project) -> None:
    (project / "params.yaml").write_text("spirals: {distill: {tiny: {seeds: 2}}}\n")
    code, _, err = stillhouse("stage", NAME, "kd-1", "--as-run")
    assert code == 2
    assert "unknown stage 'kd-1'" in err
    assert stillhouse("stage", NAME, "kd-1")[0] == 0
    assert json.loads((ran / "settings.json").read_text())["settings"] == {"seeds": 2}


def test_ranks_are_given_their_settings_whatever_another_run_wrote(stillhouse, ran) -> None:
    record = (ran / "settings.json").read_text()
    assert json.loads(record)["settings"] == {}
    code, out, _ = stillhouse("stage", NAME, "kd-1", "--settings", '{"scale": "tiny", "seeds": 2}')
    assert code == 0
    assert "stage kd-1: done in " in out
    for wrong in ("{}", "[1]", "seeds=2"):
        code, _, err = stillhouse("stage", NAME, "kd-1", "--settings", wrong)
        assert code == 2
        assert err.startswith(f"error: --settings: expected JSON with every setting of {NAME} (")


@pytest.fixture
def elsewhere(first_run: Path, project: Path, tmp_path: Path, monkeypatch) -> Path:
    """A run that a flow made for the project in a folder of its own, and registered."""
    root = tmp_path / "workspaces" / "run-1"
    shutil.copytree(first_run / "runs", root / "runs")
    (root / "runs" / NAME / "tiny" / "settings.json").unlink()  # DVC restores none
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    runs = Runs(root=root, recipe=NAME, variant="tiny")
    register_run(project, runs, make_settings(NAME, "tiny"))
    return runs.folder


def test_the_newest_run_is_found_wherever_it_is(stillhouse, elsewhere, tmp_path) -> None:
    code, out, err = stillhouse("report", NAME)
    assert code == 0, err
    assert out.splitlines()[-1] == f"Report: {elsewhere / 'report' / 'report.html'}"
    folder = tmp_path / "out"
    assert stillhouse("export", NAME, "--to", "safetensors", "--out", str(folder))[0] == 0
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (elsewhere / "export/model" / weights).read_bytes()
    (tmp_path / "points.csv").write_text("0.1,0.2\n")
    assert stillhouse("predict", NAME, str(tmp_path / "points.csv"))[0] == 0
    assert stillhouse("compare", NAME, str(elsewhere / "report"))[0] == 0


def test_a_finished_run_here_wins_when_it_is_newer(
    stillhouse, elsewhere, first_run, project, tmp_path
) -> None:
    own = project / "runs" / NAME / "tiny"
    shutil.copytree(first_run / "runs", project / "runs")
    os.utime(own / "settings.json", (0, 0))
    assert f"Report: {elsewhere}" in stillhouse("report", NAME)[1]
    os.utime(own / "settings.json")
    assert f"Report: {own}" in stillhouse("report", NAME)[1]
    shutil.rmtree(own / "kd-0")  # newer, but it did not come to its end
    assert f"Report: {elsewhere}" in stillhouse("report", NAME)[1]
    shutil.rmtree(tmp_path / "workspaces")
    assert stillhouse("report", NAME)[0] == 2
    assert f"Report: {own}" in stillhouse("report", NAME, "--partial")[1]


def test_registered_runs_are_by_project_and_the_newest_that_is_left(
    elsewhere, project, tmp_path
) -> None:
    found = newest_run(project, NAME, "tiny")
    assert found is not None
    assert found[0] == tmp_path / "workspaces" / "run-1"
    assert newest_run(project, NAME, "small") is None
    assert newest_run(tmp_path, NAME, "tiny") is None
    later = Runs(root=tmp_path / "workspaces" / "run-2", recipe=NAME, variant="tiny")
    register_run(project, later, make_settings(NAME, "tiny"))
    assert newest_run(project, NAME, "tiny")[0] == later.root
    shutil.rmtree(later.root)
    assert newest_run(project, NAME, "tiny")[0] == found[0]
    (index,) = (tmp_path / "home" / "newest").glob("project-*.json")
    index.write_text("[]")
    assert newest_run(project, NAME, "tiny") is None


def test_report_is_published_and_compared(stillhouse, ran, tmp_path) -> None:
    code, out, _ = stillhouse("report", NAME, "--publish", str(tmp_path / "docs"))
    assert code == 0, out
    assert out.splitlines()[-1] == f"Published: {tmp_path / 'docs' / 'report.md'}"
    assert (tmp_path / "docs" / "report.json").is_file()
    code, out, _ = stillhouse("compare", NAME, str(tmp_path / "docs"))
    assert code == 0
    assert "student + kd: Accuracy" in out
    code, _, err = stillhouse("compare", NAME)
    assert code == 2
    assert err.startswith("error: compare: at least two reports are needed")


def test_a_diagnosis_says_what_was_found_and_what_would_do(stillhouse, ran) -> None:
    code, out, err = stillhouse("diagnose", NAME)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1:4] == [
        "",
        "Too few seeds",
        "  1 seed: no interval can be given, and chance is not ruled out.",
    ]
    assert lines[4] == "  Try: Train more seeds, as in --set seeds=5."
    assert stillhouse("report", NAME)[0] == 0
    report = json.loads((ran / "report" / "report.json").read_text())
    assert {found["check"] for found in report["diagnosis"]} >= {"too few seeds"}


def test_what_has_not_run_cannot_be_reported(stillhouse, project) -> None:
    for words in (["report"], ["diagnose"], ["export", "--to", "onnx"], ["predict"]):
        inputs = [str(project)] if words == ["predict"] else []
        code, _, err = stillhouse(*words, NAME, *inputs)
        assert code == 2
        assert (
            err == f"error: {NAME}@tiny has not run in {project}. Run: stillhouse run {NAME}@tiny\n"
        )


def test_export_copies_the_student_into_a_new_folder(stillhouse, ran, tmp_path) -> None:
    code, out, _ = stillhouse("export", NAME, "--to", "safetensors")
    folder = Path(f"{NAME.replace('/', '-')}-tiny-safetensors")
    assert code == 0
    names = ("export.json", "model.json", "model.safetensors")
    assert out.split() == [str(folder / name) for name in names]
    inside = "export/model/model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == (ran / inside).read_bytes()
    code, _, err = stillhouse("export", NAME, "--to", "onnx", "--out", str(folder))
    assert code == 2
    assert err == f"error: {folder} is not a new or empty folder; give one with --out\n"
    assert stillhouse("export", NAME, "--to", "onnx", "--out", str(tmp_path / "onnx"))[0] == 0
    (ran / inside).write_bytes(b"other bytes")
    code, _, err = stillhouse("export", NAME, "--to", "onnx", "--out", str(tmp_path / "again"))
    assert code == 2
    assert "its bytes differ from the digest in stage.json" in err


def test_predict_gives_the_same_table_for_recipe_and_folder(stillhouse, ran, tmp_path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("0.1,0.2\n0.5,-0.25\n")
    code, table, _ = stillhouse("predict", NAME, str(points))
    assert code == 0
    assert table.split()[:5] == ["input", "x", "y", "class", "probability"]
    assert table.count("points.csv") == 2
    assert stillhouse("export", NAME, "--to", "safetensors", "--out", "out")[0] == 0
    assert stillhouse("predict", "out", str(points)) == (0, table, "")
    points.write_text("0.1\n")
    code, _, err = stillhouse("predict", "out", str(points))
    assert (code, err) == (2, f"error: {points}: expected lines of x,y (got 1 columns)\n")
    code, _, err = stillhouse("predict", "out", "nothing.csv")
    assert (code, err) == (2, "error: nothing.csv not found; give existing files\n")
    points.write_text("0.1,0.2\n")
    code, _, err = stillhouse("predict", "out", str(points), "--labels", "a,b")
    assert code == 2
    assert "--labels" in err
    code, out, _ = stillhouse("predict", "out", "--format", "json", str(points))
    assert (code, len(json.loads(out))) == (0, 1)


def test_damage_and_missing_data_are_one_line(stillhouse, ran, project) -> None:
    weights = ran / "teacher" / "teacher" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    shutil.rmtree(ran / "kd-0")
    for words, told in (
        (["run", NAME], f"error: {weights.parent}: its bytes differ from the digest in stage.json"),
        (["run", NAME, "--scale", "small"], f"error: 'data:points.csv': {project}/data/points.csv"),
        (["run", NAME, "--device", "tpu"], "error: --device tpu: torch "),
    ):
        code, _, err = stillhouse(*words)
        assert code == 2
        assert err.startswith(told)
        assert err.count("\n") == 1


RECIPE_WITH_LAMBDA = """
from stillhouse.domain import Domain
from stillhouse.recipe import Recipe
from stillhouse.settings import Settings
from stillhouse.stages.make import Make

domain = Domain(name="wild", summary="A lambda", recipes={"r": "wild_plugin:recipe"})


def recipe(settings: Settings) -> Recipe:
    make = Make(name="data", make=lambda inputs, rng: {}, inputs={}, ports=("train",))
    return Recipe(name="r", reference="", stages=(make,))
"""


def test_a_recipe_with_a_lambda_is_refused_with_its_place(stillhouse, site) -> None:
    (site / "wild_plugin.py").write_text(RECIPE_WITH_LAMBDA)
    declare(site, "wild", "stillhouse.domains", {"wild": "wild_plugin:domain"})
    code, _, err = stillhouse("run", "wild/r")
    assert code == 2
    assert err == (
        "error: recipe 'wild/r'.stages[0].make: a lambda cannot be hashed; "
        "move it to a module-level function or a frozen dataclass\n"
    )


def test_interrupted_says_how_to_go_on(stillhouse, project) -> None:
    interrupt = threading.Thread(target=interrupt_when_training, args=(project,))
    interrupt.start()
    code, out, err = stillhouse("run", NAME, "--set", "steps=1000000", "--no-report")
    interrupt.join()
    assert code == 130
    assert "stage data: done in " in out
    assert err == (
        "\nInterrupted; what is finished is kept. "
        f"Go on with: stillhouse run {NAME} --set steps=1000000\n"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), f"{NAME}: --fast needs a setting 'precision', and this recipe has none"),
        (("--set", "precision=bf16"), "--fast is --set precision=fast; leave out one of the two"),
    ],
)
def test_fast_is_a_precision_that_a_recipe_must_have(stillhouse, project, words, reason) -> None:
    code, _, err = stillhouse("run", NAME, "--fast", *words)
    assert (code, err) == (2, f"error: {reason}\n")


def interrupt_when_training(project: Path) -> None:
    """Ctrl-C for this process, once the teacher's stage writes its folder aside."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(project.glob("runs/*/*/*/.teacher.*")):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.05)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillhouse", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_processes_share_a_training_and_their_error_comes_back(project) -> None:
    # of the teacher, where it is frozen, each holds a part
    share = ("--nproc", "2", "--shard", "teacher")
    done = command("run", NAME, "--set", "steps=20", *share, "--no-report")
    assert done.returncode == 0, done.stderr
    assert "stage kd-0: step 20/20 loss " in done.stdout
    folder = next((project / "runs" / NAME).iterdir())
    shares = {
        stage: json.loads((folder / f"{stage}.run.json").read_text())["nproc"]
        for stage in ("data", "teacher", "kd-0", "kd-0-scores")
    }
    assert shares == {"data": 1, "teacher": 2, "kd-0": 2, "kd-0-scores": 1}
    failed = command("run", NAME, "--set", "steps=21", "--nproc", "3", "--no-report")
    assert failed.returncode == 2
    assert failed.stderr == (
        "error: stage 'teacher': batch 64 cannot be split over 3 processes; choose a multiple\n"
    )


def test_roles_that_cannot_be_shared_are_one_line(project) -> None:
    recipe = make_recipe(NAME, make_settings(NAME, "tiny", {}))
    with pytest.raises(
        BadSetting, match=r"^--shard teacher: one process has nobody to share with; add --nproc 2$"
    ):
        check_shard(["teacher"], 1, recipe.stages)
    for name in ("student", "teachr"):  # one that is trained wherever it is
        with pytest.raises(UnknownName, match=f"^--shard: unknown frozen role '{name}'"):
            check_shard([name], 2, recipe.stages)
    check_shard(["teacher"], 2, recipe.stages)
    check_shard([], 1, recipe.stages)


MOUNTS = {
    "mount -t tmpfs -o size=24k tmpfs '{}'": "no space left on the device",
    "mount --bind '{0}' '{0}' && mount -o remount,ro,bind '{0}'": "the file system is read-only",
}


@pytest.mark.parametrize("mount", MOUNTS)
def test_what_the_disk_refuses_is_one_line(project, mount: str) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs `unshare -rm` to mount a small or read-only file system")
    run = f"'{sys.executable}' -m stillhouse run {NAME} --no-report"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount.format(project)} && exec {run}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {project}/runs")
    assert MOUNTS[mount] in done.stderr
    assert done.stderr.count("\n") == 1


def test_how_many_micro_batches_is_read_from_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And from the name that the variable had before."""
    target = make_target("spirals/distill")
    assert target.runs().micro_batches == 1
    monkeypatch.setenv("STILLHOUSE_SLICES", "2")
    assert target.runs().micro_batches == 2
    monkeypatch.setenv("STILLHOUSE_MICRO_BATCHES", "4")
    assert target.runs().micro_batches == 4
    monkeypatch.setenv("STILLHOUSE_MICRO_BATCHES", "0")
    with pytest.raises(BadSetting, match="STILLHOUSE_MICRO_BATCHES=0: expected a whole number"):
        target.runs()
