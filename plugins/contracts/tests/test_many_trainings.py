"""The cross-validation and the transfer: what they train, how they resume, what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
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
from stillhouse_contracts.folds import CrossValidation
from stillhouse_contracts.lessons import Counts, Lesson
from stillhouse_contracts.models import model
from stillhouse_contracts.splits import Split
from stillhouse_contracts.tokens import IDS
from stillhouse_contracts.training import distilled, supervised, taught
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
            "contract": torch.arange(rows) // max(1, rows // 10),
        }
    )


def lesson(**changes: Any) -> Lesson:
    given: dict[str, Any] = {
        "objective": supervised("student", 1e-2),
        "fresh": {"student": spec()},
        "steps": 6,
        "batch": 16,
        **changes,
    }
    return Lesson(**given)


TEACHER = lesson(objective=supervised("teacher", 1e-2), fresh={"teacher": spec()})
SOFT = {"alpha": 0.5, "temperature": 2.0}
SEEN: list[Mapping[str, Any]] = []


class Watching(Counts):
    """Keeps what it is given."""

    def learn(self, rows: Any, teacher: Any, *, work: Work) -> nn.Module:
        SEEN.append(rows)
        return super().learn(rows, teacher, work=work)


FOLDS = CrossValidation(
    split="text",
    types=TYPES,
    learners=("logistic", "supervised", "all-positive"),
    lessons={"supervised": lesson(), "logistic": Counts()},
    teacher=spec(),
    baseline="supervised",
    folds=3,
    seeds=1,
)


def test_rows_are_learners_by_split() -> None:
    found = FOLDS({}, data(), work=Work.seeded(0))
    rows = list(dict.fromkeys(row for row, _ in found))
    assert rows == list(FOLDS.rows())
    assert rows == ["logistic, by text", "supervised, by text", "all-positive, by text"]
    assert {name for _, name in found} == {score.name for score in FOLDS.scores()}
    assert found["supervised, by text", "trainings"] == 3
    # one token tells
    assert found["logistic, by text", "macro_f1"] > 0.8
    # half of the functions have the type: precision 1/2, recall 1
    assert found["all-positive, by text", "macro_f1"] == pytest.approx(2 / 3, abs=0.06)
    gain = found["logistic, by text", "f1_gain"]
    other = found["supervised, by text", "macro_f1"]
    assert gain == pytest.approx(found["logistic, by text", "macro_f1"] - other)
    low, high = (found["logistic, by text", name] for name in ("gain_low", "gain_high"))
    assert low <= gain <= high
    assert ("supervised, by text", "f1_gain") not in found


@pytest.mark.parametrize("split", ["text", "contract", "random"])
def test_parts_of_a_fold_share_no_group(split: Split) -> None:
    metric = replace(FOLDS, split=split, learners=("logistic",), lessons={"logistic": Watching()})
    SEEN.clear()
    table = data()
    found = metric({}, table, work=Work.seeded(0))
    assert list(metric.rows()) == [f"logistic, by {split}"]
    assert ("logistic, by text", "f1_gain") not in found, "there is no baseline"
    assert len(SEEN) == 3
    for rows in SEEN:
        assert set(rows["public"]) == {"tokens"}, "no labels"
        assert len(rows["public"]["tokens"]) + len(rows["train"]["tokens"]) < len(table)
        train = {tuple(row) for row in rows["train"]["tokens"].tolist()}
        shared = train & {tuple(row) for row in rows["public"]["tokens"].tolist()}
        assert bool(shared) is (split != "text"), "each text is in two contracts"


def test_copies_on_both_sides_are_remembered_by_a_random_split_alone() -> None:
    """Labels by chance: nothing can be learned but the texts, which stand twice in the data."""
    rng = torch.Generator().manual_seed(1)
    columns = dict(data(120).columns)
    tokens = torch.randint(20, 200, (60, LENGTH), generator=rng).repeat(2, 1)
    labels = (torch.rand(60, 1, generator=rng) < 0.5).float().repeat(2, 1)
    table = TensorData({**columns, "tokens": tokens, "labels": labels})
    by_text = replace(FOLDS, learners=("logistic",), folds=4, seeds=2)
    whole = by_text({}, table, work=Work.seeded(0))["logistic, by text", "macro_auc"]
    at_random = replace(by_text, split="random")({}, table, work=Work.seeded(0))
    assert at_random["logistic, by random", "macro_auc"] > whole + 0.2


def test_a_killed_stage_goes_on_behind_the_last_training(tmp_path: Path) -> None:
    metric = replace(FOLDS, learners=("supervised", "logistic"))
    whole = metric({}, data(), work=Work.seeded(3))
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
        metric({}, data(), work=work(dies))
    done = {folder.name: folder.stat().st_mtime_ns for folder in _kept(tmp_path)}
    assert len(done) == 4
    assert metric({}, data(), work=work(silent)) == whole
    after = {folder.name: folder.stat().st_mtime_ns for folder in _kept(tmp_path)}
    assert len(after) == 6
    assert {name: after[name] for name in done} == done, "what was done is not done again"


def _kept(root: Path) -> list[Path]:
    return list((root / "kept" / "many").iterdir())


def test_a_type_with_fewer_functions_than_folds_is_refused() -> None:
    few = data(8)  # four texts, two of which have it
    with pytest.raises(BadData, match="type 'a': 2 distinct functions have it, and 3 folds need"):
        FOLDS({}, few, work=Work.seeded(0))
    with pytest.raises(BadSetting, match="folds must be >= 3"):
        replace(FOLDS, folds=2)


DISTILLED = replace(
    FOLDS,
    learners=("kd", "public"),
    lessons={
        "teacher": TEACHER,
        "kd": lesson(objective=distilled(1e-2, **SOFT), teacher="answers"),
        "public": lesson(objective=taught(1e-2, **SOFT), reads="public", teacher="answers"),
    },
    baseline="kd",
)


def test_distilled_learners_share_the_teacher_of_their_fold(tmp_path: Path) -> None:
    metric = replace(DISTILLED, learners=("kd",))
    work = Work.seeded(0, kept=tmp_path)
    found = metric({}, data(), work=work)
    assert list(metric.rows()) == ["teacher, by text", "kd, by text"]
    assert {found[row, "trainings"] for row in metric.rows()} == {3}
    # a kept teacher teaches as it did when it was trained
    for folder in (tmp_path / "many").iterdir():
        if not folder.name.startswith("teacher"):
            shutil.rmtree(folder)
    assert metric({}, data(), work=work) == found


PROCESS = """
import json, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_many_trainings import DISTILLED, data
from stillhouse.recipe import Context
from stillhouse.work import Work

