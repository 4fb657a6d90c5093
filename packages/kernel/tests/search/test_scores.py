"""Training-free scores in a search: one batch, one scale, the stage from end to end."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse.artifact import Built, Model
from stillhouse.data import TensorData, save_data
from stillhouse.data.shards import load_data
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.recipe import Context
from stillhouse.search import Encoding
from stillhouse.search.proxies import combined, diswot_score, nwot, views
from stillhouse.search.scores import DisWOT, ZeroCost
from stillhouse.stages import Search
from stillhouse.work import Work

from .networks import Small, batch, small


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Networks of 1 to `count` channels."""

    count: int = 3

    def sample(self, rng: Generator) -> Encoding:
        return {"width": 1 + int(torch.randint(self.count, (), generator=rng))}

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        return self.sample(rng)

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return {"width": float(encoding["width"])}

    def model(self, encoding: Encoding) -> Model:
        return Model(build=Small, kwargs={"widths": [2 * encoding["width"], 6]})


def data(rows: int = 40) -> TensorData:
    images, labels = batch(rows)
    return TensorData({"images": images, "labels": labels})


def inputs() -> dict[str, Any]:
    spec = Model(build=Small, kwargs={"widths": [4, 6]})
    return {"teacher": Built(spec=spec, module=small(0)), "data": data()}


HERE = Context(stage="s", out=Path(), checkpoints=Path(), caches=Path())


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def models(space: Widths) -> list[Model]:
    return [space.model({"width": width}) for width in range(1, space.count + 1)]


def test_a_zscore_is_on_the_scale_of_the_references():
    # the references are here the whole space: the scores are then the population's
    space = Widths()
    score = DisWOT(batch=8, inits=2, references=9).prepare(
        space, inputs(), work=Work(rng=rng(), ctx=HERE)
    )
    found = [score(candidate, {}, work=Work(rng=rng())) for candidate in models(space)]
    raw = [
        diswot_score(small(7), m.new(), score.images, score.labels, inits=2, seed=score.seed)
        for m in models(space)
    ]
    assert found == pytest.approx(combined(raw))
    assert sum(found) == pytest.approx(0)
    assert max(found) > 0.5


def test_a_sum_is_the_scores_own():
    score = DisWOT(batch=8, inits=2, combine="sum").prepare(
        Widths(), inputs(), work=Work(rng=rng(), ctx=HERE)
    )
    seen = views(small(3), score.images, score.labels, inits=2, seed=score.seed)
    given = diswot_score(
        seen, small(5), score.images, score.labels, inits=2, combine="sum", seed=score.seed
    )
    model = Model(build=Small, kwargs={"widths": [4, 6]})
    assert score(model, {}, work=Work(rng=rng())) == given.value


def test_what_is_prepared_depends_on_the_generator():
    scores = [
        DisWOT(batch=8, inits=1).prepare(Widths(), inputs(), work=Work(rng=rng(s), ctx=HERE))
        for s in (0, 0, 1)
    ]
    assert torch.equal(scores[0].images, scores[1].images)
    assert scores[0].semantic == scores[1].semantic
    assert not torch.equal(scores[0].images, scores[2].images)
    assert scores[0].seed != scores[2].seed


def test_stored_pictures_come_as_fractions():
    images, labels = batch(6)
    stored = TensorData({"images": (images.abs() * 50).clamp(0, 255).byte(), "labels": labels})
    score = ZeroCost(proxy="nwot", batch=6).prepare(
        Widths(), {"data": stored}, work=Work(rng=rng(), ctx=HERE)
    )
    assert score.images.dtype == torch.float32
    assert 0 < score.images.max() <= 1


def test_a_search_scores_with_one_batch(tmp_path: Path):
    stage = Search(
        name="s",
        space=Widths(count=6),
        score=ZeroCost(proxy="nwot", batch=8),
        budget={"width": 5},
        trials=20,
        inputs={"data": "none.data"},
    )
    source = save_data(tmp_path / "in", data().columns)
    tables = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        context = Context(stage="s", out=folder, checkpoints=folder, caches=folder)
        out = stage.run({"data": source}, context).outputs
        tables.append(load_data(out["trials"].path).columns)
    assert tables[0]["score"].tolist() == tables[1]["score"].tolist()
    assert sorted(tables[0]["width"].tolist()) == [1, 2, 3, 4, 5]
    assert len(set(tables[0]["score"].tolist())) == 5


def test_nwot_in_a_search_is_nwot():
    score = ZeroCost(proxy="nwot", batch=8).prepare(
        Widths(), inputs(), work=Work(rng=rng(), ctx=HERE)
    )
    model = Model(build=Small, kwargs={"widths": [4, 6]})
    torch.manual_seed(11)
    found = score(model, {}, work=Work(rng=rng()))
    torch.manual_seed(11)
    assert found == nwot(Small((4, 6)), score.images, score.labels)


def test_wrong_settings_and_inputs_say_so():
    with pytest.raises(BadSetting, match=r"batch >= 2, inits >= 1 and references >= 2 \(got 8, 0"):
        DisWOT(batch=8, inits=0)
    with pytest.raises(UnknownName, match="unknown proxy 'zenn'. Did you mean 'zen'"):
        ZeroCost(proxy="zenn")
    with pytest.raises(BadSetting, match=r"a zero-cost score needs batch >= 2 \(got 1\)"):
        ZeroCost(proxy="zen", batch=1)
    with pytest.raises(UnknownName, match="DisWOT's score: unknown input 'teecher'"):
        DisWOT(teacher="teecher").prepare(Widths(), inputs(), work=Work(rng=rng(), ctx=HERE))
    bare = {"data": TensorData({"images": torch.zeros(4, 3, 8, 8)})}
    with pytest.raises(BadData, match="a score needs a column 'labels'; there are: .*images"):
        ZeroCost(proxy="zen").prepare(Widths(), bare, work=Work(rng=rng(), ctx=HERE))


def test_a_rank_is_refused_in_a_search():
    unchecked: Any = inspect.unwrap(DisWOT.__init__)
    with pytest.raises(BadSetting, match="combine must be zscore or sum in a search"):
        unchecked(object.__new__(DisWOT), combine="rank")
