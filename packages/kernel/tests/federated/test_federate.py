"""Federate: what leaves a client, rounds by hand, resumption to the same bits, messages."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
from stillhouse.checkpoint import last_checkpoint
from stillhouse.data import TensorData, save_data
from stillhouse.data.data import Columns
from stillhouse.digest import digest
from stillhouse.errors import BadData, BadRecipe, BadSetting, ContractError, UnknownName
from stillhouse.federated import (
    Client,
    ClientLabels,
    ClientProxy,
    Exchange,
    ExchangeScores,
    Federate,
    FederatedAccuracy,
    FusionWeights,
    Itself,
    KnFu,
    Mean,
    Plan,
    Server,
    balanced_accuracy,
    fused_loss,
    grouped_split,
    personal_accuracy,
    personal_weights,
)
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.objective import Optimizer
from stillhouse.recipe import Event, Recipe
from stillhouse.runs import Runs, finished, home, run_recipe, run_stage
from stillhouse.stages import Evaluate, Make
from stillhouse.testing.killing import KilledError, die_at_checkpoint
from stillhouse.work import Work

from ..toys import (  # noqa: TID252  the toys of all the kernel's tests
    SITE,
    Net,
    same,
    toy_context,
    toy_data,
    weights,
)

CLASSES, SAMPLES = 5, 14
NAMES = ("client-1", "client-2", "client-10")
PLAN = Plan(optimizer=Optimizer(lr=0.1), batch=8, epochs=2, absorb_epochs=1)


@pytest.fixture(autouse=True)
def _toy_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def federate(**changes: Any) -> Federate:
    widths = {name: width for width, name in enumerate(NAMES, start=2)}
    given: dict[str, Any] = {
        "name": "knfu",
        "inputs": {
            "transfer": "data.transfer",
            **{f"{n}-data": f"data.{n}" for n in NAMES},
        },
        "rounds": 3,
        "classes": CLASSES,
        "rule": KnFu(),
        "fresh": {
            n: Model(build=Net, kwargs={"width": w, "dropout": 0.2}) for n, w in widths.items()
        },
        "plan": PLAN,
    }
    return Federate(**{**given, **changes})


def federated_inputs(folder: Path) -> dict[str, Artifact]:
    sizes = {"transfer": SAMPLES, **{f"{n}-data": 20 + k for k, n in enumerate(NAMES)}}
    return {
        port: save_data(folder / port, toy_data(rows, seed).columns)
        for seed, (port, rows) in enumerate(sizes.items())
    }


def digests(outputs: Mapping[str, Artifact]) -> dict[str, str]:
    return {port: artifact.digest for port, artifact in outputs.items()}


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Hands every call on to a client and keeps all that passes in either direction."""

    party: ClientProxy
    out: list[Any] = field(default_factory=list)
    back: list[Any] = field(default_factory=list)

    def learn(self, number: int) -> None:
        self.out.append(self.party.learn(number))

    def knowledge(self) -> Tensor:
        self.out.append(self.party.knowledge())
        return self.out[-1]

    def absorb(self, number: int, fused: Tensor) -> None:
        self.back.append(fused.clone())
        self.out.append(self.party.absorb(number, fused))


def client(folder: Path, seed: int = 0, rows: int = 20, width: int = 3) -> Client:
    torch.manual_seed(seed)
    return Client(
        module=Net(width, 0.2),
        data=toy_data(rows, seed + 1),
        transfer=toy_data(SAMPLES, 0),
        plan=PLAN,
        seed=seed,
        ctx=toy_context(folder),
    )


def server(**changes: Any) -> Server:
    given: dict[str, Any] = {
        "rule": KnFu(beta=1.0),
        "temperature": PLAN.temperature,
        "samples": SAMPLES,
        "classes": CLASSES,
        "labels": toy_data(SAMPLES, 0).columns["labels"],
    }
    return Server(**{**given, **changes})


