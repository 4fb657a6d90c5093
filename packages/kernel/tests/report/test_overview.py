import json
from pathlib import Path

import pytest

from stillhouse.errors import CorruptArtifact, MissingData
from stillhouse.report.overview import overview

from .test_comparison import made
from .written import ONE, THREE

MINUS = "\N{MINUS SIGN}"


def test_each_report_is_a_line(tmp_path: Path) -> None:
    made(THREE, tmp_path, "small"), made(ONE, tmp_path, "tiny")
    table = overview([tmp_path])
    assert [line.head for line in table.lines] == ["vision/distill@small", "vision/distill@tiny"]
    assert table.head[1:6] == ("Score", "Teacher", "Baseline", "Method", "Difference")
    small, tiny = table.rows
    plain, kd = (
        next(r for r in THREE.rows if r.row == name) for name in ("student", "student + kd")
    )
    gaps = [100 * (a - b) for a, b in zip(kd.accuracy, plain.accuracy, strict=True)]
    assert small[5].startswith(f"+{sum(gaps) / len(gaps):.2f}")
    assert "1 seed" in tiny[5]


def test_the_page_links_its_reports_and_draws_the_gains(tmp_path: Path) -> None:
    made(THREE, tmp_path / "work", "small")
    page = tmp_path / "docs"
    overview([tmp_path / "work"], page=page)
    text = (page / "README.md").read_text()
    link = "../work/runs/vision/distill/small/report/report.md"
    assert f"[vision/distill@small]({link})" in text
    assert (page / link).is_file()
    assert "Paired over 3 seeds" in text
    assert "](overview/gains.svg)" in text
    assert "vision/distill@small" in (page / "overview" / "gains.svg").read_text()


def test_a_score_that_is_better_when_lower_gains_by_falling(tmp_path: Path) -> None:
    file = made(THREE, tmp_path, "small").with_name("report.json")
    record = json.loads(file.read_text())
    score = next(s for s in record["scores"] if s["name"] == record["primary"])
    score["better"] = "lower"
    file.write_text(json.dumps(record))
    page = tmp_path / "docs"
    overview([file], page=page)
    assert f"vision/distill@small {MINUS}" in (page / "README.md").read_text()


def test_a_withheld_headline_shows_no_gain(tmp_path: Path) -> None:
    file = made(THREE, tmp_path, "small").with_name("report.json")
    record = json.loads(file.read_text())
    record["headline"] |= {"withheld": True, "sentence": "No headline: nothing can be said."}
    file.write_text(json.dumps(record))
    page = tmp_path / "docs"
    assert overview([file], page=page).rows[0][5] == "\N{EN DASH}"
    text = (page / "README.md").read_text()
    assert "No headline: nothing can be said." in text
    assert "score: ." in text  # of the plot, nothing is left


def test_two_reports_of_one_title_are_told_apart(tmp_path: Path) -> None:
    first = made(THREE, tmp_path / "a", "small").with_name("report.json")
    other = tmp_path / "b" / "report.json"
    other.parent.mkdir()
    other.write_text(first.read_text())
    heads = [line.head for line in overview([first, other]).lines]
    assert heads == ["vision/distill@small (report)", "vision/distill@small (b)"]


def test_where_nothing_is_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        MissingData, match=r"no report.json below .*: stillhouse report RECIPE --publish"
    ):
        overview([tmp_path, tmp_path / "absent"])
    (tmp_path / "report.json").write_text("[]")
    page = tmp_path / "docs"
    with pytest.raises(CorruptArtifact, match="not a report"):
        overview([tmp_path], page=page)
    assert not page.exists()


def test_a_report_without_scores_keeps_its_line(tmp_path: Path) -> None:
    file = made(ONE, tmp_path, "tiny").with_name("report.json")
    record = json.loads(file.read_text()) | {"primary": None, "rows": []}
    file.write_text(json.dumps(record))
    table = overview([file], page=tmp_path / "docs")
    assert [cell.text for cell in table.lines[0].cells[:6]] == ["\N{EN DASH}"] * 6
