"""FedAvg: a mean by hand, who is averaged with whom, a client alone, resumption, bytes, messages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Artifact, Model, load_model
from stillhouse.data import save_data
from stillhouse.digest import digest
from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.federated import FedAvg, Federate, KnFu, Plan, weighted_mean
from stillhouse.objectives.objective import Optimizer
from stillhouse.testing.killing import KilledError, die_at_checkpoint

from ..toys import SITE, Net, same, toy_context, toy_data  # noqa: TID252

# a, b and d have one architecture, c another
WIDTHS = {"a": 2, "b": 2, "c": 3, "d": 2}
ROWS = {"a": 10, "b": 30, "c": 20, "d": 20}


@pytest.fixture(autouse=True)
def _toy_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def federation(names: str = "abcd", **changes: Any) -> Federate:
    given: dict[str, Any] = {
        "name": "fedavg",
        "inputs": {f"{n}-data": f"data.{n}" for n in names},
        "rounds": 2,
        "classes": 5,
        "rule": None,
        "fresh": {n: Model(build=Net, kwargs={"width": WIDTHS[n]}) for n in names},
        "plan": Plan(optimizer=Optimizer(lr=0.1), batch=8, epochs=2),
    }
    return Federate(**{**given, **changes})


def inputs(folder: Path) -> dict[str, Artifact]:
    return {
        f"{n}-data": save_data(folder / n, toy_data(rows, seed).columns)
        for seed, (n, rows) in enumerate(ROWS.items())
    }


def state(artifact: Artifact) -> dict[str, Tensor]:
    return dict(load_model(artifact.path).module.state_dict())


def test_a_weighted_mean_by_hand() -> None:
    one = {"w": torch.tensor([1.0, 0.0]), "batches": torch.tensor(4)}
    two = {"w": torch.tensor([5.0, 2.0]), "batches": torch.tensor(7)}
    mean = weighted_mean([one, two], [10, 30])
    assert mean["w"].tolist() == [4.0, 1.5]
    # 1/4 of 4 and 3/4 of 7 is 6.25, of batches 6
    assert (mean["batches"].item(), mean["batches"].dtype) == (6, torch.int64)
    # equal models stay what they are, to the bit
    w = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(weighted_mean([w, w, w], [3, 1, 7])["w"], w["w"])
    with pytest.raises(BadSetting, match=r"got 2 states and counts \[1, 0\]"):
        weighted_mean([one, two], [1, 0])


def test_a_round_is_learning_then_the_mean_of_fellows(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in")
    stage = federation(rounds=1)
    out = FedAvg(federation=stage).run(given, toy_context(tmp_path / "out")).outputs
    # by hand: the fellows start from a's weights and learn, then a plain loop over their weights
    built = stage.built(given)
    parties = stage.local_clients(given, built, toy_context(tmp_path / "hand"))
    first = {k: v.clone() for k, v in parties["a"].module.state_dict().items()}
    for name in "abd":
        parties[name].module.load_state_dict(first)
        parties[name].learn(0)
    made = {name: state(out[name]) for name in "abcd"}
    for key in made["a"]:
        whole = sum(parties[n].module.state_dict()[key].double() * ROWS[n] for n in "abd") / 60
        whole = whole if made["a"][key].is_floating_point() else whole.round()
        torch.testing.assert_close(made["a"][key].double(), whole, rtol=1e-6, atol=1e-7)
    assert same(made["a"], made["b"])
    assert same(made["a"], made["d"])
    exchange = load_model(out["exchange"].path).module
    shares = [1 / 6, 1 / 2, 0, 1 / 3]
    expected = torch.tensor([shares, shares, [0, 0, 1, 0], shares])
    torch.testing.assert_close(exchange.weights[0], expected)
    size = sum(v.nbytes for v in made["a"].values())
    assert exchange.sent[0].tolist() == [[size, size], [size, size], [0, 0], [size, size]]


def test_a_client_without_fellows_learns_alone(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in")
    averaged = FedAvg(federation=federation()).run(given, toy_context(tmp_path / "avg")).outputs
    alone = federation().run(given, toy_context(tmp_path / "alone")).outputs
    assert averaged["c"].digest == alone["c"].digest
    assert averaged["b"].digest != alone["b"].digest
    single = (
        FedAvg(federation=federation("b"))
        .run({"b-data": given["b-data"]}, toy_context(tmp_path / "single"))
        .outputs
    )
    assert single["b"].digest == alone["b"].digest
    assert load_model(single["exchange"].path).module.sent.sum() == 0


def test_it_resumes_after_a_round_to_the_same_bits(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in")
    stage = FedAvg(federation=federation())
    whole = stage.run(given, toy_context(tmp_path / "whole")).outputs
    dying = toy_context(tmp_path / "dead", observe=die_at_checkpoint)
    with pytest.raises(KilledError):
        stage.run(given, dying)
    last = toy_context(tmp_path / "last", checkpoints=dying.checkpoints)
    again = stage.run(given, last)
    assert again.resumed_at == 1
    assert {k: v.digest for k, v in again.outputs.items()} == {
        k: v.digest for k, v in whole.items()
    }


def test_it_is_a_stage_with_the_ports_of_its_federation() -> None:
    stage = FedAvg(federation=federation())
    assert (stage.name, stage.seed, stage.outputs) == ("fedavg", 0, (*"abcd", "exchange"))
    assert stage.inputs == federation().inputs
    assert digest(stage) != digest(federation())
    ruled = federation(rule=KnFu(), inputs={**federation().inputs, "transfer": "data.t"})
    with pytest.raises(BadRecipe, match="stage 'fedavg': FedAvg needs a federation without a rule"):
        FedAvg(federation=ruled)
