"""Which seeds of two rows are held against each other."""

import dataclasses
from pathlib import Path

import pytest

from stillhouse.export import Export
from stillhouse.recipe import Recipe
from stillhouse.report.build import build
from stillhouse.report.document import Document
from stillhouse.report.render import about_results
from stillhouse.report.statistics import Difference
from stillhouse.stages import Convert

from .written import THREE, write_run

KD = ("kd-0", "kd-1", "kd-2")


def reseeded(recipe: Recipe, *seeds: int) -> Recipe:
    """The recipe with other seeds of its row "student + kd"."""
    new = dict(zip(KD, seeds, strict=True))
    stages = [
        dataclasses.replace(s, seed=new[s.name]) if s.name in new else s  # type: ignore[type-var]
        for s in recipe.stages
    ]
    return dataclasses.replace(recipe, stages=stages)


def made(root: Path, *seeds: int, without: tuple[str, ...] = ()) -> Document:
    recipe = reseeded(write_run(THREE, root / "small", without=without), *seeds)
    return build(recipe, "vision/distill", root, root / "small")


def gap(document: Document, name: str = "student + kd") -> Difference:
    row = document.row(name)
    assert row is not None
    return row.differences["accuracy"]


def test_only_the_seeds_that_both_rows_have_are_paired(tmp_path: Path) -> None:
    document = made(tmp_path, 1, 2, 3)
    found = gap(document)
    # seeds 1 and 2: 88.71 - 86.94 and 88.66 - 87.45
    assert (found.how, found.n, found.apart) == ("paired", 2, 2)
    assert found.mean == pytest.approx((0.0177 + 0.0121) / 2)
    # means over other seeds do not differ by that: they are not named beside it
    assert "(" not in document.headline.sentence
    assert document.headline.detail[0].startswith("Paired over 2 seeds that both rows have: +1.49")
    assert (
        "Other seeds than student's: student + kd (2 shared, 2 not); only those that both have are "
        "compared."
    ) in about_results(document)


def test_rows_without_a_seed_in_common_are_not_paired(tmp_path: Path) -> None:
    document = made(tmp_path, 3, 4, 5)
    found = gap(document)
    assert (found.how, found.n) == ("welch", 3)
    assert found.mean == pytest.approx((0.8871 + 0.8866 + 0.8889 - 0.8712 - 0.8694 - 0.8745) / 3)
    assert document.headline.detail[0].startswith("Not paired, at least 3 seeds: +1.58")
    said = about_results(document)
    assert "No seed in common with student, so not paired: student + kd." in said
    assert "student + dkd" not in said


def test_rows_of_the_same_seeds_say_nothing_of_it(tmp_path: Path) -> None:
    document = made(tmp_path, 0, 1, 2)
    assert (gap(document).how, gap(document).n, gap(document).apart) == ("paired", 3, 0)
    said = about_results(document)
    assert "Other seeds" not in said
    assert "No seed in common" not in said


def test_the_order_of_the_seeds_does_not_matter(tmp_path: Path) -> None:
    found = gap(made(tmp_path, 2, 0, 1))
    assert (found.how, found.n) == ("paired", 3)
    # 88.71 - 87.45, 88.66 - 87.12, 88.89 - 86.94: the mean is that of any order, its spread is not
    assert found.mean == pytest.approx((0.0126 + 0.0154 + 0.0195) / 3)
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(4.3027 * 0.0034703 / 3**0.5, rel=1e-3)


def test_a_partial_run_of_other_seeds_has_a_headline(tmp_path: Path) -> None:
    without = ("kd-0-scores", "kd-2-scores", "plain-1-scores")
    document = made(tmp_path, 0, 1, 2, without=without)
    assert gap(document).how == "means"
    assert document.headline.detail[0] == (
        "A difference of means: the rows do not share their seeds."
    )
    # 88.66 against the mean of 87.12 and 87.45
    assert document.headline.sentence == (
        "Student + kd is 1.38 points of accuracy ahead of student, on 1 seed."
    )


def test_the_seed_is_that_of_the_training_behind_a_merge(tmp_path: Path) -> None:
    recipe = reseeded(write_run(THREE, tmp_path / "small"), 1, 2, 3)
    merges = {
        name: Convert(
            name=f"{name}-merged", convert=Export(), inputs={"student": f"{name}.student"}
        )
        for name in KD
    }
    stages: list[object] = []
    for stage in recipe.stages:
        name = stage.name.removesuffix("-scores")
        if stage.name != name and name in merges:
            inputs = {**stage.inputs, "student": f"{name}-merged.model"}
            stages += [merges[name], dataclasses.replace(stage, inputs=inputs)]  # type: ignore[type-var]
        else:
            stages.append(stage)
    merged = dataclasses.replace(recipe, stages=stages)  # type: ignore[arg-type]
    document = build(merged, "vision/distill", tmp_path, tmp_path / "small")
    assert (gap(document).how, gap(document).n, gap(document).apart) == ("paired", 2, 2)
