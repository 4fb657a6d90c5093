"""The cross-validation and the transfer: what they train, how they resume, what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.recipe import Context, Event, silent
from stillhouse.work import Work
from stillhouse_contracts.folds import CrossValidation, Lesson
from stillhouse_contracts.models import model
from stillhouse_contracts.tokens import IDS
from stillhouse_contracts.transfer import Transfer

TYPES = ("a",)
LENGTH = 8


class KilledError(BaseException):
    """The death of a stage."""


def spec(types: tuple[str, ...] = TYPES) -> Any:
    small = {"width": 8, "heads": 2, "slots": 3}
    return model("stip", types=types, length=LENGTH, vectors=8, **small)


def data(rows: int = 60) -> TensorData:
    """Texts that have the type where they have a call; each text twice, in two contracts."""
    rng = torch.Generator().manual_seed(0)
    half = torch.randint(20, 60, (rows // 2, LENGTH), generator=rng)
    truth = torch.arange(rows // 2) % 2 == 0
    half[truth, 3], half[~truth, 3] = IDS["call"], IDS["now"]
    labels = truth.float()[:, None]
    return TensorData(
        {
            "tokens": half.repeat(2, 1),
            "labels": labels.repeat(2, 1),
            "novel": labels.repeat(2, 1),
            "group": torch.arange(rows // 2).repeat(2),
            "contract": torch.arange(rows) % 10,
        }
    )


FOLDS = CrossValidation(
    types=TYPES,
    learners=("student", "logistic"),
    lessons={"student": Lesson(model=spec(), lr=1e-2, steps=8)},
    folds=3,
    seeds=1,
    batch=16,
)


def test_rows_are_learners_by_split() -> None:
    found = FOLDS({}, data(), work=Work.seeded(0))
    rows = list(dict.fromkeys(row for row, _ in found))
    assert rows == list(FOLDS.rows())
    assert rows[:3] == ["student, by text", "student, by contract", "student, by random"]
    assert {name for _, name in found} == {score.name for score in FOLDS.scores()}
    assert found["student, by text", "trainings"] == 3
    assert all(0 <= value <= 1 for (_, name), value in found.items() if name != "trainings")
    # one token tells
    assert found["logistic, by text", "macro_f1"] > 0.8


def test_copies_on_both_sides_are_remembered_by_a_random_split_alone() -> None:
    """Labels by chance: nothing can be learned but the texts, which stand twice in the data."""
    rng = torch.Generator().manual_seed(1)
    columns = dict(data(120).columns)
    tokens = torch.randint(20, 200, (60, LENGTH), generator=rng).repeat(2, 1)
    labels = (torch.rand(60, 1, generator=rng) < 0.5).float().repeat(2, 1)
    table = TensorData({**columns, "tokens": tokens, "labels": labels})
    metric = replace(FOLDS, learners=("logistic",), folds=4, seeds=2)
    found = metric({}, table, work=Work.seeded(0))
    by_text = found["logistic, by text", "macro_auc"]
    assert found["logistic, by random", "macro_auc"] > by_text + 0.2


def test_a_killed_stage_goes_on_behind_the_last_training(tmp_path: Path) -> None:
    whole = FOLDS({}, data(), work=Work.seeded(3))
    seen: list[str] = []

    def dies(event: Event) -> None:
        seen.append(event.text)
        if len(seen) == 4:
            raise KilledError

    def work(observe: Any) -> Work:
        ctx = Context(
            stage="folds", out=tmp_path, checkpoints=tmp_path, caches=tmp_path, observe=observe
        )
        return Work.seeded(3, ctx=ctx, kept=tmp_path / "kept")

    with pytest.raises(KilledError):
        FOLDS({}, data(), work=work(dies))
    done = {folder.name: folder.stat().st_mtime_ns for folder in _kept(tmp_path)}
    assert len(done) == 4
    assert FOLDS({}, data(), work=work(silent)) == whole
    after = {folder.name: folder.stat().st_mtime_ns for folder in _kept(tmp_path)}
    assert len(after) == 18
    assert {name: after[name] for name in done} == done, "what was done is not done again"


def _kept(root: Path) -> list[Path]:
    return list((root / "kept" / "many").iterdir())


def test_a_type_with_fewer_functions_than_folds_is_refused() -> None:
    few = data(8)  # four texts, two of which have it
    with pytest.raises(BadData, match="type 'a': 2 distinct functions have it, and 3 folds need"):
        FOLDS({}, few, work=Work.seeded(0))
    with pytest.raises(BadSetting, match="folds must be >= 2"):
        replace(FOLDS, folds=1)


def test_kd_in_a_fold_trains_its_teacher_there() -> None:
    lessons = {**FOLDS.lessons, "teacher": Lesson(model=spec(), lr=1e-2, steps=4)}
    metric = replace(FOLDS, learners=("kd",), lessons=lessons, splits=("text",))
    found = metric({}, data(), work=Work.seeded(0))
    assert list(metric.rows()) == ["kd, by text"]
    assert found["kd, by text", "trainings"] == 3


def moved(**changes: Any) -> tuple[Transfer, Work, dict[str, nn.Module]]:
    torch.manual_seed(0)
    student = spec().new().eval().requires_grad_(False)
    given: dict[str, Any] = {"shots": (4, 8), "seeds": 2, "steps": 6, **changes}
    metric = Transfer(model=spec(("new",)), **given)
    return metric, replace(Work.seeded(0), data={"train": data()}), {"student": student}


def test_transfer_has_a_row_a_way_and_number_of_labels() -> None:
    metric, work, models = moved()
    before = {k: v.clone() for k, v in models["student"].state_dict().items()}
    found = metric(models, data(), work=work)
    assert list(dict.fromkeys(row for row, _ in found)) == [
        "4 labels, frozen", "4 labels, whole", "4 labels, scratch",
        "8 labels, frozen", "8 labels, whole", "8 labels, scratch",
    ]  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in models["student"].state_dict().items())
    assert metric(models, data(), work=work.again()) == found


def test_frozen_layers_stay_those_of_the_student() -> None:
    metric, work, models = moved(shots=(4,), seeds=1)
    networks: dict[str, Any] = {}
    old = Transfer.moved

    def kept(self: Transfer, student: nn.Module, way: str, work: Work) -> nn.Module:
        networks[way] = old(self, student, way, work)
        return networks[way]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transfer, "moved", kept)
        metric(models, data(), work=work)
    student = models["student"].state_dict()
    for way, same in (("frozen", True), ("whole", False), ("scratch", False)):
        state = networks[way].state_dict()
        assert torch.equal(state["enter.weight"], student["enter.weight"]) is same
        assert not torch.equal(state["hidden.weight"], student["hidden.weight"])
        assert state["head.weight"].shape == (1, 8)


def test_more_labels_than_there_are_functions_are_left_out_and_named() -> None:
    metric, work, models = moved(shots=(4, 128), seeds=1)
    found = metric(models, data(), work=work)
    assert {row.split(" ")[0] for row, _ in found} == {"4"}
    assert metric.uncounted(models, data(), work=work) == {"f1": ["128 labels: too few"]}
    metric, work, models = moved(shots=(128,), seeds=1)
    with pytest.raises(BadData, match="too few functions with and without the new type"):
        metric(models, data(), work=work)
    with pytest.raises(BadSetting, match="shots must be >= 2"):
        moved(shots=(1,))
