"""Search, conversion, export, profile and classification scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.data import TensorData, save_data
from stillhouse.data.data import Columns, Data, Rows
from stillhouse.data.notes import note
from stillhouse.data.shards import load_data
from stillhouse.errors import BadRecipe, BadSetting, ContractError, OutOfMemory, UnknownName
from stillhouse.export import Export
from stillhouse.inputs import outside
from stillhouse.metrics import Classification, Latencies, Latency, Memory, Profile
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import (
    Composed,
    Models,
    Optimizer,
    Phase,
    Tensors,
    Weighted,
)
from stillhouse.objectives.term import Term
from stillhouse.profile import macs
from stillhouse.quantize.ptq import Quantize
from stillhouse.recipe import Event
from stillhouse.stages import Convert, Evaluate, Make, Search, Train
from stillhouse.stages.search import Encoding
from stillhouse.work import Work

from .toys import SITE, Net, toy_context, toy_data, toy_models, toy_objective


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Networks of width 1 to 12."""

    def sample(self, rng: Generator) -> Encoding:
        return {"width": int(torch.randint(1, 13, (), generator=rng))}

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        return {"width": encoding["width"] % 12 + 1}

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return {"parameters": sum(p.numel() for p in self.model(encoding).new().parameters())}

    def model(self, encoding: Encoding) -> Model:
        return Model(build=Net, kwargs=dict(encoding))


@dataclass(frozen=True, kw_only=True)
class Widest:
    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        return float(candidate.kwargs["width"])


def search(**changes: Any) -> Search:
    given: dict[str, Any] = {
        "name": "s",
        "space": Widths(),
        "score": Widest(),
        "budget": {"parameters": 330},
        "trials": 50,
        "inputs": {},
    }
    return Search(**{**given, **changes})


def test_a_search_keeps_the_best_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    out = search().run({}, toy_context(tmp_path)).outputs
    # by hand: width w has 28 w (conv) + 2 w (norm) + 5 w + 5 (head) = 35 w + 5 parameters; 330 allows w <= 9
    assert load_model(out["model"].path).spec.kwargs == {"width": 9}
    trials = load_data(out["trials"].path)
    assert (
        len(trials) == 9
    )  # each fitting architecture once: the closed space is used up before 50 trials
    assert sorted(json.loads(t)["width"] for t in trials.columns["encoding"]) == list(range(1, 10))
    again = search().run({}, toy_context(tmp_path / "again")).outputs
    assert again["model"].digest == out["model"].digest
    assert again["trials"].digest == out["trials"].digest


def test_a_search_that_cannot_succeed_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        BadSetting, match=r"stage 's': no candidate fits the budget {'parameters': 3}; raise it"
    ):
        search(budget={"parameters": 3}).run({}, toy_context(tmp_path))
    with pytest.raises(
        BadRecipe, match="budget 'macs' is not a cost of the space: \\['parameters'\\]"
    ):
        search(budget={"macs": 3}).run({}, toy_context(tmp_path))


def export_inputs(folder: Path) -> dict[str, Artifact]:
    built = Built(spec=Model(build=Net, kwargs={"width": 4}), module=toy_models()["student"].eval())
    return {
        "student": save_model(folder / "in", built),
        "data": save_data(folder / "data", toy_data().columns),
    }


def test_an_export_is_checked_and_holds_no_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    card = Card(title="A toy", task="image-classification", paper="none")
    stage = Convert(name="export", convert=Export(card=card), inputs={})
    out = stage.run(export_inputs(tmp_path), toy_context(tmp_path)).outputs["model"].path
    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    images = toy_data().columns["images"][:7]  # another batch size than the one exported with
    (found,) = session.run(["logits"], {"images": images.numpy()})
    expected = load_model(out).module({"images": images})["logits"]
    torch.testing.assert_close(torch.from_numpy(found), expected.detach(), atol=1e-5, rtol=1e-5)
    assert "title" not in (out / "README.md").read_text().split("---")[1]
    assert "# A toy" in (out / "README.md").read_text()
    names = load_model(out).module.state_dict()
    assert sum(v.numel() for v in names.values()) < 200
    assert json.loads((out / "export.json").read_text())["opset"] >= 17


def test_an_export_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    stage = Convert(name="export", convert=Export(tolerance=-1.0), inputs={})
    with pytest.raises(ContractError, match=r"model.onnx differs from torch by .* on real inputs"):
        stage.run(export_inputs(tmp_path), toy_context(tmp_path))
    with pytest.raises(BadSetting, match=r"opset must be >= 17 \(got 11\)"):
        Export(opset=11)
    with pytest.raises(BadRecipe, match="needs the ports 'student' and 'data'"):
        Export()({}, tmp_path / "x", work=Work())
    inputs = {port: a.open() for port, a in export_inputs(tmp_path / "c").items()}
    with pytest.raises(BadRecipe, match="the data have no column 'pixels'"):
        Export(inputs=("pixels",))(inputs, tmp_path / "y", work=Work())


