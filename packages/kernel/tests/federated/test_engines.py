"""Engines without Flower: names, clients that are missing, and what a node keeps between messages."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Artifact, load_model
from stillhouse.cli.app import main
from stillhouse.data import TensorData
from stillhouse.errors import BadRecipe, BadSetting, ClientLost, MissingExtra, UnknownName
from stillhouse.federated import ClientProxy, Exchange, ExchangeScores, Federate, Itself, Server
from stillhouse.federated.flower.client import Answers, Seat, newest
from stillhouse.federated.flower.messages import ABSORB, CLIENT, FUSED, KNOWLEDGE, LEARN, ROUND
from stillhouse.federated.flower.node import NodeSeats, node_folder
from stillhouse.federated.flower.run import TIMEOUT, timeout
from stillhouse.federated.rounds import Rounds
from stillhouse.places import home
from stillhouse.recipe import ENGINE, Event
from stillhouse.work import Work

from ..toys import SITE, same, toy_context  # noqa: TID252  the toys of all the kernel's tests
from .test_federate import (
    CLASSES,
    NAMES,
    SAMPLES,
    federate,
    federated_inputs,
)


@pytest.fixture(autouse=True)
def _toy_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Hands every call on to a client, but is not there in some rounds."""

    party: ClientProxy
    learns_not: tuple[int, ...] = ()
    absorbs_not: tuple[int, ...] = ()
    fused: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def learn(self, number: int) -> None:
        if number in self.learns_not:
            raise ClientLost("away")
        self.party.learn(number)

    def knowledge(self) -> Tensor:
        return self.party.knowledge()

    def absorb(self, number: int, fused: Tensor) -> None:
        if number in self.absorbs_not:
            raise ClientLost("away")
        self.fused[number] = fused.clone()
        self.party.absorb(number, fused)


def parties_of(stage: Federate, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, Absent]:
    built = stage.built(inputs)
    found = stage.local_clients(inputs, built, toy_context(folder))
    return {name: Absent(party=party) for name, party in found.items()}