def test_only_arrays_transfer_set_by_classes_leave_a_client(tmp_path: Path) -> None:
    recorders = [Recorder(party=client(tmp_path, seed, 20 + seed)) for seed in range(3)]
    for number in range(2):
        for recorder in recorders:
            recorder.learn(number)
        server().round(number, NAMES, recorders)
    for recorder in recorders:
        left = [thing for thing in recorder.out if thing is not None]
        assert len(left) == 2  # one array a round; learning and absorbing answer nothing
        for array in left:
            assert type(array) is Tensor
            assert (array.shape, array.dtype) == ((SAMPLES, CLASSES), torch.float32)
            # nothing hides behind it: no graph, no larger storage, no memory of the model
            assert array.grad_fn is None
            assert array.untyped_storage().nbytes() == SAMPLES * CLASSES * 4
            own = {p.untyped_storage().data_ptr() for p in recorder.party.module.parameters()}
            assert array.untyped_storage().data_ptr() not in own
        assert [array.shape for array in recorder.back] == [(SAMPLES, CLASSES)] * 2


def test_what_comes_back_follows_from_what_left_alone(tmp_path: Path) -> None:
    recorders = [Recorder(party=client(tmp_path, seed)) for seed in range(3)]
    for recorder in recorders:
        recorder.learn(0)
    server().round(0, NAMES, recorders)
    sent = torch.stack([recorder.out[1] for recorder in recorders])
    # a server that never met the clients gets the same teachers from the arrays
    fused, _ = server().teach(sent)
    for recorder, expected in zip(recorders, fused, strict=True):
        assert torch.equal(recorder.back[0], expected)


@dataclass(frozen=True, kw_only=True)
class Rogue:
    """A party that answers with something else."""

    answer: Tensor

    def learn(self, number: int) -> None: ...
    def knowledge(self) -> Tensor:
        return self.answer

    def absorb(self, number: int, fused: Tensor) -> None: ...


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (torch.zeros(20, CLASSES), r"got float32 \[20, 5\]"),
        (torch.zeros(SAMPLES, CLASSES + 1), r"got float32 \[14, 6\]"),
        (torch.zeros(SAMPLES, CLASSES, dtype=torch.float64), r"got float64 \[14, 5\]"),
        (torch.full((SAMPLES, CLASSES), math.nan), r"got float32 \[14, 5\]"),
    ],
)
def test_nothing_else_is_let_through(answer: Tensor, found: str) -> None:
    text = r"client 'client-1': only finite float32 \[14, 5\] \(transfer set x classes\) may leave"
    with pytest.raises(ContractError, match=text + " it .*" + found):
        server().round(0, NAMES[:1], [Rogue(answer=answer)])


def test_a_server_by_hand() -> None:
    # two clients, one sample, two classes; the softmax at T of log-probabilities is that of logits
    logits = torch.tensor([[[math.log(9), 0.0]], [[0.0, math.log(4)]]])
    given = server(rule=Mean(), samples=1, classes=2, labels=None)
    fused, found = given.teach(torch.log_softmax(logits, dim=2))
    # at T = 2 odds 9 and 1/4 become 3 and 1/2: probabilities 3/4 and 1/3 of class 0
    assert fused[0, 0].tolist() == pytest.approx([13 / 24, 11 / 24])
    assert found.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_bytes_by_hand() -> None:
    parties = [Rogue(answer=torch.full((SAMPLES, CLASSES), -math.log(CLASSES)))] * 3
    _, sent = server().round(0, NAMES, parties)
    assert sent.tolist() == [[14 * 5 * 4, 14 * 5 * 4]] * 3
    _, sent = server(rule=Itself()).round(0, NAMES, parties)
    assert sent.tolist() == [[0, 0]] * 3


def test_the_loss_of_a_fused_teacher() -> None:
    # uniform against [3/4, 1/4] at T = 2: KL = 3/4 ln 3/2 + 1/4 ln 1/2, times 4
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    fused = torch.tensor([[0.75, 0.25]])
    assert fused_loss(torch.zeros(1, 2), fused, temperature=2.0).item() == pytest.approx(expected)
    s, t = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    other = kd_loss(s, t, temperature=3.0)
    torch.testing.assert_close(fused_loss(s, F.softmax(t / 3, dim=1), temperature=3.0), other)


