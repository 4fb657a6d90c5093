"""What the first sentence of a report is about, and when there is none."""

import dataclasses
from pathlib import Path

import pytest
from scipy import stats

from stillhouse.errors import UnknownName
from stillhouse.recipe import Bound
from stillhouse.report import report, results
from stillhouse.report.build import build
from stillhouse.report.document import Document, load
from stillhouse.report.statistics import Difference, holm, paired
from stillhouse.runs import Runs

from .written import COSTS, SPEED, Scored, Story, write_run

PLAIN = (0.47, 0.48, 0.46)
ROWS = (
    Scored(row="plain KD", prefix="plain", accuracy=PLAIN),
    Scored(row="KD3", prefix="kd", accuracy=(0.30, 0.31, 0.28)),
    Scored(row="confident", prefix="confident", accuracy=(0.48, 0.49, 0.461)),
    Scored(row="wide", prefix="wide", accuracy=(0.52, 0.53, 0.512)),
)
STORY = Story(rows=ROWS, method="KD3", export=False)
FILLED = Bound(name="the box, filled", stages=("teacher-scores",), score="accuracy")


def document_of(story: Story, root: Path, *, without: tuple[str, ...] = ()) -> Document:
    runs = Runs(root=root, recipe="vision/kd3", variant="small")
    return build(write_run(story, runs.folder, without=without), runs.recipe, root, runs.folder)


def differing(p: float | None) -> Difference:
    return Difference(how="paired", n=3, mean=1.0, low=0.5, high=1.5, p=p)


def test_p_of_a_paired_difference_is_that_of_the_t_test() -> None:
    ours, theirs = ROWS[2].accuracy, PLAIN
    assert paired(ours, theirs).p == pytest.approx(float(stats.ttest_rel(ours, theirs).pvalue))
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0.0  # the same gap twice: no error at all
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired([1.0], [2.0]).p is None


def test_holm_by_hand() -> None:
    # the smallest of three counts three times, the next twice; none is below the one before it
    gaps = holm([differing(0.02), differing(0.03), differing(None), differing(0.01)])
    assert [g.corrected for g in gaps] == [
        pytest.approx(0.04),
        pytest.approx(0.04),
        None,
        pytest.approx(0.03),
    ]
    assert holm([differing(0.7), differing(0.9)])[0].corrected == 1.0
    assert not holm([differing(0.03), differing(0.04)])[0].beyond_noise()
    assert differing(0.03).beyond_noise()


def test_the_method_s_loss_comes_first_and_a_better_row_does_not_hide_it(tmp_path: Path) -> None:
    headline = document_of(STORY, tmp_path).headline
    assert headline.sentence == (
        "KD3 loses 17.33 points of accuracy against plain KD (47.00 to 29.67 %)."
    )
    # gaps -17, -17, -18: t = -52 at two degrees of freedom
    assert headline.detail[0] == (
        "Paired over 3 seeds: \N{MINUS SIGN}17.33 points, 95 % interval \N{MINUS SIGN}18.77 to "
        "\N{MINUS SIGN}15.90 (p 0.00037)."
    )
    # p of confident is 0.13; wide's 0.0012 counts twice
    assert headline.detail[-1] == (
        "The other rows, corrected for their number (Holm): wide gains 5.07 points; "
        "no difference beyond noise for confident."
    )
    assert headline.detail[1] == "The teacher reaches 92.14 %, 62.47 points above the student."


def test_other_rows_are_marked_by_their_corrected_p(tmp_path: Path) -> None:
    document = document_of(STORY, tmp_path)
    table = results(document)
    lines = {line.head: line for line in table.lines}
    assert [line.note for line in table.lines] == ["", "", "the method", "", ""]
    gap, p = (table.head.index(name) - 1 for name in ("Difference, points", "p"))
    assert lines["KD3"].cells[gap].text == "\N{MINUS SIGN}17.33 *"
    assert (lines["KD3"].cells[p].text, lines["KD3"].cells[p].note) == ("0.00037", "")
    assert lines["wide"].cells[gap].text.endswith("*")
    wide = float(stats.ttest_rel(ROWS[3].accuracy, PLAIN).pvalue)
    assert float(lines["wide"].cells[p].text) == pytest.approx(2 * wide, rel=0.05)
    assert lines["wide"].cells[p].note == "Holm"
    assert not lines["confident"].cells[gap].text.endswith("*")


