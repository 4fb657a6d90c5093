"""The table of all scores: its columns are the proxies' own numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from stillhouse.artifact import Built, Model
from stillhouse.data import TensorData, save_data
from stillhouse.data.shards import load_data
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search import Exhaustive
from stillhouse.search.proxies import COMPARISON, combined, distillation_score, diswot_score
from stillhouse.search.ranking import ranked_last
from stillhouse.search.scores import ZeroCost
from stillhouse.search.space import text_of
from stillhouse.search.table import ScoreTable
from stillhouse.stages import Search
from stillhouse.training import mix
from stillhouse.work import Work

from .networks import Small, batch, small
from .test_trained import Widths, context


class Dead(Small):
    """A network that says the same of every picture."""

    def __init__(self, widths: tuple[int, int] = (4, 6)) -> None:
        super().__init__(widths)
        for part in (self.norm1, self.norm2):
            nn.init.zeros_(part.weight)


class SomeDead(Widths):
    """The first of the networks is dead."""

    def model(self, encoding: Any) -> Model:
        alive = super().model(encoding)
        return Model(build=Dead, kwargs=alive.kwargs) if encoding["width"] == 1 else alive


def given(space: Widths) -> dict[str, Any]:
    images, labels = batch(40)
    encodings = [text_of(space.at(i)) for i in range(len(space))]
    scores = torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64)
    spec = Model(build=Small, kwargs={"widths": [4, 6]})
    return {
        "data": TensorData({"images": images, "labels": labels}),
        "teacher": Built(spec=spec, module=small(0)),
        "trials": TensorData({"encoding": encodings, "score": scores}),
    }


def drawn(table: ScoreTable) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The batch and the seed that a table of generator 0 works with."""
    rng = Generator().manual_seed(0)
    data = given(Widths())["data"]
    first = next(iter(data.batches(table.batch, rng=rng)))
    return first["images"], first["labels"], int(torch.randint(2**62, (), generator=rng))


def test_columns_are_the_proxies_own_numbers():
    space = Widths()
    table = ScoreTable(space=space, methods=("kd", "at"), batch=8, inits=2)
    made = table(given(space), work=Work.seeded(0))["table"]
    assert made["accuracy"].tolist() == [0.5, 0.7, 0.6]
    assert set(made) == {"encoding", "accuracy", *table.lines}
    images, labels, seed = drawn(table)
    models = [space.model(space.at(i)) for i in range(3)]
    raw = [diswot_score(small(9), m.new(), images, labels, inits=2, seed=seed) for m in models]
    assert made["diswot"].tolist() == pytest.approx(combined(raw), rel=1e-4)
    assert made["relation"].tolist() == pytest.approx([score.relation for score in raw])
    torch.manual_seed(mix(seed, 0))
    teacher = Small((4, 6))
    for row, model in enumerate(models):
        torch.manual_seed(mix(seed, row + 1))
        student = model.new()
        assert made["snip"][row] == COMPARISON["snip"](student, images, labels)
        kd = distillation_score(teacher, student, images, labels, method="kd")
        assert made["kd_init"][row] == kd


def test_a_dead_network_is_the_last_one():
    space = SomeDead()
    table = ScoreTable(space=space, proxies=("parameters", "jacov"), batch=8, inits=1)
    made = table(given(space), work=Work.seeded(0))["table"]
    torch.manual_seed(0)
    images, labels, _ = drawn(table)
    assert COMPARISON["jacov"](Dead((2, 6)), images, labels) == -math.inf
    assert made["jacov"][0] == made["jacov"][1:].min() - 1


def test_a_search_ends_with_a_dead_network_among_its_candidates(tmp_path: Path):
    stage = Search(
        name="s",
        space=SomeDead(),
        score=ZeroCost(proxy="jacov", batch=8),
        budget={},
        trials=3,
        inputs={"data": "d.data"},
        strategy=Exhaustive(),
    )
    images, labels = batch(40)
    artifact = save_data(tmp_path / "data", {"images": images, "labels": labels})
    out = stage.run({"data": artifact}, context(tmp_path / "out")).outputs
    scores = load_data(out["trials"].path).columns["score"]
    assert isinstance(scores, torch.Tensor)
    assert scores[0] == scores[1:].min() - 1
    # the dead one is not what is chosen
    assert ":Small" in (out["model"].path / "model.json").read_text()


def test_a_column_of_the_dead_alone_is_finite():
    assert ranked_last(torch.full((3,), -math.inf).double()).tolist() == [-1, -1, -1]
    assert ranked_last(torch.tensor([2.0, -math.inf, 5.0]).double()).tolist() == [2, 1, 5]


def test_unknown_names_say_so():
    with pytest.raises(UnknownName, match="table of scores: unknown proxy 'zenn'. Did you mean"):
        ScoreTable(space=Widths(), proxies=("zenn",))
    with pytest.raises(UnknownName, match="table of scores: unknown method 'kdd'. Did you mean"):
        ScoreTable(space=Widths(), methods=("kdd",))
    with pytest.raises(BadSetting, match=r"batch >= 2 and inits >= 1 \(got 1 and 4\)"):
        ScoreTable(space=Widths(), batch=1)
