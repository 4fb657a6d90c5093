"""What a domain's code is called with: a frozen network in parts, killed and resumed, shared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse.artifact import OPEN_MODEL, Artifact, Built, Model, save_model
from stillhouse.data.data import Columns, Data, TensorData
from stillhouse.data.shards import load_data, save_data
from stillhouse.digest import path_digest
from stillhouse.errors import BadRecipe, BadSetting, StillhouseError
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Context, Event
from stillhouse.stages import Convert, Evaluate, Make
from stillhouse.work import Work

from .toys import SITE, Net


class KilledError(BaseException):
    """A death that nothing on the way swallows."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A `make` (and a `convert`): 10 samples of a frozen network, from noise of the part's own."""

    count: int = 10
    size: int = 4

    def parts(self, inputs: Mapping[str, Any], work: Work) -> Iterator[Columns]:
        network = inputs["network"].module.to(work.device).eval()

        def compute(first: int, last: int, rng: Generator) -> Columns:
            noise = torch.randn(last - first, 3, 4, 4, generator=rng).to(work.device)
            with torch.no_grad():
                found = network({"images": noise})["logits"]
            # two columns of text, which are no longer in this order when they are read back
            names = [f"sample {row}" for row in range(first, last)]
            return {"y": found.cpu(), "name": names, "kind": ["noise"] * len(names)}

        return work.parts("samples", self.count, compute, of=self, size=self.size)

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Iterator[Columns]]:
        return {"drawn": self.parts(inputs, work)}


@dataclass(frozen=True, kw_only=True)
class MeanOf:
    """A `convert`: a network whose last bias is the mean of what was sampled."""

    sampled: Sampled = Sampled()

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        seen = [part["y"] for part in self.sampled.parts(inputs, work)]
        built: Built = inputs["network"]
        with torch.no_grad():
            built.module.get_parameter("head.bias").copy_(torch.cat(seen).mean(0))
        save_model(out, built)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.syspath_prepend(str(SITE))
    torch.manual_seed(0)
    spec = Model(build=Net, kwargs={"width": 4})
    save_model(tmp_path / "network", Built(spec=spec, module=spec.new()))
    folder = tmp_path / "network"
    return Artifact(kind="model", path=folder, digest=path_digest(folder), opener=OPEN_MODEL)


def context(folder: Path, events: list[Event] | None = None, *, dies_after: int = 0) -> Context:
    seen: list[Event] = [] if events is None else events

    def observe(event: Event) -> None:
        seen.append(event)
        if dies_after and event.done >= dies_after:
            raise KilledError

    return Context(
        stage="drawn",
        out=folder / "out",
        checkpoints=folder / "checkpoints",
        caches=folder / "caches",
        observe=observe,
    )


def stage() -> Make:
    return Make(name="drawn", make=Sampled(), inputs={"network": "file:net"}, ports=("drawn",))


def test_a_make_runs_a_network_in_parts_and_reports_each(tmp_path: Path, network: Artifact):
    events: list[Event] = []
    made = stage().run({"network": network}, context(tmp_path, events)).outputs["drawn"]
    assert [(e.text, e.done, e.total) for e in events] == [
        ("samples", 4, 10), ("samples", 8, 10), ("samples", 10, 10),
    ]  # fmt: skip
    data = load_data(made.path)
    assert data.columns["id"].tolist() == list(range(10))
    assert data.columns["name"][7] == "sample 7"
    assert len(torch.unique(data.columns["y"], dim=0)) == 10  # no part draws another's noise


def test_a_make_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path, network: Artifact):
    whole = stage().run({"network": network}, context(tmp_path / "whole")).outputs["drawn"]
    with pytest.raises(KilledError):
        stage().run({"network": network}, context(tmp_path / "again", dies_after=8))
    kept = sorted((tmp_path / "again" / "checkpoints").rglob("000000*"))
    assert [folder.name for folder in kept if folder.is_dir()] == ["000000000", "000000004"]
    marks = {folder: folder.stat().st_mtime_ns for folder in kept if folder.is_dir()}
    later = replace(context(tmp_path / "again"), out=tmp_path / "again" / "later")
    again = stage().run({"network": network}, later).outputs["drawn"]
    assert again.digest == whole.digest
    assert {folder: folder.stat().st_mtime_ns for folder in marks} == marks  # not made anew


