import dataclasses
import json
from pathlib import Path

import pytest
from scipy import stats

from stillhouse.errors import BadSetting
from stillhouse.report import compare, report
from stillhouse.runs import Runs

from .written import ONE, THREE, Story, write_run


def made(story: Story, root: Path, variant: str) -> Path:
    runs = Runs(root=root, recipe="vision/distill", variant=variant)
    return report(write_run(story, runs.folder), runs)


def test_two_reports_are_compared_row_by_row(tmp_path: Path) -> None:
    better = tuple(
        dataclasses.replace(s, accuracy=tuple(a + 0.02 for a in s.accuracy)) for s in THREE.rows
    )
    story = dataclasses.replace(THREE, rows=better, settings={"seeds": 3, "temperature": 2.0})
    one, two = made(THREE, tmp_path, "small"), made(story, tmp_path, "small-12345678")
    found = compare([one, two])
    assert found.names == ("vision/distill@small", "vision/distill@small-12345678")
    kd = next(c for c in found.rows if (c.row, c.score.name) == ("student + kd", "accuracy"))
    assert kd.difference is not None
    expected = stats.ttest_ind(better[1].accuracy, THREE.rows[1].accuracy, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (kd.difference.low, kd.difference.high) == pytest.approx((low, high))
    assert {c.what: c.values for c in found.changes} == {
        "setting objective": ('["kd", "dkd"]', "\N{EN DASH}"),
        "setting temperature": ("\N{EN DASH}", "2.0"),
    }
    scores, changes = found.tables()
    line = next(row for row in scores.rows if row[0] == "student + kd: Accuracy, %")
    assert line[3].startswith("+2.00 (+1.7")
    assert changes.head == ("Fact", *found.names)


def test_a_row_that_only_one_has_shows_a_gap(tmp_path: Path) -> None:
    found = compare([made(ONE, tmp_path, "tiny"), made(THREE, tmp_path, "small").parent])
    dkd = [c for c in found.rows if c.row == "student + dkd"]
    assert dkd
    assert all(c.values[0] is None and c.difference is None for c in dkd)


def test_a_report_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    page = made(THREE, tmp_path, "small")
    found = compare([page, page.with_name("report.json")])
    assert found.changes == ()
    assert len(found.tables()) == 1
    assert all(c.difference is not None and c.difference.mean == 0 for c in found.rows)
    assert len(set(found.names)) == 2


def test_one_report_is_not_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="at least two reports are needed"):
        compare([tmp_path])


def test_environments_that_differ_are_named(tmp_path: Path) -> None:
    page = made(ONE, tmp_path, "tiny")
    other = tmp_path / "other"
    other.mkdir()
    record = json.loads(page.with_name("report.json").read_text())
    record["environments"][0]["values"]["torch"] = "2.14.0"
    (other / "report.json").write_text(json.dumps(record))
    changes = compare([page, other]).changes
    assert [(c.what, c.values) for c in changes] == [("torch", ("2.13.0", "2.14.0"))]