def leaves_nothing(inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
    out.mkdir()


def test_a_conversion_must_leave_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="stage 'c': convert left no model.json"):
        Convert(name="c", convert=leaves_nothing, inputs={}).run({}, toy_context(tmp_path))


def test_a_conversion_that_takes_long_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    seen: list[Event] = []
    ctx = replace(toy_context(tmp_path), observe=seen.append)
    stage = Convert(name="w8", convert=Quantize(candidates=2, rounds=1), inputs={})
    stage.run(export_inputs(tmp_path), ctx)
    # a convolution and a layer
    assert [(e.stage, e.done, e.total, e.text) for e in seen] == [
        (ctx.stage, 1, 2, "ops"),
        (ctx.stage, 2, 2, "ops"),
    ]


class Places(nn.Module):
    """Gives a parameter of its own, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(3, 4)
        self.outer = nn.Linear(4, 2)

    def forward(self, batch: Tensors) -> Tensors:
        return {"position": self.inner.weight[0].expand(len(batch["id"]), -1)}


class Around(nn.Module):
    """A network one part of which gives a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places()

    def forward(self, batch: Tensors) -> Tensors:
        return {"out": self.places.outer(self.places(batch)["position"])}


def test_counting_products_leaves_what_is_trained_as_it_was() -> None:
    net = Around()
    net.places.outer.bias.requires_grad_(False)
    assert macs(net, {"id": torch.arange(5)}) == 5 * 4 * 2
    assert [p.requires_grad for p in net.parameters()] == [True, True, False]


