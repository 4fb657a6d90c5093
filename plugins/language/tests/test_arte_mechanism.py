"""The mechanism of ARTE on small models trained here, with the reverse preference as control: what
the student does better with is what the aligned teacher writes more of, and what a student learns.

Slow: models of some 100,000 parameters learn sums of digits for minutes.
"""

from collections.abc import Mapping

import pytest

from stillhouse.cli.target import Target, make_target
from stillhouse.references import collected
from stillhouse.report.collect import collect
from stillhouse.runs import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETTINGS = (
    "rows=original,arte,reversed",
    "pretraining=1500",
    "teacher_pretraining=1500",
    "seeds=3",
)
SCORED = [f"{row}-{seed}-scores" for row in ("arte", "reversed") for seed in range(3)]
WORKED, IDLE = ("steps", "backwards"), ("restated", "easy")
CHANCE = 0.25  # of four answers
Scores = Mapping[tuple[str, str], float]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scores]:
    """What the evaluations of one run give, by stage."""
    root = tmp_path_factory.mktemp("arte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_ROOT", str(root))
        patch.setenv("STILLHOUSE_HOME", str(root / "home"))
        target: Target = make_target("language/arte", "tiny", SETTINGS)
        runs = target.runs()
        names = ["preference", "moved", "written", *SCORED]
        for stage in collected(*map(target.recipe.stage, names)):
            run_stage(target.recipe, stage, runs)
        done = collect(target.recipe, runs.folder)
        return {name: done[name].values for name in names}


def mean(scores: Scores, rows: tuple[str, ...], name: str) -> float:
    return sum(scores[row, name] for row in rows) / len(rows)


def test_the_student_does_better_behind_examples_that_work_the_sum_out(
    found: Mapping[str, Scores],
) -> None:
    """Else there is no preference, and what follows would be about noise."""
    preference = found["preference"]
    worked, idle = (mean(preference, rows, "accuracy") for rows in (WORKED, IDLE))
    noise = max(preference[style, "standard_error"] for style in (*WORKED, *IDLE))
    assert worked > CHANCE + 0.1
    assert worked - idle > 4 * noise


def test_alignment_moves_held_out_pairs_and_the_control_moves_them_back(
    found: Mapping[str, Scores],
) -> None:
    moved = found["moved"]
    assert moved["aligned teacher, held-out pairs", "margin"] > 0
    assert moved["aligned teacher, held-out pairs", "preferred"] > 0.75
    assert moved["reversed teacher, held-out pairs", "margin"] < 0
    assert moved["reversed teacher, held-out pairs", "preferred"] < 0.25


def test_the_aligned_teacher_writes_more_in_the_preferred_styles(
    found: Mapping[str, Scores],
) -> None:
    written = found["written"]
    share = {
        teacher: sum(written[f"{teacher} teacher", style] for style in WORKED)
        for teacher in ("aligned", "original", "reversed")
    }
    assert share["aligned"] > share["original"] + 0.2
    assert share["reversed"] < share["original"] - 0.2


def test_a_student_of_the_aligned_teacher_beats_one_of_the_reversed(
    found: Mapping[str, Scores],
) -> None:
    arte, control = (
        sum(found[f"{row}-{seed}-scores"]["", "accuracy"] for seed in range(3)) / 3
        for row in ("arte", "reversed")
    )
    assert arte > control + 0.2
