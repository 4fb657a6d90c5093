"""What a search costs: work by hand, and how measured and computed seconds hang together."""

from typing import Any

import pytest
import torch

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search.cost import Contest, SearchTime, SearchWork
from stillhouse.search.scores import DisWOT
from stillhouse.work import Work

from .networks import small
from .test_trained import Widths, stripes, trained


def contest(**changes: Any) -> Contest:
    given = {
        "space": Widths(),
        "score": DisWOT(batch=8, inits=2, references=3),
        "trained": trained(steps=6),
        "trials": 100,
        "schedules": {"here": 6, "long": 600},
    }
    return Contest(**{**given, **changes})


def times(contest: Contest) -> dict[str, float]:
    data = stripes(50, 0)
    with torch.no_grad():  # as an evaluation runs it
        teacher = small(0).eval().requires_grad_(False)
        measure = SearchTime(contest=contest, candidates=2, timed_steps=4)
        return dict(measure({"teacher": teacher}, data, work=Work()))


def test_work_by_hand():
    assert SearchWork(contest=contest())({}, stripes(5, 0), work=Work()) == {
        ("diswot", "images"): 2 * 8,
        ("here", "images"): 6 * 10,
        ("long", "images"): 600 * 10,
    }


def test_a_whole_training_is_measured_and_a_longer_one_computed_from_it():
    found = times(contest(whole="here"))
    assert min(found.values()) > 0
    assert found["long", "candidate_seconds"] == pytest.approx(
        100 * found["here", "candidate_seconds"]
    )
    for line in ("diswot", "here", "long"):
        assert found[line, "search_seconds"] >= 100 * found[line, "candidate_seconds"]
        assert found[line, "speedup"] == pytest.approx(
            found[line, "search_seconds"] / found["diswot", "search_seconds"]
        )


def test_without_a_whole_training_all_are_computed_from_seconds_a_step():
    found = times(contest())
    assert found["here", "candidate_seconds"] >= 0
    assert found["long", "candidate_seconds"] == pytest.approx(
        100 * found["here", "candidate_seconds"]
    )
    assert found["long", "search_seconds"] == pytest.approx(
        100 * found["long", "candidate_seconds"]
    )


def test_contests_that_cannot_be_say_so():
    with pytest.raises(UnknownName, match="contest of searches: unknown schedule 'her'"):
        contest(whole="her")
    with pytest.raises(BadSetting, match="'long' is trained here: its 600 steps must be the score"):
        contest(whole="long")
    with pytest.raises(BadSetting, match=r"trials >= 1 and a schedule \(got 0 and 2\)"):
        contest(trials=0)
    with pytest.raises(BadSetting, match=r"timed_steps >= 2 \(got 3 and 1\)"):
        SearchTime(contest=contest(), timed_steps=1)