def test_a_recipe_without_a_method_says_what_every_row_does(tmp_path: Path) -> None:
    found = document_of(dataclasses.replace(STORY, method=""), tmp_path).headline
    assert found.sentence == (
        "Against plain KD, corrected for their number (Holm): KD3 loses 17.33 points; "
        "wide gains 5.07 points; no difference beyond noise for confident."
    )


def test_a_method_that_has_not_run_is_named(tmp_path: Path) -> None:
    without = tuple(f"kd-{seed}-scores" for seed in range(3))
    found = document_of(STORY, tmp_path, without=without).headline
    assert found.sentence == "KD3 has not been evaluated yet; plain KD reaches 47.00 % accuracy."


def test_no_headline_below_the_trivial_control(tmp_path: Path) -> None:
    story = dataclasses.replace(STORY, control=FILLED, teacher=0.62)
    document = document_of(story, tmp_path)
    assert document.headline.withheld
    assert document.headline.sentence == (
        "No headline: KD3 reaches 29.67 % accuracy, no better than the trivial control, "
        "the box, filled, with 62.00 %."
    )
    runs = Runs(root=tmp_path, recipe="vision/kd3", variant="small")
    page = report(write_run(story, runs.folder), runs)
    assert "Trivial control: the box, filled, 62.00 %." in page.with_name("report.md").read_text()
    assert "Against plain KD, points" not in page.read_text()
    assert load(page).control == document.control


def test_no_gain_is_claimed_over_a_baseline_below_the_control(tmp_path: Path) -> None:
    story = dataclasses.replace(STORY, control=FILLED, teacher=0.5, method="wide")
    assert document_of(story, tmp_path).headline.sentence == (
        "Wide reaches 52.07 % accuracy; plain KD is no better than the trivial control, "
        "the box, filled, so no gain over it is claimed."
    )


def test_no_headline_under_a_low_ceiling(tmp_path: Path) -> None:
    ceiling = Bound(
        name="a perfect detector",
        stages=("teacher-scores",),
        score="accuracy",
        counts=("top5_accuracy",),
    )
    low = dataclasses.replace(STORY, ceiling=ceiling, teacher=0.1)
    assert document_of(low, tmp_path).headline.sentence == (
        "No headline: on these test data a perfect detector reaches only 10.00 % accuracy "
        "(top-5 accuracy 0.21), so the scores say nothing about the models."
    )
    high = dataclasses.replace(low, teacher=0.95)
    assert not document_of(high, tmp_path / "high").headline.withheld
    other = dataclasses.replace(low, ceiling=dataclasses.replace(ceiling, score="nll_loss"))
    assert document_of(other, tmp_path / "other").ceiling is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "KD4"}, "recipe 'distill': unknown method's row 'KD4'. Did you mean 'KD3'?"),
        (
            {"control": Bound(name="x", stages=("teacher-score",), score="accuracy")},
            "control: unknown stage 'teacher-score'. Did you mean 'teacher-scores'?",
        ),
    ],
)
def test_a_recipe_refuses_what_it_does_not_have(change: dict[str, object], told: str) -> None:
    with pytest.raises(UnknownName) as caught:
        dataclasses.replace(STORY, **change).recipe()  # pyright: ignore[reportArgumentType]
    assert str(caught.value).startswith(told)


def test_students_that_cost_more_than_the_teacher_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document_of(STORY, tmp_path).costlier == ()
    monkeypatch.setitem(COSTS["student"], "macs", 1.5 * COSTS["teacher"]["macs"])
    # a tenth more is within what two timings of one network differ by
    monkeypatch.setitem(SPEED["student"], "latency_b1_ms", 1.09 * 8.42)
    found = document_of(STORY, tmp_path / "macs").costlier
    assert found == ("More MACs than the teacher: every student, 1.5\N{MULTIPLICATION SIGN}.",)
    monkeypatch.setitem(SPEED["student"], "latency_b1_ms", 16.84)
    found = document_of(STORY, tmp_path / "latency").costlier
    assert found[1] == (
        "More latency, batch 1 than the teacher: every student, 2.0\N{MULTIPLICATION SIGN}."
    )
