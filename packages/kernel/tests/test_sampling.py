"""Batches from several sets, from few rows, from none; roles that read the plain view."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Generator, Tensor

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.cache import Cache
from stillhouse.data.data import Columns, Data, Ragged, TensorData
from stillhouse.data.sampling import Beside, Mix, NoData
from stillhouse.data.shards import load_data, save_data
from stillhouse.data.taking import Take
from stillhouse.digest import digest
from stillhouse.errors import BadData, BadRecipe, BadSetting, UnknownName
from stillhouse.metrics import Lines, Metric, On, Score
from stillhouse.objectives.objective import Composed, Models, Phase, Tensors, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Context, Event
from stillhouse.stages import Evaluate, Make, Train
from stillhouse.training import PlainView, Position, Setup, batches_from, micro_batches
from stillhouse.work import Work

from .toys import SITE, Net, Noise, Shift, toy_context, toy_data, toy_objective, toy_phase


def numbers(rows: int, start: int = 0, **more: Any) -> TensorData:
    return TensorData({"x": torch.arange(start, start + rows).float()[:, None], **more})


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def columns(batches: Any, name: str) -> list[list[Any]]:
    return [batch[name].tolist() for batch in batches]


def test_a_mix_keeps_its_ratio_in_every_batch_and_reads_every_row() -> None:
    mixed = Mix(parts={"few": 1, "many": 3}).open({"few": numbers(5), "many": numbers(60, 100)})
    assert len(mixed) == 80  # 60 rows of three in four
    batches = list(mixed.batches(8, rng=seeded()))
    assert len(batches) == 10
    for batch in batches:
        assert batch["source"].tolist().count(0) == 2
        assert ((batch["x"].flatten() >= 100) == (batch["source"] == 1)).all()
    many = torch.cat([b["x"][b["source"] == 1].flatten() for b in batches])
    assert sorted(many.tolist()) == list(range(100, 160))
    # 20 draws of the small set: read four times, each time whole, in new orders
    few = torch.cat([b["x"][b["source"] == 0].flatten() for b in batches]).view(4, 5)
    assert all(sorted(row.tolist()) == [0, 1, 2, 3, 4] for row in few)
    assert len({tuple(row.tolist()) for row in few}) > 1
    repeats = torch.cat([b["repeat"][b["source"] == 0] for b in batches])
    assert repeats.tolist() == [i // 5 for i in range(20)]
    # ids are distinct, and a row keeps its own
    ids = {(float(x), int(i)) for b in batches for x, i in zip(b["x"], b["id"], strict=True)}
    assert len(ids) == len({i for _, i in ids}) == 65


@pytest.mark.parametrize(
    "parts", [{"a": 1, "b": 1, "c": 1}, {"a": 50, "b": 5, "c": 45}, {"a": 7, "b": 1, "c": 3}]
)
def test_no_set_is_ever_a_row_from_its_share(parts: dict[str, int]) -> None:
    mixed = Mix(parts=parts).open({name: numbers(40) for name in parts})
    source = torch.cat([batch["source"] for batch in mixed.batches(7, rng=seeded())])
    for number, part in enumerate(parts.values()):
        given = (source == number).cumsum(0)
        share = torch.arange(1, len(source) + 1) * part / sum(parts.values())
        assert float((given - share).abs().max()) < 1


def test_a_pass_is_a_function_of_its_generator() -> None:
    mixed = Mix(parts={"a": 1, "b": 2}).open({"a": numbers(4), "b": numbers(9, 50)})
    first, again, other = (columns(mixed.batches(5, rng=seeded(s)), "x") for s in (1, 1, 2))
    assert first == again != other
    # in order: every row of every set once
    whole = [row[0] for rows in columns(mixed.batches(5, rng=None), "x") for row in rows]
    assert whole == [*range(4), *range(50, 59)]


def test_a_column_that_a_set_lacks_is_filled_or_refused() -> None:
    labelled = numbers(4, labels=torch.arange(4))
    mix = Mix(parts={"labelled": 1, "plain": 1}, fill={"labels": -1})
    (batch,) = mix.open({"labelled": labelled, "plain": numbers(4)}).batches(8, rng=seeded())
    assert sorted(batch["labels"].tolist()) == [-1, -1, -1, -1, 0, 1, 2, 3]
    sets = {"labelled": labelled, "plain": numbers(4)}
    with pytest.raises(BadData, match="'labelled' has a column 'labels' and 'plain' has none"):
        replace(mix, fill=None).open(sets)
    with pytest.raises(BadData, match="fill names 'label', which no set has"):
        replace(mix, fill={"labels": 0, "label": 1}).open(sets)
    with pytest.raises(BadData, match=r"column 'x' is float32 \[1\] in 'a' and float32 \[2\]"):
        Mix(parts={"a": 1, "b": 1}).open(
            {"a": numbers(2), "b": TensorData({"x": torch.ones(2, 2)})}
        )
    with pytest.raises(BadData, match="mix: 'b' holds no sample"):
        Mix(parts={"a": 1, "b": 1}).open({"a": numbers(2), "b": numbers(0)})
    with pytest.raises(BadSetting, match="two sets or more"):
        Mix(parts={"a": 1})
    with pytest.raises(BadSetting, match=r"a whole number >= 1 \(got \{'a': 0, 'b': 2\}\)"):
        Mix(parts={"a": 0, "b": 2})


@pytest.mark.parametrize("value", [0.5, -1, 256, float("nan")])
def test_a_column_gets_no_value_that_it_cannot_hold(value: float) -> None:
    """torch would make 0 of 0.5 and 255 of -1."""
    masked = numbers(4, mask=torch.zeros(4, 2, dtype=torch.uint8))
    sets = {"masked": masked, "plain": numbers(4)}
    with pytest.raises(BadData, match=f"fill gives 'mask' {value}, which a column of uint8"):
        Mix(parts={"masked": 1, "plain": 1}, fill={"mask": value}).open(sets)


def test_columns_of_a_mix_are_its_own() -> None:
    sets = {"a": numbers(4, source=torch.arange(4)), "b": numbers(4, source=torch.arange(4))}
    with pytest.raises(BadData, match="'a' has a column 'source', which is that of a mix itself"):
        Mix(parts={"a": 1, "b": 1}).open(sets)
    named = TensorData({"x": torch.zeros(2, 1), "id": ["first", "second"]})
    with pytest.raises(BadData, match="column 'id' of 'a' holds no whole numbers"):
        Mix(parts={"a": 1, "b": 1}).open({"a": named, "b": named})


def test_the_order_of_parts_is_in_their_digest() -> None:
    """Batches differ by it, so a stage must."""
    one, other = Mix(parts={"a": 1, "b": 1}), Mix(parts={"b": 1, "a": 1})
    assert digest(one) != digest(other)


@pytest.mark.parametrize(("nproc", "parts"), [(2, (1, 1)), (2, (1, 3)), (4, (1, 1)), (4, (2, 6))])
def test_each_process_has_its_share_of_each_set(nproc: int, parts: tuple[int, int]) -> None:
    """Rows of sets alternate: every second row would be one set's alone."""
    mixed = Mix(parts=dict(zip("ab", parts, strict=True))).open({"a": numbers(9), "b": numbers(30)})
    setup, found = Setup(steps=1, batch=16), list[Tensor]()
    for rank in range(nproc):
        ctx = Context(
            stage="t", out=Path(), checkpoints=Path(), caches=Path(), rank=rank, nproc=nproc
        )
        batch = next(batches_from(Position(), mixed, setup, ctx))
        first = 16 * parts[0] // sum(parts) // nproc
        assert batch["source"].tolist().count(0) == first
        assert len(batch["id"]) == 16 // nproc
        found.append(batch["id"])
    ctx = Context(stage="t", out=Path(), checkpoints=Path(), caches=Path())
    whole = next(batches_from(Position(), mixed, setup, ctx))["id"]
    assert sorted(torch.cat(found).tolist()) == sorted(whole.tolist())