def test_a_client_learns_as_a_plain_loop_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential()
    module.head = nn.Linear(3, CLASSES)
    plan = replace(PLAN, epochs=1, batch=50)
    data = TensorData({"x": torch.randn(7, 3), "labels": torch.arange(7) % CLASSES})

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)
            self.head.load_state_dict(module.head.state_dict())

        def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.head(batch["x"])}

    given = Client(
        module=Flat(), data=data, transfer=data, plan=plan, seed=1, ctx=toy_context(tmp_path)
    )
    given.learn(0)
    # one pass of one batch: one SGD step at 0.1 on the mean cross-entropy
    x, labels = data.columns["x"], data.columns["labels"]
    loss = F.cross_entropy(module.head(x), labels)
    (slope,) = torch.autograd.grad(loss, [module.head.weight])
    expected = module.head.weight - 0.1 * slope
    torch.testing.assert_close(given.module.head.weight, expected)
    torch.testing.assert_close(given.knowledge(), torch.log_softmax(given.module.head(x), 1))
    # and absorbing is a step on the fused loss
    before = nn.Linear(3, CLASSES)
    before.load_state_dict(given.module.head.state_dict())
    fused = torch.softmax(torch.randn(7, CLASSES), dim=1)
    (slope,) = torch.autograd.grad(fused_loss(before(x), fused, temperature=2.0), [before.weight])
    given.absorb(0, fused)
    torch.testing.assert_close(given.module.head.weight, before.weight - 0.1 * slope)