class Fixed(nn.Module):
    """Answers with given logits by id."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.logits[batch["id"]]}


def test_classification_by_hand() -> None:
    student = Fixed(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]]))
    teacher = Fixed(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 0.0]]))
    data = TensorData({"labels": torch.tensor([0, 1, 1, 0])})
    with torch.no_grad():
        scores = Classification(teacher="teacher", batch=3)(
            {"student": student, "teacher": teacher}, data, work=Work()
        )
    # right on rows 0, 1, 3; agrees with the teacher on rows 0 and 3
    assert scores["accuracy"] == pytest.approx(0.75)
    assert scores["teacher_agreement"] == pytest.approx(0.5)
    # log(1 + e^-2) = 0.126928 where right, log(1 + e^2) = 2.126928 where wrong
    assert scores["nll_loss"] == pytest.approx((3 * 0.126928 + 2.126928) / 4, abs=1e-5)
    # one bin: confidence 1 / (1 + e^-2) = 0.880797 against an accuracy of 0.75
    assert scores["calibration_error"] == pytest.approx(0.880797 - 0.75, abs=1e-5)
    assert "top5_accuracy" not in scores


def test_recall_of_each_class_by_hand() -> None:
    student = Fixed(torch.eye(3)[[0, 1, 0, 0, 1]])
    data = TensorData({"labels": torch.tensor([0, 1, 1, 0, 1])})
    metric = Classification(names=("cat", "dog", "rat"))
    with torch.no_grad():
        found = metric({"student": student}, data, work=Work())
        # both cats, two of three dogs; there is no rat, whose recall would be 0 / 0
        assert {key: value for key, value in found.items() if isinstance(key, tuple)} == {
            ("cat", "class_recall"): 1.0,
            ("dog", "class_recall"): pytest.approx(2 / 3),
        }
        assert found["accuracy"] == pytest.approx(0.8)
        with pytest.raises(BadRecipe, match="Classification: 2 names for 3 classes"):
            replace(metric, names=("cat", "dog"))({"student": student}, data, work=Work())


def test_costs_by_hand() -> None:
    models = {"student": toy_models()["student"].requires_grad_(False)}
    cost = Profile()(models, toy_data(), work=Work())
    assert cost["parameters"] == 35 * 4 + 5
    # 3 x 3 x 3 weights a channel at 64 places, and a 4 x 5 head
    assert cost["macs"] == 27 * 4 * 64 + 20
    # 145 parameters, running mean and variance of 4 channels in 4 bytes, one counter in 8
    assert cost["size_mib"] == pytest.approx((4 * (145 + 8) + 8) / 2**20)
    speed = Latency(batches=(1, 4), runs=3)(models, toy_data(), work=Work())
    assert set(speed) == {"latency_b1_ms", "latency_b4_ms"}
    assert min(speed.values()) > 0
    # at least the convolution's output [32, 4, 8, 8] in 4 bytes is alive at once
    assert Memory()(models, toy_data(), work=Work())["peak_memory_mib"] >= 32 * 4 * 64 * 4 / 2**20
    with pytest.raises(BadSetting, match="runs and batch sizes must be >= 1"):
        Latency(runs=0)


@pytest.mark.parametrize(("seconds", "forwards"), [(0.001, 5 + 30), (6.0, 1 + 3), (1.0, 3 + 11)])
def test_forwards_that_take_long_are_timed_fewer_times(
    monkeypatch: pytest.MonkeyPatch, seconds: float, forwards: int
) -> None:
    clock, calls = [0.0], list[int]()

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, batch: object) -> dict[str, Tensor]:
            calls.append(1)
            clock[0] += seconds
            return {"logits": self.weight}

    monkeypatch.setattr("stillhouse.profile.time.perf_counter", lambda: clock[0])
    found = Latency(batches=(1,))({"student": Slow()}, toy_data(), work=Work())
    assert found["latency_b1_ms"] == pytest.approx(1000 * seconds)
    assert len(calls) == forwards
    calls.clear()
    lines = {"a": "student", "b": "student"}
    in_turns = Latencies(lines=lines, batches=(1,))({"student": Slow()}, toy_data(), work=Work())
    assert in_turns["b", "latency_b1_ms"] == pytest.approx(1000 * seconds)
    assert len(calls) == 2 * forwards


def test_directions_of_scores() -> None:
    metrics = (Classification(teacher="teacher"), Profile(), Latency(batches=(1,)), Memory())
    declared = [score for metric in metrics for score in metric.scores()]
    assert {s.name for s in declared if s.better == "higher"} == {
        *("accuracy", "top5_accuracy", "teacher_agreement")
    }
    assert {s.name for s in declared if s.better == "lower" and not s.cost} == {
        *("nll_loss", "calibration_error")
    }
    assert {s.name for s in declared if s.cost} == {
        *("parameters", "macs", "size_mib", "latency_b1_ms", "peak_memory_mib")
    }


@dataclass(frozen=True, kw_only=True)
class NotANumber(Metric):
    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[str, float]:
        return {"x": float("nan")}

    def scores(self) -> Sequence[Score]:
        return (Score(name="x", better="higher"),)


def test_an_evaluation_separates_scores_from_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    stage = Evaluate(
        name="e", metrics=(Classification(),), measures=(Latency(runs=2),), inputs={"data": "a.b"}
    )
    ctx = toy_context(tmp_path)
    result = stage.run(export_inputs(tmp_path), ctx)
    assert set(result.outputs["scores"].open()) == {"accuracy", "nll_loss", "calibration_error"}
    assert {"accuracy", "latency_b1_ms"} < set(result.scores)
    with pytest.raises(BadRecipe, match="stage 'e': two metrics give 'accuracy'; rename one"):
        replace(stage, metrics=(Classification(), Classification())).run(
            export_inputs(tmp_path / "2"), toy_context(tmp_path / "2o", stage="e")
        )
    from stillhouse.errors import BadData

    with pytest.raises(BadData, match="stage 'e': NotANumber gave x = nan"):
        replace(stage, metrics=(NotANumber(),)).run(
            export_inputs(tmp_path / "3"), toy_context(tmp_path / "3o", stage="e")
        )


def hungry_loss(logits: torch.Tensor, *, rows: int) -> torch.Tensor:
    """Needs memory for every row, and runs out of it."""
    if len(logits) > rows:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return logits.square().mean()


def hungry(rows: int, micro_batch: int | None, accumulate: int = 1) -> Train:
    phase = Phase(trains=("student",), optimizer=Optimizer(lr=0.1), accumulate=accumulate)
    objective = Composed(
        phases={"main": phase},
        losses={"needs": Weighted(term=Term(hungry_loss, "student.logits", rows=rows))},
    )
    return Train(
        name="student",
        objective=objective,
        inputs={"data": "data.train"},
        fresh={"student": Model(build=Net, kwargs={"width": 4})},
        steps=5,
        batch=16,
        micro_batch=micro_batch,
    )


def test_a_batch_that_does_not_fit_may_go_in_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    data = {"data": save_data(tmp_path / "data", toy_data().columns)}
    halves = hungry(8, 4, accumulate=2).run(data, toy_context(tmp_path / "halves")).outputs
    with pytest.raises(OutOfMemory, match="run again with STILLHOUSE_MICRO_BATCHES=2") as told:
        hungry(8, 4).run(data, toy_context(tmp_path / "one"))
    assert told.value.again
    two = toy_context(tmp_path / "two", micro_batches=2)
    sliced = hungry(8, 4).run(data, two)
    assert sliced.measured["micro_batches"] == 2
    assert sliced.outputs["student"].digest == halves["student"].digest
    for stage, why in (
        (hungry(2, 4), "micro-batches under 4 forbid"),
        (hungry(2, None), "its losses"),
    ):
        with pytest.raises(OutOfMemory, match=why) as told:
            stage.run(data, toy_context(tmp_path / why.split()[0], micro_batches=4))
        assert not told.value.again


@dataclass(frozen=True, kw_only=True)
class FirstRows(Composed):
    """Trains on the first 8 rows, chosen once: a pass of one batch."""

    refresh_every: int = 1000

    def refresh(self, models: Models, data: Data, *, step: int, work: Work) -> Data:
        assert isinstance(data, TensorData)
        return Rows(data, torch.arange(8))


def test_a_selection_has_more_views_than_the_data_have_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps are one pass of the data and six of the selection: all its views are stored."""
    monkeypatch.syspath_prepend(str(SITE))
    base = toy_objective()
    teacher = Built(spec=Model(build=Net, kwargs={"width": 12}), module=toy_models()["teacher"])
    stage = Train(
        name="t",
        objective=FirstRows(phases=base.phases, losses=base.losses),
        inputs={"data": "d.d", "teacher": "t.t"},
        fresh={"student": Model(build=Net, kwargs={"width": 4})},
        cache={"teacher": Cache()},
        steps=6,
        batch=8,
        views=4,
    )
    inputs = {
        "teacher": save_model(tmp_path / "teacher", teacher),
        "data": save_data(tmp_path / "data", toy_data().columns),
    }
    digests = {port: artifact.digest for port, artifact in inputs.items()}
    ctx = toy_context(tmp_path / "run", digests=digests)
    found = stage.run(inputs, ctx).measured
    assert found["teacher_cache"]["teacher"]["views"] == 4
    assert found["refreshes"] == [{"step": 0, "selected": 8}]