def test_a_round_ends_without_a_client_that_is_missing(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    made = stage.server(inputs)
    parties = parties_of(stage, inputs, tmp_path)
    parties["client-2"] = replace(parties["client-2"], learns_not=(0,))
    weights, sent = stage.round(0, clients=parties, server=made)
    assert weights[1].tolist() == [0, 0, 0]
    assert weights[:, 1].tolist() == [0, 0, 0]
    assert sent.tolist() == [[280, 280], [0, 0], [280, 280]]
    # the others are taught as if it were not there
    others = parties_of(stage, inputs, tmp_path)
    del others["client-2"]
    expected, _ = stage.round(0, clients=others, server=made)
    assert torch.equal(weights[[0, 2]][:, [0, 2]], expected)
    for name in ("client-1", "client-10"):
        assert torch.equal(parties[name].fused[0], others[name].fused[0])
    # and it comes back in the next
    weights, _ = stage.round(1, clients=parties, server=made)
    assert torch.allclose(weights.sum(1), torch.ones(3))
    exchange = Exchange(2, 3)
    exchange.note(0, stage.round(2, clients={**parties}, server=made)[0], sent)
    assert exchange.missing.tolist() == [[False] * 3, [True] * 3]


def test_a_client_that_dies_before_it_absorbs_has_taught(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    parties = parties_of(stage, inputs, tmp_path)
    parties["client-2"] = replace(parties["client-2"], absorbs_not=(0,))
    weights, _ = stage.round(0, clients=parties, server=stage.server(inputs))
    assert (weights > 0).all()
    assert parties["client-2"].fused == {}
    assert list(parties["client-10"].fused) == [0]


def test_rounds_without_fusion_know_who_is_missing_too(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate(warmup=1)
    parties = parties_of(stage, inputs, tmp_path)
    parties["client-1"] = replace(parties["client-1"], learns_not=(0, 1))
    weights, sent = stage.round(0, clients=parties, server=stage.server(inputs))
    assert weights.tolist() == torch.diag(torch.tensor([0.0, 1.0, 1.0])).tolist()
    assert sent.sum() == 0


def test_a_round_without_any_client_is_an_error(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    parties = {
        name: replace(party, learns_not=(0,))
        for name, party in parties_of(stage, inputs, tmp_path).items()
    }
    with pytest.raises(ClientLost, match="round 1: no client has answered .client-1, client-2"):
        stage.round(0, clients=parties, server=stage.server(inputs))


def test_scores_leave_out_who_was_missing() -> None:
    exchange = Exchange(1, 3)
    weights = torch.tensor([[0.5, 0, 0.5], [0, 0, 0], [0, 0, 1.0]])
    exchange.note(0, weights, torch.zeros(3, 2, dtype=torch.int64))
    assert exchange.missing.tolist() == [[False, True, False]]
    found = ExchangeScores()({"exchange": exchange}, TensorData({}), work=Work())
    assert found == {"effective_neighbours": 1.5, "self_weight": 0.75, "sent_mib": 0}


def seat(folder: Path, name: str, inputs: Mapping[str, Artifact], stage: Federate) -> Seat:
    return Seat(
        name=name, stage=stage, inputs=inputs, folder=folder / name, device="cpu", threads=1
    )


def played(
    seats: Mapping[str, Seat], stage: Federate, given: Server, rounds: range
) -> dict[int, Tensor]:
    """Rounds by messages: every call on a node is a new client built from its disk."""
    taught: dict[int, Tensor] = {}
    for number in rounds:
        known = [one.learn(number) for one in seats.values()]
        fused, _ = given.teach(torch.stack([array for array in known if array is not None]))
        for one, teacher in zip(seats.values(), fused, strict=True):
            one.absorb(number, teacher)
        taught[number] = fused
    return taught


def test_nodes_come_to_the_bits_of_one_process(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    whole = stage.run(inputs, toy_context(tmp_path / "whole")).outputs
    given = stage.server(inputs)
    assert given is not None
    seats = {
        # a node reads its own data and the transfer set
        n: seat(tmp_path, n, {k: inputs[k] for k in ("transfer", f"{n}-data")}, stage)
        for n in NAMES
    }
    played(seats, stage, given, range(3))
    for name in NAMES:
        made = load_model(whole[name].path).module
        assert same(seats[name].weights(), dict(made.state_dict()))


def test_a_message_that_comes_twice_changes_nothing(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    one = seat(tmp_path, "client-1", inputs, stage)
    known = one.learn(0)
    assert known is not None
    assert (known.shape, known.dtype) == ((SAMPLES, CLASSES), torch.float32)
    assert torch.equal(one.learn(0), known)
    teacher = torch.softmax(torch.randn(SAMPLES, CLASSES), dim=1)
    one.absorb(0, teacher)
    after = one.weights()
    # the server died before it wrote the round down, and asks again from its beginning
    assert torch.equal(one.learn(0), known)
    one.absorb(0, teacher)
    assert same(one.weights(), after)
    with pytest.raises(ClientLost, match="client 'client-1' has not learnt round 2"):
        one.absorb(1, teacher)


def test_a_client_that_missed_a_round_goes_on_from_where_it_was(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    one, other = (seat(tmp_path / k, "client-1", inputs, stage) for k in ("a", "b"))
    teacher = torch.softmax(torch.randn(SAMPLES, CLASSES), dim=1)
    for each in (one, other):
        each.learn(0)
        each.absorb(0, teacher)
    one.learn(1)  # its teacher never came
    learnt = newest(one.folder, 2)
    assert not same(learnt, newest(other.folder, 2))
    one.learn(2)
    other.learn(2)
    assert not same(one.weights(), other.weights())
    # weights of later rounds, left by an older run, are not taken up
    again = one.learn(0)
    fresh = seat(tmp_path / "c", "client-1", inputs, stage).learn(0)
    assert torch.equal(again, fresh)


def test_a_client_that_shares_nothing_is_its_own_teacher(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate(rule=Itself())
    whole = stage.run(inputs, toy_context(tmp_path / "whole")).outputs
    one = seat(tmp_path, "client-2", inputs, stage)
    assert [one.learn(number) for number in range(3)] == [None] * 3
    assert same(one.weights(), dict(load_model(whole["client-2"].path).module.state_dict()))


def test_the_text_of_an_error_stays_on_its_node(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    one = seat(tmp_path, "client-1", inputs, federate())
    answers = Answers(seats=lambda run, node: one)
    names, arrays = answers(LEARN, {ROUND: 0}, {}, {}, {})
    assert names == {ROUND: 0, CLIENT: "client-1"}
    assert list(arrays) == [KNOWLEDGE]
    fused = {FUSED: torch.softmax(arrays[KNOWLEDGE], dim=1)}
    assert answers(ABSORB, {ROUND: 0}, fused, {}, {}) == (names, {})
    broken = seat(
        tmp_path, "client-1", {**inputs, "client-1-data": inputs["transfer"]}, federate(classes=2)
    )
    with pytest.raises(ClientLost, match="^BadData; its log has the rest$"):
        Answers(seats=lambda run, node: broken)(LEARN, {ROUND: 0}, {}, {}, {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project."""
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    return tmp_path


def test_an_engine_is_named_on_the_command_line_or_in_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "toy/federated", "--device", "cpu", "--no-report", "--set", "rounds=1"]
    assert main([*words, "--engine", "flowre"]) == 2
    unknown = "error: unknown engine 'flowre'. Did you mean 'flower'? Valid: flower, local.\n"
    assert capsys.readouterr().err == unknown
    monkeypatch.setenv(ENGINE, "lokal")
    assert main(words) == 2
    assert "unknown engine 'lokal'. Did you mean 'local'?" in capsys.readouterr().err
    # nothing has run, and the option has the last word
    assert not (project / "runs").exists()
    assert main([*words, "--engine", "local"]) == 0
    assert "stage knfu: done" in capsys.readouterr().out
    # up to date whatever the engine: it is no part of the key
    monkeypatch.delenv(ENGINE)
    assert main(["stage", "toy/federated", "data", "--engine", "flower"]) == 0
    assert "--engine flower: no federated stage here; ignored" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("flwr") is not None, reason="Flower is installed")
def test_without_flower_the_command_that_installs_it_is_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "toy/federated", "--device", "cpu", "--engine", "flower"]) == 2
    assert capsys.readouterr().err == (
        "error: --engine flower needs `flwr`, which is not installed. Run: uv sync "
        "--no-default-groups --extra federated or pip install 'stillhouse[federated]'\n"
    )
    with pytest.raises(MissingExtra):
        federate().run({}, toy_context(project, engine="flower"))


def test_messages_of_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="unknown engine 'ray'. Valid: flower, local"):
        federate().run({}, toy_context(tmp_path, engine="ray"))
    for text in ("0", "-1", "soon", "inf", "nan"):
        monkeypatch.setenv(TIMEOUT, text)
        with pytest.raises(BadSetting, match=f"STILLHOUSE_FLOWER_TIMEOUT={text}: expected seconds"):
            timeout()
    monkeypatch.setenv(TIMEOUT, "2.5")
    assert timeout() == 2.5
    # it comes from the server, and becomes a folder's name
    with pytest.raises(BadSetting, match=r"input key '\.\./x': expected 64 hexadecimal digits"):
        node_folder("../x", "client-1")


def test_a_run_says_who_was_missing(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate(rounds=2)
    parties = parties_of(stage, inputs, tmp_path)
    parties["client-10"] = replace(parties["client-10"], learns_not=(1,))
    events: list[Event] = []
    ctx = toy_context(tmp_path / "out", observe=events.append)
    turn = partial(stage.round, clients=parties, server=stage.server(inputs))
    played = Rounds(stage="knfu", count=2, clients=parties, ctx=ctx).play(turn)
    assert "round 2 of 2 ended without client-10" in [event.text for event in events]
    assert played.measured["missing"] == {"client-10": [2]}


def test_a_node_finds_its_client_in_the_project_or_where_its_operator_says(
    project: Path, tmp_path: Path
) -> None:
    words = ["run", "toy/federated", "--device", "cpu", "--no-report", "--set", "rounds=1"]
    assert main(words) == 0
    (variant,) = (project / "runs" / "toy" / "federated").iterdir()
    run = {
        "recipe": "toy/federated",
        "settings": (variant / "settings.json").read_text(),
        "stage": "knfu",
        "key": "0" * 64,
        "threads": 1,
    }
    one = NodeSeats()(run, {"client": "client-2", "root": str(project)})
    assert (one.name, one.stage.rounds, one.threads) == ("client-2", 1, 1)
    assert one.folder == home() / "federated" / ("0" * 64) / "client-2"
    # its own data and the transfer set, no other client's
    assert sorted(one.inputs) == ["client-2-data", "transfer"]
    one.learn(0)
    folders = {
        key: variant / "data" / port
        for key, port in (("data", "client-10"), ("transfer", "transfer"))
    }
    # a host with nothing of the project but the transfer set and data of its own
    elsewhere = {"client": "client-2", "root": str(tmp_path / "none"), "threads": 2}
    other = NodeSeats()(run, {**elsewhere, **{key: str(path) for key, path in folders.items()}})
    assert other.threads == 2
    assert other.inputs["client-2-data"].path == folders["data"]
    assert len(other.inputs["transfer"].open()) == 24
    with pytest.raises(UnknownName, match="--node-config: unknown client 'client-3'"):
        NodeSeats()(run, {"client": "client-3"})
    with pytest.raises(BadRecipe, match="stage 'data' of toy/federated is no federation"):
        NodeSeats()({**run, "stage": "data"}, {"client": "client-2"})
