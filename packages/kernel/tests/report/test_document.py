"""What a report says of a written run."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from stillhouse.errors import BadData, CorruptArtifact, MissingData
from stillhouse.report import load, report, results
from stillhouse.report.build import build
from stillhouse.report.document import Document
from stillhouse.report.lineage import data_version
from stillhouse.runs import Runs

from .written import ONE, THREE, Scored, Story, write_run


def document_of(story: Story, root: Path, *, without: tuple[str, ...] = ()) -> Document:
    runs = Runs(root=root, recipe="vision/distill", variant="small")
    return build(write_run(story, runs.folder, without=without), runs.recipe, root, runs.folder)


def story_of(plain: tuple[float, ...], kd: tuple[float, ...]) -> Story:
    rows = (
        Scored(row="student", prefix="plain", accuracy=plain),
        Scored(row="student + kd", prefix="kd", accuracy=kd),
    )
    return Story(rows=rows, export=False)


def test_rows_hold_means_and_paired_differences(tmp_path: Path) -> None:
    document = document_of(THREE, tmp_path)
    assert document.primary == "accuracy"
    assert [row.kind for row in document.rows] == ["teacher", "baseline", "student", "student"]
    kd = document.row("student + kd")
    assert kd is not None
    assert kd.scores["accuracy"].mean == pytest.approx((0.8871 + 0.8866 + 0.8889) / 3)
    gap = kd.differences["accuracy"]
    # differences 0.0159, 0.0172, 0.0144
    assert (gap.how, gap.n) == ("paired", 3)
    assert gap.mean == pytest.approx(0.0475 / 3)
    assert gap.low == pytest.approx(0.0475 / 3 - 4.302653 * 0.001401190 / 3**0.5, abs=1e-8)
    teacher = document.row("teacher")
    assert teacher is not None
    assert teacher.differences["accuracy"].how == "means"


def test_a_compressed_row_is_held_against_the_baseline(tmp_path: Path) -> None:
    *rows, last = THREE.rows
    small = dataclasses.replace(last, row="teacher's student, int8", kind="compressed")
    document = document_of(dataclasses.replace(THREE, rows=(*rows, small)), tmp_path)
    row = document.row("teacher's student, int8")
    assert row is not None
    assert (row.kind, row.differences["accuracy"].how) == ("compressed", "paired")
    assert document.headline.detail[-1] == (
        "The other row: no difference beyond noise for teacher's student, int8."
    )


def test_headline_of_a_gain(tmp_path: Path) -> None:
    headline = document_of(THREE, tmp_path).headline
    assert headline.sentence == (
        "Student + kd gains 1.58 points of accuracy over student (87.17 to 88.75 %)."
    )
    assert headline.detail[0] == (
        "Paired over 3 seeds: +1.58 points, 95 % interval +1.24 to +1.93 (p 0.0026)."
    )
    assert headline.detail[1] == (
        "The teacher reaches 92.14 %, 3.39 points above the student; 32 % of its lead over student "
        "is closed."
    )
    assert headline.detail[2] == (
        "The student has 3.1 times fewer parameters and needs 32 % of the teacher's MACs."
    )
    assert headline.detail[-1] == "The other row: no difference beyond noise for student + dkd."


@pytest.mark.parametrize(
    ("plain", "kd", "sentence"),
    [
        (
            (0.80, 0.84),
            (0.81, 0.84),
            "No difference beyond noise between student + kd and student.",
        ),
        (
            (0.80, 0.81),
            (0.70, 0.71),
            "Student + kd loses 10.00 points of accuracy against student (80.50 to 70.50 %).",
        ),
        ((0.80,), (0.81,), "Student + kd is 1.00 points of accuracy ahead of student, on 1 seed."),
        ((0.80,), (0.79,), "Student + kd is 1.00 points of accuracy behind student, on 1 seed."),
        ((0.80,), (0.80,), "Student + kd and student score the same on 1 seed."),
    ],
)
def test_headlines(
    tmp_path: Path, plain: tuple[float, ...], kd: tuple[float, ...], sentence: str
) -> None:
    assert document_of(story_of(plain, kd), tmp_path).headline.sentence == sentence


def test_one_seed_invents_no_interval(tmp_path: Path) -> None:
    document = document_of(ONE, tmp_path)
    line = results(document).rows[2]
    assert line[:3] == ("student + kd", "88.00", "+1.00 (1 seed)")
    assert (
        document.headline.detail[0] == "With 1 seed there is no interval: chance is not ruled out."
    )


def test_unfinished_stages_are_named(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    recipe = write_run(THREE, runs.folder, without=("kd-2", "kd-2-scores"))
    with pytest.raises(MissingData) as caught:
        report(recipe, runs)
    assert str(caught.value) == (
        "report of vision/distill@small: 2 stages have not run: kd-2, kd-2-scores. "
        "Run: stillhouse run vision/distill@small"
    )
    assert not (runs.folder / "report").exists()


def test_a_partial_report_pairs_the_seeds_that_both_have(tmp_path: Path) -> None:
    document = document_of(THREE, tmp_path, without=("kd-1-scores", "export"))
    assert document.missing == ("kd-1-scores", "export")
    kd = document.row("student + kd")
    assert kd is not None
    gap = kd.differences["accuracy"]
    assert (gap.n, gap.mean) == (2, pytest.approx((0.0159 + 0.0144) / 2))
    assert [seed.stage for seed in kd.seeds] == ["kd-0-scores", "kd-2-scores"]


def test_nothing_finished_says_so(tmp_path: Path) -> None:
    names = tuple(stage.name for stage in THREE.recipe().stages)
    document = document_of(THREE, tmp_path, without=names)
    assert document.headline.sentence == "Nothing has been evaluated yet."
    assert (document.primary, document.stages, document.missing) == (None, (), names)


def test_costs_of_a_lost_or_foreign_run_record_are_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "vision/distill" / "small"
    recipe = write_run(ONE, folder)
    (folder / "teacher.run.json").unlink()
    other = json.loads((folder / "kd-0.run.json").read_text()) | {"key": "of another run"}
    (folder / "kd-0.run.json").write_text(json.dumps(other))
    document = build(recipe, "vision/distill", tmp_path, folder)
    seconds = {stage.name: stage.seconds for stage in document.stages}
    assert (seconds["teacher"], seconds["kd-0"], seconds["plain-0"]) == (None, None, 212.4)


def test_scores_that_a_digest_covers_win_over_the_file_beside(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "vision/distill" / "small"
    recipe = write_run(ONE, folder)
    before = build(recipe, "vision/distill", tmp_path, folder).row("teacher")
    beside = folder / "teacher-scores.scores.json"
    changed = json.loads(beside.read_text()) | {"accuracy": 0.999, "latency_b1_ms": 77.0}
    beside.write_text(json.dumps(changed))
    after = build(recipe, "vision/distill", tmp_path, folder).row("teacher")
    assert before is not None
    assert after is not None
    assert after.scores["accuracy"] == before.scores["accuracy"]
    assert after.scores["latency_b1_ms"].mean == 77.0


def test_curves_belong_to_the_row_that_evaluates_them(tmp_path: Path) -> None:
    curves = {curve.stage: curve for curve in document_of(ONE, tmp_path).curves}
    assert {name: curve.row for name, curve in curves.items()} == {
        "teacher": "teacher",
        "plain-0": "student",
        "kd-0": "student + kd",
    }
    assert list(curves["kd-0"].columns) == ["step", "loss", "ce", "kd"]
    assert curves["kd-0"].columns["step"][:2] == (0.0, 12.0)


def test_a_run_that_belongs_together_is_not_stale(tmp_path: Path) -> None:
    assert document_of(ONE, tmp_path).lineage.stale == ()


def test_stale_stages_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    recipe = write_run(ONE, folder)
    file = folder / "teacher" / "stage.json"
    record = json.loads(file.read_text())
    record["outputs"]["teacher"]["digest"] = "0" * 64
    file.write_text(json.dumps(record))
    stale = build(recipe, "vision/distill", tmp_path, folder).lineage.stale
    assert "kd-0 was made from another teacher.teacher than the one here." in stale
    changed = dataclasses.replace(recipe.stage("kd-0"), seed=7)  # type: ignore[type-var]
    stages = [changed if s.name == "kd-0" else s for s in recipe.stages]
    other = dataclasses.replace(recipe, stages=stages)
    stale = build(other, "vision/distill", tmp_path, folder).lineage.stale
    assert stale[0] == "Run with other code or settings than this checkout has: kd-0."


def test_versions_come_from_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("outs:\n- md5: abc.dir\n  path: data\n")
    (tmp_path / "uv.lock").write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x", "--no-gpg-sign"]):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    lineage = document_of(ONE, tmp_path).lineage
    assert (lineage.data, lineage.changed) == ("abc.dir", False)
    assert document_of(ONE, tmp_path).read == ("data:photos",)
    assert lineage.commit is not None
    assert len(lineage.commit) == 40
    assert lineage.lock == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "uv.lock").write_text("changed")
    document = document_of(ONE, tmp_path)
    assert document.lineage.changed
    assert document.commands[0] == f"git checkout {lineage.commit}"


def test_a_broken_data_dvc_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.dvc"
    file.write_text("outs: 3\n")
    with pytest.raises(BadData, match=f"{file}: not a DVC file"):
        data_version(file)
    assert data_version(tmp_path / "none.dvc") is None


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("teacher/stage.json", "{", "Invalid JSON"),
        ("teacher.run.json", '{"key": 1}', "key"),
        ("teacher-scores.scores.json", '{"accuracy": "high"}', "accuracy"),
        ("teacher.curves.tsv", "step\tloss\n1\tx\n", "could not convert"),
    ],
)
def test_an_unreadable_record_is_named(tmp_path: Path, name: str, text: str, found: str) -> None:
    folder = tmp_path / "small"
    recipe = write_run(ONE, folder)
    (folder / name).write_text(text)
    with pytest.raises(CorruptArtifact, match=f"{folder / name}: cannot be read .*{found}"):
        build(recipe, "vision/distill", tmp_path, folder)


def test_report_json_gives_the_document_back(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    page = report(write_run(THREE, runs.folder), runs)
    document = build(THREE.recipe(), runs.recipe, tmp_path, runs.folder)
    assert load(page) == load(page.parent) == load(page.with_name("report.json")) == document
    record = page.with_name("report.json")
    older = json.loads(record.read_text())
    older["shipped"] = older.pop("exported")  # as it was called
    record.write_text(json.dumps(older))
    assert load(page) == document
    record.write_text(record.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(CorruptArtifact, match="schema 99, this version reads 2"):
        load(page)
    with pytest.raises(MissingData, match=r"report\.json not found\. Run: stillhouse report"):
        load(tmp_path)


def test_the_command_gives_the_settings_again(tmp_path: Path) -> None:
    story = dataclasses.replace(ONE, settings={"objective": ["kd", "dkd"], "note": "two words"})
    commands = document_of(story, tmp_path).commands
    assert commands[-1] == (
        "uv run stillhouse run vision/distill --scale small "
        "--set 'note=two words' --set objective=kd,dkd"
    )
    assert "uv run stillhouse data pull photos" in commands