def read_and_tell(inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Iterator[Columns]]:
    def rows() -> Iterator[Columns]:
        note("2 file(s) not read")
        yield {"x": torch.zeros(3, 1)}

    return {"train": rows()}


def test_notes_of_a_reader_are_events_and_stay_in_the_record(tmp_path: Path) -> None:
    events: list[Event] = []
    ctx = replace(toy_context(tmp_path), observe=events.append)
    made = Make(name="data", make=read_and_tell, inputs={}, ports=("train",)).run({}, ctx)
    assert [event.text for event in events] == ["note: 2 file(s) not read"]
    assert made.measured["notes"] == ["2 file(s) not read"]


def following(**changes: Any) -> Train:
    given: dict[str, Any] = {
        "name": "student",
        "objective": toy_objective(),
        "inputs": {"data": "data.train", "teacher": "teacher.teacher"},
        "fresh": {"student": Model(build=Net, kwargs={"width": 4})},
        "steps": 2,
        "batch": 4,
    }
    return Train(**{**given, **changes})


def test_a_role_that_a_term_reads_and_no_port_gives_is_one_line() -> None:
    with pytest.raises(
        UnknownName,
        match="stage 'student': a term reads: unknown role 'teacher'. Did you mean 'teachr'",
    ):
        following(inputs={"data": "data.train", "teachr": "teacher.teacher"})


def test_a_port_that_holds_something_else_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    data = save_data(tmp_path / "data", toy_data().columns)
    spec = Model(build=Net, kwargs={"width": 4})
    model = save_model(tmp_path / "model", Built(spec=spec, module=spec.new()))
    (tmp_path / "notes.txt").write_text("x")
    notes = outside("file:notes.txt", tmp_path)
    ctx, stage = toy_context(tmp_path / "out"), following()
    scores = Evaluate(
        name="e", metrics=(Classification(),), inputs={"data": "a.b", "student": "c.d"}
    )
    for given, message in (
        ({"data": data, "teacher": data}, "port 'teacher' holds data, and is read as a role"),
        ({"data": data, "teacher": notes}, "port 'teacher' holds a file or folder, and is read as"),
        ({"data": model, "teacher": model}, "port 'data' holds a model, and is read as data that"),
    ):
        with pytest.raises(BadRecipe, match=f"^stage 'student': {message}"):
            stage.run(given, ctx)
    with pytest.raises(BadRecipe, match="^stage 'e': port 'student' holds data, and is read as a"):
        scores.run({"data": data, "student": data}, ctx)
    with pytest.raises(BadRecipe, match="^stage 'e': port 'data' holds a model, and is read as"):
        scores.run({"data": model, "student": model}, ctx)
    misspelt = replace(scores, inputs={"data": "a.b", "studnt": "c.d"})
    with pytest.raises(UnknownName, match="^stage 'e': unknown role 'student'. Did you mean 'st"):
        misspelt.run({"data": data, "studnt": model}, ctx)