def test_a_column_of_the_data_is_no_view() -> None:
    """Only a mix counts how often its sets were read."""
    data = numbers(8, repeat=torch.arange(8))
    ctx = Context(stage="t", out=Path(), checkpoints=Path(), caches=Path())
    batch = next(batches_from(Position(), data, Setup(steps=1, batch=8), ctx))
    assert batch["view"].tolist() == [0] * 8


def test_ragged_columns_are_mixed() -> None:
    def ragged(values: list[list[float]]) -> Columns:
        lengths = torch.tensor([0, *map(len, values)]).cumsum(0)
        flat = torch.tensor([v for row in values for v in row])
        return {"points": Ragged(values=flat, offsets=lengths)}

    sets = {"a": TensorData(ragged([[1.0], [2.0, 2.0]])), "b": TensorData(ragged([[], [3.0] * 3]))}
    (batch,) = Mix(parts={"a": 1, "b": 1}).open(sets).batches(4, rng=seeded(3))
    offsets = batch["points_offsets"].tolist()
    rows = [batch["points"][a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert sorted(rows) == [[], [1.0], [2.0, 2.0], [3.0, 3.0, 3.0]]
    assert [len(row) != 1 and len(row) != 2 for row in rows] == batch["source"].bool().tolist()


def test_sets_side_by_side() -> None:
    beside = Beside(ports=("pairs", "real"))
    data = beside.open({"pairs": numbers(3), "real": numbers(7, 100)})
    batches = list(data.batches(2, rng=seeded()))
    assert [len(batch["id"]) for batch in batches] == [2, 2, 2, 1]
    real = [x[0] for rows in columns(batches, "real.x") for x in rows]
    assert sorted(real) == [*range(100, 107)]
    pairs = [x[0] for rows in columns(batches, "pairs.x") for x in rows]
    assert sorted(pairs[:3]) == sorted(pairs[3:6]) == [0, 1, 2]
    with pytest.raises(BadSetting, match="each once"):
        Beside(ports=("a", "a"))


def test_taking_rows_by_class(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
    data = numbers(20, labels=labels, name=[f"row {i}" for i in range(20)])
    source = save_data(tmp_path / "data", data.columns)

    def taken(seed: int = 0, **changes: Any) -> TensorData:
        stage = Make(
            name="few", make=Take(**changes), inputs={"data": "d.d"}, ports=("train",), seed=seed
        )
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        made = stage.run({"data": source}, toy_context(folder)).outputs["train"]
        return load_data(made.path)

    few = taken(rows=8, by="labels")
    counts = torch.bincount(few.columns["labels"]).tolist()  # type: ignore[arg-type]
    assert sorted(counts) == [2, 3, 3]
    ids = few.columns["id"]
    assert isinstance(ids, Tensor)
    assert few.columns["name"] == [f"row {i}" for i in ids.tolist()]
    assert torch.equal(taken(rows=8, by="labels").columns["id"], ids)  # type: ignore[arg-type]
    assert not torch.equal(taken(seed=1, rows=8).columns["id"], taken(rows=8).columns["id"])  # type: ignore[arg-type]
    with pytest.raises(
        BadData, match="5 rows of labels 1 are wanted, and the data have 4; take at"
    ):
        taken(rows=15, by="labels")
    with pytest.raises(BadData, match="2 rows are fewer than the 3 values of 'labels'"):
        taken(rows=2, by="labels")
    with pytest.raises(BadData, match="21 rows are wanted, and the data have 20"):
        taken(rows=21)
    with pytest.raises(UnknownName, match="unknown column 'label'. Did you mean 'labels'"):
        taken(rows=3, by="label")


class Died(BaseException):
    """Kills a training at its checkpoint."""


def die(event: Event) -> None:
    if event.text == "checkpoint":
        raise Died


def labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the rows that have a label."""
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)


def sources(folder: Path) -> dict[str, Artifact]:
    few, many = toy_data(10), toy_data(50, seed=1)
    del many.columns["labels"]
    torch.manual_seed(1)
    teacher = Built(spec=Model(build=Net, kwargs={"width": 12}), module=Net(12).eval())
    return {
        "few": save_data(folder / "few", few.columns),
        "many": save_data(folder / "many", many.columns),
        "teacher": save_model(folder / "teacher", teacher),
    }


def run(stage: Train, given: Mapping[str, Artifact], folder: Path, **changes: Any) -> Any:
    digests = {port: artifact.digest for port, artifact in given.items()}
    return stage.run(given, toy_context(folder, digests=digests, **changes))


def semi_supervised(**changes: Any) -> Train:
    base = toy_objective()
    losses = {
        "ce": Weighted(term=Term(labelled_loss, "student.logits", "batch.labels")),
        "match": base.losses["match"],
    }
    given: dict[str, Any] = {
        "name": "student",
        "objective": Composed(phases=base.phases, losses=losses),
        "inputs": {"few": "few.train", "many": "data.train", "teacher": "t.teacher"},
        "fresh": {"student": Model(build=Net, kwargs={"width": 4})},
        "data": Mix(parts={"few": 1, "many": 1}, fill={"labels": -1}),
        "steps": 12,
        "batch": 8,
        "augment": Shift(),
    }
    return Train(**{**given, **changes})


def test_a_training_from_labelled_and_unlabelled_rows_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    given, stage = sources(tmp_path), semi_supervised()
    whole = run(stage, given, tmp_path / "whole")
    with pytest.raises(Died):
        run(stage, given, tmp_path / "dead", observe=die, checkpoint_steps=7)
    again = run(stage, given, tmp_path / "again", checkpoints=tmp_path / "dead" / "checkpoints")
    assert again.resumed_at == 7
    assert again.outputs["student"].digest == whole.outputs["student"].digest
    # another mix is another training: its checkpoint does not serve
    with pytest.raises(BadSetting, match="of another training; different: data"):
        run(
            replace(stage, data=Mix(parts={"few": 1, "many": 2}, fill={"labels": -1})),
            given,
            tmp_path / "other",
            checkpoints=tmp_path / "dead" / "checkpoints",
        )


def test_cached_outputs_of_a_mix_are_those_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one batch are of several views, and ids of two sets do not meet."""
    monkeypatch.syspath_prepend(str(SITE))
    given = sources(tmp_path)
    online = run(semi_supervised(), given, tmp_path / "online")
    cached = run(semi_supervised(cache={"teacher": Cache()}), given, tmp_path / "cached")
    record = cached.measured["teacher_cache"]["teacher"]
    assert (record["views"], record["rows"], record["computed_rows"]) == (4, 60, 240)
    for row, other in zip(online.curves, cached.curves, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The student follows the teacher on images that a generator draws."""

    phase: Phase

    @property
    def phases(self) -> Mapping[str, Phase]:
        return {"main": self.phase}

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        noise = torch.randn(len(batch["id"]), 6, generator=rng)
        images = models["generator"]({"noise": noise})
        student, teacher = (models[role](images)["logits"] for role in ("student", "teacher"))
        return {"gap": (student - teacher).square().mean()}


def test_training_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    given = {"teacher": sources(tmp_path)["teacher"]}
    fresh = {"student": Model(build=Net, kwargs={"width": 4}), "generator": Model(build=Noise)}
    stage = Train(
        name="student",
        objective=Generated(phase=toy_phase()),
        inputs={"teacher": "t.teacher"},
        fresh=fresh,
        data=NoData(),
        steps=12,
        batch=8,
    )
    whole = run(stage, given, tmp_path / "whole")
    gaps = [row["gap"] for row in whole.curves]
    assert gaps[-1] < 0.5 * gaps[0]
    with pytest.raises(Died):
        run(stage, given, tmp_path / "dead", observe=die, checkpoint_steps=5)
    again = run(stage, given, tmp_path / "again", checkpoints=tmp_path / "dead" / "checkpoints")
    assert again.resumed_at == 5
    assert again.outputs["student"].digest == whole.outputs["student"].digest
    with pytest.raises(BadRecipe, match=r"no port 'data'; training reads it \(data=NoData\(\)"):
        replace(stage, data=None)
    with pytest.raises(BadRecipe, match="a cache needs rows by id; batches of NoData have none"):
        replace(stage, cache={"teacher": Cache()})


@dataclass(frozen=True, kw_only=True)
class Brighter:
    """An augmentation of another brightness a view."""

    def __call__(self, batch: Tensors) -> Tensors:
        return {**batch, "images": batch["images"] + 1.0 + batch["view"].view(-1, 1, 1, 1)}


class Mean(torch.nn.Module):
    """What it saw: the mean of its images, and their view."""

    def forward(self, batch: Tensors) -> Tensors:
        return {"mean": batch["images"].mean(), "view": batch["view"].float().mean()}


@pytest.mark.parametrize("cache", [False, True])
def test_a_teacher_reads_the_plain_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    """The student learns from augmented images what the teacher says of the plain ones."""
    monkeypatch.syspath_prepend(str(SITE))
    given = sources(tmp_path)
    inputs = {"data": "few.train", "teacher": "t.teacher"}
    base = semi_supervised(
        inputs=inputs, data=None, objective=toy_objective(), augment=Brighter(), views=3, steps=9
    )
    given = {"data": given["few"], "teacher": given["teacher"]}
    kept = {"teacher": Cache()} if cache else {}
    plain = run(replace(base, plain=("teacher",), cache=kept), given, tmp_path / "plain")
    both = run(base, given, tmp_path / "both")
    assert plain.outputs["student"].digest != both.outputs["student"].digest
    if cache:  # one view serves all
        record = plain.measured["teacher_cache"]["teacher"]
        assert (record["views"], record["rows"]) == (1, 10)
        direct = run(replace(base, plain=("teacher",)), given, tmp_path / "direct")
        for row, other in zip(plain.curves, direct.curves, strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    with pytest.raises(BadRecipe, match="plain names 'student', which is not a frozen role"):
        replace(base, plain=("student",))


def test_what_a_plain_role_reads() -> None:
    data = toy_data(8)
    setup = Setup(steps=3, batch=8, augment=Brighter(), views=3, plain=True)
    ctx = Context(stage="t", out=Path(), checkpoints=Path(), caches=Path())
    batches = batches_from(Position(step=2), data, setup, ctx)
    batch = next(batches)  # of the third pass: view 2
    torch.testing.assert_close(batch["images"], batch["plain.images"] + 3.0)
    seen = PlainView(Mean())(batch)
    assert float(seen["view"]) == 0.0
    assert float(seen["mean"]) == pytest.approx(float(data.columns["images"].mean()), abs=1e-6)  # type: ignore[union-attr]


class Doubled:
    """Replaces the values of a ragged column, not where its rows end."""

    def __call__(self, batch: Tensors) -> Tensors:
        return {**batch, "boxes": batch["boxes"] * 2}


def test_a_plain_ragged_column_goes_in_micro_batches() -> None:
    boxes = Ragged(values=torch.arange(6.0), offsets=torch.tensor([0, 3, 4, 4, 6]))
    data = TensorData({"boxes": boxes})
    setup = Setup(steps=1, batch=4, augment=Doubled(), plain=True)
    ctx = Context(stage="t", out=Path(), checkpoints=Path(), caches=Path())
    batch = next(batches_from(Position(), data, setup, ctx))
    for part, _ in micro_batches(batch, 2):
        assert torch.equal(part["boxes"], part["plain.boxes"] * 2)


@dataclass(frozen=True, kw_only=True)
class Gap(Metric):
    """The difference of the means of two sets."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        means = [next(one.batches(99, rng=None))["x"].mean() for one in work.data.values()]
        first = next(data.batches(99, rng=None))["x"].mean()
        return {"gap": float(means[1] - means[0]), "first": float(first)}

    def scores(self) -> Sequence[Score]:
        return tuple(Score(name=name, better="neither") for name in ("gap", "first"))


@dataclass(frozen=True, kw_only=True)
class Drawn(Metric):
    """What a network says of images that are drawn here, without data."""

    resource: ClassVar[str] = "gpu"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        images = torch.randn(4, 3, 8, 8, generator=work.rng)
        logits = models["student"]({"images": images})["logits"]
        return {"rows": float(len(data)), "size": float(logits.numel())}

    def scores(self) -> Sequence[Score]:
        return tuple(Score(name=name, better="neither") for name in ("rows", "size"))


def test_an_evaluation_of_several_sets_and_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    inputs = {
        "near": save_data(tmp_path / "near", numbers(5).columns),
        "far": save_data(tmp_path / "far", numbers(5, 100).columns),
    }
    refs = {"near": "d.near", "far": "d.far"}
    stage = Evaluate(name="gap", metrics=(Gap(),), inputs=refs, data=("near", "far"))
    assert stage.run(inputs, toy_context(tmp_path / "gap")).scores == {"gap": 100.0, "first": 2.0}
    assert stage.resource == "cpu"
    student = save_model(
        tmp_path / "s", Built(spec=Model(build=Net, kwargs={"width": 4}), module=Net(4))
    )
    none = Evaluate(name="none", metrics=(Drawn(),), inputs={"student": "s.s"}, data=())
    found = none.run({"student": student}, toy_context(tmp_path / "none")).scores
    assert found == {"rows": 0.0, "size": 20.0}
    assert none.resource == "gpu"
    # in a table or on another port, too
    table = Lines(lines={"a": On(data="near", metric=Drawn())})
    assert replace(none, metrics=(table,)).resource == "gpu"
    with pytest.raises(BadRecipe, match="no port 'far'; the evaluation reads it"):
        replace(stage, inputs={"near": "d.near"})


@dataclass(frozen=True, kw_only=True)
class MeanOf(Metric):
    """The mean of a set."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {"mean": float(next(data.batches(99, rng=None))["x"].mean())}

    def scores(self) -> Sequence[Score]:
        return (Score(name="mean", better="neither"),)


def test_one_metric_on_several_sets_is_a_table(tmp_path: Path) -> None:
    inputs = {
        "near": save_data(tmp_path / "near", numbers(5).columns),
        "far": save_data(tmp_path / "far", numbers(5, 100).columns),
    }
    table = Lines(lines={port: On(data=port, metric=MeanOf()) for port in ("near", "far")})
    stage = Evaluate(
        name="means",
        metrics=(table,),
        inputs={"near": "d.near", "far": "d.far"},
        data=("near", "far"),
    )
    scores = stage.run(inputs, toy_context(tmp_path / "means")).scores
    assert scores == {"near/mean": 2.0, "far/mean": 102.0}
    odd = replace(stage, metrics=(On(data="fare", metric=MeanOf()),))
    with pytest.raises(UnknownName, match="unknown data port 'fare'. Did you mean 'far'"):
        odd.run(inputs, toy_context(tmp_path / "odd"))