out = Path(sys.argv[2])
ctx = Context(stage="folds", out=out, checkpoints=out, caches=out)
found = DISTILLED({}, data(), work=Work.seeded(3, ctx=ctx, kept=out / "kept"))
print(json.dumps(sorted([*key, value] for key, value in found.items())))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_folds_goes_on_to_the_same(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def ended(process: "subprocess.Popen[str]") -> Any:
        told, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        return json.loads(told)

    whole = ended(start(tmp_path / "whole"))
    assert len(whole) == len(list(DISTILLED.rows())) * len({score for _, score, _ in whole}) - 3
    broken, kept = tmp_path / "broken", tmp_path / "broken" / "kept" / "many"
    process = start(broken)
    until = time.monotonic() + 120
    while not kept.is_dir() or len(list(kept.iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = {folder.name: folder.stat().st_mtime_ns for folder in kept.iterdir()}
    assert 2 <= len(done) < 9, "killed in the middle"
    assert ended(start(broken)) == whole
    # the last may have been killed while it was written
    after = {folder.name: folder.stat().st_mtime_ns for folder in kept.iterdir()}
    assert sum(after[name] == at for name, at in done.items()) >= len(done) - 1


def moved(**changes: Any) -> tuple[Transfer, Work, dict[str, nn.Module]]:
    torch.manual_seed(0)
    student = spec().new().eval().requires_grad_(False)
    given: dict[str, Any] = {"shots": (4, 8), "seeds": 1, "steps": 3, **changes}
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