def test_a_stage_runs_rounds_of_learning_fusing_absorbing(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    ctx = toy_context(tmp_path / "out", stage="knfu")
    result = federate(rounds=2).run(inputs, ctx)
    out = result.outputs
    assert list(out) == ["client-1", "client-2", "client-10", "exchange"]
    # the same by hand, client by client
    parties: list[Client] = []
    for k, name in enumerate(NAMES):
        module = federate(rounds=2)._built(name, inputs).module
        given = client(tmp_path / "hand", k)
        parties.append(
            replace(
                given,
                module=module,
                data=inputs[f"{name}-data"].open(),
                transfer=inputs["transfer"].open(),
                seed=federate()._seed(name),
            )
        )
    labels = inputs["transfer"].open().columns["labels"]
    noted: list[Tensor] = []
    for number in range(2):
        for party in parties:
            party.learn(number)
        known = torch.stack([party.knowledge() for party in parties])
        fused, found = server(rule=KnFu(), labels=labels).teach(known)
        noted.append(found)
        for party, teacher in zip(parties, fused, strict=True):
            party.absorb(number, teacher)
    made = {name: load_model(out[name].path).module for name in NAMES}
    assert same(weights(made), weights({n: p.module for n, p in zip(NAMES, parties, strict=True)}))
    exchange = load_model(out["exchange"].path).module
    assert torch.equal(exchange.weights, torch.stack(noted))
    assert exchange.sent.tolist() == [[[280, 280]] * 3] * 2
    # 2 rounds x 3 clients x (up and down) x 14 x 5 floats
    assert result.measured["bytes_sent"] == 2 * 3 * 2 * 14 * 5 * 4
    # a client's losses stay with it
    assert result.curves == ()


def test_a_stage_resumes_after_a_round_to_the_same_bits(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    whole = federate().run(inputs, toy_context(tmp_path / "whole")).outputs
    dying = toy_context(tmp_path / "dead", observe=die_at_checkpoint)
    with pytest.raises(KilledError):
        federate().run(inputs, dying)
    found = last_checkpoint(dying.checkpoints)
    assert found is not None
    assert found[1]["step"] == 1
    # again after the second round
    again = toy_context(
        tmp_path / "again", checkpoints=dying.checkpoints, observe=die_at_checkpoint
    )
    with pytest.raises(KilledError):
        federate().run(inputs, again)
    events: list[Event] = []
    last = toy_context(tmp_path / "last", checkpoints=dying.checkpoints, observe=events.append)
    resumed = federate().run(inputs, last)
    assert events[0].text == "resumed at round 2"
    assert resumed.resumed_at == 2
    assert [event.done for event in events] == [2, 3]
    assert digests(resumed.outputs) == digests(whole)


@dataclass(frozen=True, kw_only=True)
class DiesOnce:
    """A rule that fails in the middle of a round, while a file is there."""

    file: Path

    @property
    def shares(self) -> bool:
        return True

    def __call__(self, probabilities: Tensor, labels: Tensor | None) -> Tensor:
        if self.file.exists() and len(list(self.file.parent.glob("checkpoints/step-*"))):
            raise KilledError
        return KnFu()(probabilities, labels)


def test_a_death_within_a_round_costs_that_round(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    whole = federate().run(inputs, toy_context(tmp_path / "whole")).outputs
    ctx = toy_context(tmp_path / "out")
    flag = tmp_path / "out" / "flag"
    flag.touch()
    stage = federate(rule=DiesOnce(file=flag))
    with pytest.raises(KilledError):
        stage.run(inputs, ctx)
    flag.unlink()
    assert digests(stage.run(inputs, ctx).outputs) == digests(whole)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    one = federate(rounds=1).run(inputs, toy_context(tmp_path / "1")).outputs
    torch.manual_seed(99)
    again = federate(rounds=1).run(inputs, toy_context(tmp_path / "2")).outputs
    assert digests(again) == digests(one)
    other = federate(rounds=1, seed=1).run(inputs, toy_context(tmp_path / "3")).outputs
    assert digests(other)["client-1"] != digests(one)["client-1"]
    assert digest(federate()) == digest(federate())
    assert digest(federate()) != digest(federate(rule=KnFu(beta=9.0)))


def test_a_client_alone_is_the_same_whoever_else_takes_part(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    every = federate(rule=None, rounds=2).run(inputs, toy_context(tmp_path / "every")).outputs
    exchange = load_model(every["exchange"].path).module
    assert torch.equal(exchange.weights, torch.eye(3).expand(2, 3, 3))
    assert exchange.sent.sum() == 0
    # without the others, and without a transfer set
    single = (
        federate(
            rule=None,
            rounds=2,
            inputs={"client-2-data": "data.client-2"},
            fresh={"client-2": federate().fresh["client-2"]},
        )
        .run({"client-2-data": inputs["client-2-data"]}, toy_context(tmp_path / "single"))
        .outputs
    )
    assert digests(single)["client-2"] == digests(every)["client-2"]
    # its own teacher is not its absence, but needs nobody else either
    itself = federate(rule=Itself(), rounds=2).run(inputs, toy_context(tmp_path / "itself")).outputs
    assert digests(itself)["client-2"] != digests(every)["client-2"]
    assert load_model(itself["exchange"].path).module.sent.sum() == 0


def test_fusion_begins_after_the_warm_up(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    out = federate(rule=Mean(), warmup=2).run(inputs, toy_context(tmp_path / "out")).outputs
    exchange = load_model(out["exchange"].path).module
    assert exchange.sent.sum((1, 2)).tolist() == [0, 0, 3 * 2 * 280]
    assert torch.equal(exchange.weights[1], torch.eye(3))
    # all of it a warm-up: the same as alone
    alone = federate(rule=None, rounds=2).run(inputs, toy_context(tmp_path / "alone")).outputs
    warm = (
        federate(rule=Mean(), rounds=2, warmup=2)
        .run(inputs, toy_context(tmp_path / "warm"))
        .outputs
    )
    assert digests(warm) == digests(alone)


def test_a_client_can_start_from_a_port(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    fresh = dict(federate().fresh)
    spec = fresh.pop("client-1")
    stage = federate(
        fresh=fresh, inputs={**federate().inputs, "client-1": "local.client-1"}, rounds=1
    )
    assert stage.clients == NAMES
    inputs["client-1"] = save_model(tmp_path / "first", Built(spec=spec, module=spec.new()))
    before = load_model(inputs["client-1"].path).module.state_dict()
    out = stage.run(inputs, toy_context(tmp_path / "out")).outputs
    built = stage._built("client-1", inputs)
    assert same(dict(built.module.state_dict()), dict(before))
    assert not same(dict(load_model(out["client-1"].path).module.state_dict()), dict(before))


class Says(nn.Module):
    """Predicts given classes by id."""

    def __init__(self, said: list[int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(F.one_hot(torch.tensor(said), 2).float())

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.logits[batch["id"]]}


def test_accuracies_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    # client a is right on rows 0, 1, 3; client b on 2
    models = {"a": Says([0, 0, 1, 1]), "b": Says([1, 1, 0, 0])}
    shares = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.5, 0.5], [0.0, 0.5]])
    data = TensorData({"labels": labels, "weights": shares})
    with torch.no_grad():
        found = FederatedAccuracy(clients=("a", "b"), batch=3)(models, data, work=Work())
    assert found["alma_accuracy"] == pytest.approx((0.5 + 0.5) / 2)
    # a: (2/3 + 1) / 2; b: (1/3 + 0) / 2
    assert found["global_accuracy"] == pytest.approx((5 / 6 + 1 / 6) / 2)
    right = torch.tensor([[True, True, False, True], [False, False, True, False]])
    assert personal_accuracy(right, shares).tolist() == pytest.approx([0.5, 0.5])
    # a client's own test rows, marked with 1: a is right on 2 of its 3, b on none of its 1
    own = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert personal_accuracy(right, own).tolist() == pytest.approx([2 / 3, 0])
    assert balanced_accuracy(right, labels).tolist() == pytest.approx([5 / 6, 1 / 6])


def test_what_an_exchange_scores_by_hand() -> None:
    exchange = Exchange(2, 2)
    sent = torch.full((2, 2), 2**18)
    exchange.note(0, torch.eye(2), sent)
    exchange.note(1, torch.tensor([[0.5, 0.5], [0.0, 1.0]]), sent)
    found = ExchangeScores()({"exchange": exchange}, TensorData({}), work=Work())
    # neighbours 2 and 1; own weights 1/2 and 1; 2 rounds x 4 x 256 KiB
    assert found == {"effective_neighbours": 1.5, "self_weight": 0.75, "sent_mib": 2.0}


def test_an_evaluation_takes_clients_and_exchange(tmp_path: Path) -> None:
    out = (
        federate(rounds=1)
        .run(federated_inputs(tmp_path / "in"), toy_context(tmp_path / "out"))
        .outputs
    )
    test = dict(toy_data(30, 9).columns) | {"weights": torch.ones(30, 3)}
    inputs = {**out, "data": save_data(tmp_path / "test", test)}
    metrics = (FederatedAccuracy(clients=NAMES), ExchangeScores())
    stage = Evaluate(name="e", metrics=metrics, inputs={"data": "data.test"})
    found = stage.run(inputs, toy_context(tmp_path / "e")).outputs["scores"].open()
    names = ("alma_accuracy", "global_accuracy", "effective_neighbours", "self_weight", "sent_mib")
    assert tuple(found) == names
    assert found["sent_mib"] == pytest.approx(3 * 2 * 280 / 2**20)


def test_the_picture_of_weights_shows_the_last_round() -> None:
    exchange = Exchange(2, 2)
    last = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    exchange.note(0, torch.eye(2), torch.zeros(2, 2, dtype=torch.int64))
    exchange.note(1, last, torch.zeros(2, 2, dtype=torch.int64))
    (axes, _) = FusionWeights()({"exchange": exchange}, TensorData({}), work=Work()).axes
    assert axes.images[0].get_array().tolist() == last.tolist()
    assert [text.get_text() for text in axes.texts] == ["0.75", "0.25", "0.00", "1.00"]
    with pytest.raises(BadData, match="role 'a' is no exchange of a Federate stage"):
        FusionWeights(exchange="a")({"a": Says([0])}, TensorData({}), work=Work())


def test_the_picture_of_labels_shows_what_the_test_rows_are_weighed_by() -> None:
    labels = torch.tensor([0, 2, 0, 1])
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    data = TensorData({"labels": labels, "weights": personal_weights(labels, shares)})
    (axes, _) = ClientLabels()({}, data, work=Work()).axes
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array().tolist()), shares)
    assert [text.get_text() for text in axes.texts] == [
        "0.25",
        "0.75",
        "0.00",
        "0.00",
        "0.50",
        "0.50",
    ]
    with pytest.raises(BadData, match="the evaluation data hold no sample"):
        ClientLabels()({}, TensorData({}), work=Work())


def test_the_picture_of_labels_does_not_read_all_test_images_at_once() -> None:
    class Watched(TensorData):
        most = 0

        def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
            for batch in super().batches(size, rng=rng):
                self.most = max(self.most, len(batch["id"]))
                yield batch

    labels = torch.arange(600) % 3
    data = Watched({"labels": labels, "weights": torch.ones(600, 2)})
    (axes, _) = ClientLabels()({}, data, work=Work()).axes
    assert axes.images[0].get_array().tolist() == [[200.0] * 3] * 2
    assert data.most < 600


GROUPS, MEMBERS, LOCAL = ((0, 1), (2, 3)), (2, 2), 24
FOUR = tuple(f"client-{k}" for k in range(4))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.head(batch["x"])}


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Four noisy classes: a transfer set, a test set, and two clients for each pair of classes."""

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        labels = torch.arange(240) % 4
        x = F.one_hot(labels, 4) + 0.3 * torch.randn(240, 4, generator=work.rng)
        private = torch.arange(80, 240)
        parts = grouped_split(labels[private], groups=GROUPS, members=MEMBERS, size=LOCAL, seed=0)
        shares = torch.tensor([[0.5, 0.5, 0, 0]] * 2 + [[0, 0, 0.5, 0.5]] * 2)
        test = {"x": x[40:80], "labels": labels[40:80]}
        return {
            "transfer": {"x": x[:40], "labels": labels[:40]},
            "test": {**test, "weights": personal_weights(labels[40:80], shares)},
            **{
                name: {"x": x[private[part]], "labels": labels[private[part]]}
                for name, part in zip(FOUR, parts, strict=True)
            },
        }


def federation() -> Recipe:
    """Blobs to clients to scores, as a recipe."""
    made = federate(
        inputs={"transfer": "data.transfer", **{f"{n}-data": f"data.{n}" for n in FOUR}},
        fresh={name: Model(build=Linear) for name in FOUR},
        classes=4,
        rounds=4,
        plan=replace(PLAN, epochs=10),
    )
    return Recipe(
        name="toy/toy",
        reference="none",
        stages=(
            Make(name="data", make=Blobs(), inputs={}, ports=("transfer", "test", *FOUR)),
            made,
        ),
    )


def test_clients_of_a_group_find_each_other(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="toy/toy", variant="v")
    run_recipe(federation(), runs)
    exchange = load_model(runs.folder / "knfu" / "exchange").module
    last = exchange.weights[-1]
    # a client and its one neighbour, alike; next to nothing from the other group
    assert last[:2, :2].sum(1).min() > 0.99
    assert last[2:, 2:].sum(1).min() > 0.99
    assert last.max() < 0.9


def test_a_killed_federation_goes_on_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    recipe = federation()
    whole = Runs(root=tmp_path / "whole", recipe="toy/toy", variant="v")
    run_recipe(recipe, whole)
    runs = Runs(root=tmp_path / "killed", recipe="toy/toy", variant="v")
    run_stage(recipe, recipe.stage("data"), runs)
    dying = replace(runs, observe=die_at_checkpoint)
    with pytest.raises(KilledError):
        run_stage(recipe, recipe.stage("knfu"), dying)
    assert finished(recipe.stage("knfu"), runs) is None
    assert len(list((home() / "checkpoints").glob("*/step-*"))) == 1
    events: list[Event] = []
    outputs = run_stage(recipe, recipe.stage("knfu"), replace(runs, observe=events.append))
    assert "resumed at round 1" in [event.text for event in events]
    expected = finished(recipe.stage("knfu"), whole)
    assert expected is not None
    assert digests(outputs) == digests(expected.outputs)
    assert not list((home() / "checkpoints").glob("*/"))


def test_messages_of_a_stage() -> None:
    data = federate().inputs
    with pytest.raises(BadSetting, match=r"stage 'knfu': rounds must be >= 1 \(got 0\)"):
        federate(rounds=0)
    with pytest.raises(BadRecipe, match="stage 'knfu': no client; name models in `fresh` or ports"):
        federate(fresh={}, inputs={})
    with pytest.raises(BadRecipe, match="no port 'transfer'; fusion needs a transfer set"):
        federate(inputs={k: v for k, v in data.items() if k != "transfer"})
    with pytest.raises(
        BadRecipe, match="client 'client-2' has no data; add a port 'client-2-data'"
    ):
        federate(inputs={k: v for k, v in data.items() if k != "client-2-data"})
    with pytest.raises(UnknownName, match="unknown client 'cleint-2'. Did you mean 'client-2'"):
        federate(inputs={**data, "cleint-2-data": "data.x"})
    with pytest.raises(BadRecipe, match="client 'client-1' is both fresh and a port"):
        federate(inputs={**data, "client-1": "local.client-1"})
    for name in ("a/b", "exchange", "transfer", "x-data"):
        with pytest.raises(BadRecipe, match=f"a client cannot be called '{name}'"):
            federate(fresh={name: federate().fresh["client-1"]}, inputs=data)
    with pytest.raises(BadSetting, match=r"absorb_epochs must be >= 1 \(got 0\)"):
        Plan(absorb_epochs=0)
    with pytest.raises(BadSetting, match=r"temperature must be > 0 \(got 0.0\)"):
        Plan(temperature=0.0)


def test_messages_of_a_run(tmp_path: Path) -> None:
    inputs = federated_inputs(tmp_path / "in")
    ctx = toy_context(tmp_path / "out")

    def run(**changes: Artifact) -> None:
        federate().run({**inputs, **{k.replace("_", "-"): v for k, v in changes.items()}}, ctx)

    columns = dict(toy_data(8).columns)
    wrong = save_data(tmp_path / "wrong", {**columns, "labels": torch.arange(8)})
    with pytest.raises(BadData, match=r"port 'transfer': labels must be 0 ... 4 \(got 0 ... 7\)"):
        run(transfer=wrong)
    with pytest.raises(BadData, match=r"port 'client-2-data': labels must be 0 ... 4"):
        run(client_2_data=wrong)
    bare = save_data(tmp_path / "bare", {"images": columns["images"]})
    with pytest.raises(BadData, match="port 'client-2-data' has no column 'labels'"):
        run(client_2_data=bare)
    run(transfer=bare)  # a transfer set needs none
    raw = replace(inputs["transfer"], opener="stillhouse.inputs:as_path")
    with pytest.raises(
        BadRecipe, match=r"port 'transfer' must be a stage's data \(got data.transfer\)"
    ):
        run(transfer=raw)


def test_messages_of_metrics() -> None:
    data = TensorData({"labels": torch.tensor([0]), "weights": torch.ones(1, 1)})
    models = {"a": Says([0]), "b": Says([0])}
    with pytest.raises(
        BadData, match=r"'weights' must have 2 values a row, one a client \(got \[1\]\)"
    ):
        FederatedAccuracy(clients=("a", "b"))(models, data, work=Work())
    with pytest.raises(UnknownName, match="federated accuracy: unknown client 'c'"):
        FederatedAccuracy(clients=("c",))(models, data, work=Work())
    with pytest.raises(BadData, match="> 0 somewhere for each client"):
        personal_accuracy(torch.tensor([[True]]), torch.zeros(1, 1))
    with pytest.raises(BadData, match="role 'a' is no exchange of a Federate stage"):
        ExchangeScores(exchange="a")(models, data, work=Work())
