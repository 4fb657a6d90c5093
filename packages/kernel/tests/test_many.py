"""Folds x seeds of small trainings in one stage, killed between two of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.checkpoint import State
from stillhouse.data.data import Columns, TensorData
from stillhouse.data.shards import load_data, save_data
from stillhouse.engine import fit
from stillhouse.errors import BadRecipe
from stillhouse.many import trainings
from stillhouse.objectives.objective import Composed, Optimizer, Phase, Weighted
from stillhouse.recipe import Context, Event
from stillhouse.stages import Make
from stillhouse.training import Setup
from stillhouse.work import Work

from .toys import SITE, Net, by_labels, toy_context, toy_data

TRAINED: list[str] = []  # by this process
FOLDS, SEEDS = 3, 2


class KilledError(BaseException):
    """A death that nothing on the way swallows."""


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """A `make`: logits of each row by the networks that have not seen it, in the mean of seeds."""

    steps: int = 5

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: TensorData = inputs["data"]

        def train(name: str, work: Work) -> State:
            TRAINED.append(name)
            return self.trained(data, int(name[4]), work)

        names = [f"fold{fold}-seed{seed}" for fold in range(FOLDS) for seed in range(SEEDS)]
        logits = torch.zeros(len(data), 5)
        for name, (tensors, record) in trainings(names, train, of=self, work=work):
            net = Net(4).eval()
            net.load_state_dict(tensors)
            rows = torch.arange(int(name[4]), len(data), FOLDS)
            assert record["rows"] == len(data) - len(rows)
            with torch.no_grad():
                logits[rows] += net(data.rows(rows))["logits"] / SEEDS
        return {"logits": {"logits": logits}}

    def trained(self, data: TensorData, fold: int, work: Work) -> State:
        rows = torch.tensor([row for row in range(len(data)) if row % FOLDS != fold])
        seen = {name: column[rows] for name, column in data.columns.items() if name != "id"}  # pyright: ignore
        phase = Phase(trains=("student",), optimizer=Optimizer(lr=0.1))
        losses = {"ce": Weighted(term=by_labels())}
        objective = Composed(phases={"main": phase}, losses=losses)
        torch.manual_seed(work.seed % 2**32)
        models = {"student": Net(4)}
        setup = Setup(steps=self.steps, batch=8, seed=work.seed)
        fit(objective, models, TensorData(seen), setup=setup, ctx=work.ctx)
        return dict(models["student"].state_dict()), {"rows": len(rows)}


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    TRAINED.clear()


def run(folder: Path, out: str, **context: Any) -> tuple[str, torch.Tensor]:
    data = save_data(folder / f"{out}-data", toy_data().columns)
    stage = Make(name="folds", make=OutOfFold(), inputs={"data": "a.b"}, ports=("logits",))
    ctx: Context = replace(toy_context(folder / "stage", **context), out=folder / out)
    made = stage.run({"data": data}, ctx).outputs["logits"]
    found = load_data(made.path).columns["logits"]
    assert isinstance(found, torch.Tensor)
    return made.digest, found


def test_a_stage_of_many_trainings_goes_on_behind_the_last(tmp_path: Path) -> None:
    whole, logits = run(tmp_path / "whole", "out")
    assert len(TRAINED) == FOLDS * SEEDS
    assert len(torch.unique(logits, dim=0)) == 50

    def dies(event: Event) -> None:
        if event.done == 4:
            raise KilledError

    TRAINED.clear()
    with pytest.raises(KilledError):
        run(tmp_path, "first", observe=dies)
    assert TRAINED == ["fold0-seed0", "fold0-seed1", "fold1-seed0", "fold1-seed1"]
    TRAINED.clear()
    events: list[Event] = []
    again, _ = run(tmp_path, "second", observe=events.append)
    assert again == whole
    assert TRAINED == ["fold2-seed0", "fold2-seed1"]
    assert [(event.done, event.total) for event in events] == [(n, 6) for n in range(1, 7)]


def test_a_damaged_one_is_trained_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, "first")
    (kept,) = (tmp_path / "stage").rglob("fold1-seed0-*/step-*/state.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    TRAINED.clear()
    assert run(tmp_path, "second")[0] == whole
    assert TRAINED == ["fold1-seed0"]


def test_a_training_does_not_depend_on_the_others(tmp_path: Path) -> None:
    def train(name: str, work: Work) -> State:
        return {"drawn": torch.rand(3, generator=work.rng)}, {"seed": work.seed}

    work = Work.seeded(3)
    both = dict(trainings(["a", "b"], train, of="x", work=work))
    alone = dict(trainings(["b"], train, of="x", work=work))
    assert alone["b"][1] == both["b"][1]
    assert torch.equal(alone["b"][0]["drawn"], both["b"][0]["drawn"])
    assert not torch.equal(both["a"][0]["drawn"], both["b"][0]["drawn"])


@pytest.mark.parametrize(("names", "why"), [
    (["a", "a"], "'a', is there twice"),
    (["a/b"], "'a/b', has other than letters, digits, '-' and '_'"),
])  # fmt: skip
def test_a_name_that_is_none_is_one_line(names: list[str], why: str) -> None:
    def train(name: str, work: Work) -> State:
        return {}, {}

    with pytest.raises(BadRecipe, match=rf"^stage '': a training's name, {why}$"):
        list(trainings(names, train, of="x", work=Work.seeded(3)))


def test_what_comes_back_after_a_kill_is_what_came_before(tmp_path: Path) -> None:
    """Its order, its JSON types and the record's own "step" included."""

    def train(name: str, work: Work) -> State:
        drawn = torch.rand(3, generator=work.rng)
        return {"b": drawn, "a": drawn[:1]}, {"step": 7, "pair": (1, 2)}

    work = replace(Work.seeded(3), kept=tmp_path)
    first, again = (dict(trainings(["one"], train, of="x", work=work))["one"] for _ in range(2))
    assert first[1] == again[1] == {"step": 7, "pair": [1, 2]}
    assert list(first[0]) == list(again[0]) == ["a", "b"]
    assert all(torch.equal(first[0][name], again[0][name]) for name in "ab")