def test_a_damaged_part_is_made_again(tmp_path: Path, network: Artifact):
    whole = stage().run({"network": network}, context(tmp_path)).outputs["drawn"]
    shard = next((tmp_path / "checkpoints").rglob("00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    later = replace(context(tmp_path), out=tmp_path / "later")
    assert stage().run({"network": network}, later).outputs["drawn"].digest == whole.digest


def test_a_convert_runs_a_network_in_parts_and_goes_on(tmp_path: Path, network: Artifact):
    convert = Convert(name="drawn", convert=MeanOf(), inputs={"network": "file:net"})
    whole = convert.run({"network": network}, context(tmp_path / "whole")).outputs["model"]
    with pytest.raises(KilledError):
        convert.run({"network": network}, context(tmp_path / "again", dies_after=4))
    again = convert.run({"network": network}, context(tmp_path / "again")).outputs["model"]
    assert again.digest == whole.digest


def test_who_asks_for_the_same_parts_reads_them(tmp_path: Path):
    calls: list[int] = []

    def compute(first: int, last: int, rng: Generator) -> Columns:
        calls.append(first)
        return {"y": torch.rand(last - first, generator=rng)}

    found = []
    for _ in range(3):  # three metrics of one stage
        work = Work.of(context(tmp_path), 7)
        parts = list(work.parts("images", 6, compute, of={"steps": 18}, size=3))
        found.append(torch.cat([part["y"] for part in parts]))
    assert calls == [0, 3]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    other = Work.of(context(tmp_path), 7).parts("images", 6, compute, of={"steps": 9}, size=3)
    list(other)
    assert calls == [0, 3, 0, 3]


def test_parts_depend_on_seed_and_name_and_not_on_what_was_drawn_before():
    def compute(first: int, last: int, rng: Generator) -> Columns:
        return {"y": torch.rand(last - first, generator=rng)}

    def drawn(seed: int, name: str, *, before: int = 0) -> list[float]:
        work = Work.seeded(seed)
        torch.rand(before, generator=work.rng)
        return TensorData(next(work.parts(name, 2, compute, of=None))).columns["y"].tolist()

    assert drawn(1, "a") == drawn(1, "a", before=5)
    assert drawn(1, "a") != drawn(2, "a")
    assert drawn(1, "a") != drawn(1, "b")


@pytest.mark.parametrize(
    ("name", "rows", "size", "error", "message"),
    [
        ("a/b", 2, 1, BadRecipe, "parts 'a/b': a name has only letters"),
        ("a", 0, 1, BadSetting, "a: rows and size must be >= 1 (got 0 and 1)"),
        ("a", 2, 2, BadRecipe, "a: rows 0 to 2 came as columns of {'y': 3} rows"),
    ],
)
def test_parts_that_cannot_be_are_named(
    name: str, rows: int, size: int, error: type[StillhouseError], message: str
):
    def compute(first: int, last: int, rng: Generator) -> Columns:
        return {"y": torch.zeros(3)}

    with pytest.raises(error) as raised:
        list(Work().parts(name, rows, compute, of=None, size=size))
    assert str(raised.value).startswith(message)


def test_a_record_of_parts_is_plain_json(tmp_path: Path, network: Artifact):
    stage().run({"network": network}, context(tmp_path))
    record = json.loads(next((tmp_path / "checkpoints").rglob("data.json")).read_text())
    assert record["rows"] == 4


@dataclass(frozen=True, kw_only=True)
class Spread(Metric):
    """A metric: the spread of one output of what a network gives for sampled noise."""

    output: int
    sampled: Sampled = Sampled()

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        built = Built(spec=Model(build=Net), module=models["student"])
        parts = list(self.sampled.parts({"network": built}, work))
        values = torch.cat([part["y"] for part in parts])[:, self.output]
        return {f"spread_{self.output}": float(values.std())}

    def scores(self) -> Sequence[Score]:
        return (Score(name=f"spread_{self.output}", better="neither"),)


def test_metrics_of_a_stage_share_what_was_sampled(tmp_path: Path, network: Artifact):
    ids = save_data(tmp_path / "data", {"id": torch.arange(3)})
    events: list[Event] = []
    stage = Evaluate(
        name="scores",
        metrics=tuple(Spread(output=i) for i in range(3)),
        inputs={"data": "file:data", "student": "file:net"},
    )
    ctx = replace(context(tmp_path, events), stage="scores")
    ctx.out.mkdir()
    found = stage.run({"data": ids, "student": network}, ctx).outputs["scores"].open()
    assert set(found) == {"spread_0", "spread_1", "spread_2"}
    assert len(set(found.values())) == 3
    kept = [f for f in (tmp_path / "checkpoints").rglob("000000*") if f.is_dir()]
    assert sorted(folder.name for folder in kept) == ["000000000", "000000004", "000000008"]
