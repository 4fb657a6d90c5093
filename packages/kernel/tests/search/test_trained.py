"""Selection by training: what a candidate's score is, and what its training leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse.artifact import Built, Model
from stillhouse.cache import Cache
from stillhouse.data import TensorData, save_data
from stillhouse.data.shards import load_data
from stillhouse.engine import fit
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.objective import Composed, Optimizer, Phase, Weighted
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Context
from stillhouse.search import Encoding, Exhaustive
from stillhouse.search.trained import Trained
from stillhouse.stages import Search
from stillhouse.training import Setup
from stillhouse.work import Work

from .networks import Small, small


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Networks of 1 to 3 pairs of channels."""

    def __len__(self) -> int:
        return 3

    def at(self, index: int) -> Encoding:
        return {"width": index + 1}

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(3, (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        return self.sample(rng)

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return {"width": float(encoding["width"])}

    def model(self, encoding: Encoding) -> Model:
        return Model(build=Small, kwargs={"widths": [2 * encoding["width"], 6]})


def stripes(rows: int, seed: int) -> TensorData:
    """Noise with one of five brightnesses, which is the label."""
    rng = Generator().manual_seed(seed)
    labels = torch.arange(rows) % 5
    images = 0.3 * torch.randn(rows, 3, 8, 8, generator=rng) + labels[:, None, None, None] - 2
    return TensorData({"images": images, "labels": labels})


KD = Weighted(term=Term(kd_loss, "student.logits", "teacher.logits", temperature=2.0))


def objective(**losses: Weighted) -> Composed:
    optimizer = Optimizer(lr=0.1, kwargs={"momentum": 0.9})
    ce = Term(cross_entropy_loss, "student.logits", "batch.labels")
    return Composed(
        phases={"main": Phase(trains=("student",), optimizer=optimizer)},
        losses={"ce": Weighted(term=ce), **losses},
    )


def trained(**changes: Any) -> Trained:
    given = {"objective": objective(kd=KD), "steps": 40, "batch": 10, "views": 1}
    return Trained(**{**given, **changes})


def context(folder: Path, **changes: Any) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "stage": "s",
        "out": folder,
        "checkpoints": folder / "checkpoints",
        "caches": folder / "caches",
        "digests": {"teacher": "t", "data": "d", "validation": "v"},
    }
    return Context(**{**given, **changes})


def inputs() -> dict[str, Any]:
    spec = Model(build=Small, kwargs={"widths": [4, 6]})
    teacher = Built(spec=spec, module=small(0).eval())
    return {"teacher": teacher, "data": stripes(50, 0), "validation": stripes(40, 1)}


def scored(score: Trained, folder: Path, seed: int = 0, **changes: Any) -> float:
    given = inputs()
    rng = Generator().manual_seed(5)
    prepared = score.prepare(Widths(), given, work=Work(rng=rng, ctx=context(folder, **changes)))
    rng = Generator().manual_seed(seed)
    return prepared(Widths().model({"width": 2}), given, work=Work(rng=rng))


def test_a_score_is_the_accuracy_of_a_training_on_data_it_did_not_see(tmp_path: Path):
    given, rng = inputs(), Generator().manual_seed(0)
    weights, batches = (int(torch.randint(2**62, (), generator=rng)) for _ in range(2))
    torch.manual_seed(weights)
    models = {"student": Small((4, 6)), "teacher": given["teacher"].module}
    setup = Setup(steps=40, batch=10, seed=batches, views=1)
    fit(trained().objective, models, given["data"], setup=setup, ctx=context(tmp_path / "plain"))
    validation = given["validation"].columns
    with torch.no_grad():
        said = models["student"]({"images": validation["images"]})["logits"].argmax(1)
    right = float((said == validation["labels"]).float().mean())
    assert scored(trained(), tmp_path / "scored") == pytest.approx(right)
    assert right > 0.4  # five classes: it has learnt


def test_stored_outputs_of_the_teacher_change_nothing(tmp_path: Path):
    stored = trained(cache={"teacher": Cache(outputs=("logits",))})
    assert scored(stored, tmp_path / "a") == scored(trained(), tmp_path / "b")
    assert list((tmp_path / "a/caches").rglob("*.safetensors"))


def test_a_candidate_leaves_no_checkpoint_and_no_trace_in_the_global_generator(tmp_path: Path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scored(trained(), tmp_path, checkpoint_steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list((tmp_path / "checkpoints").rglob("*"))


def test_another_seed_is_another_training(tmp_path: Path):
    short = trained(steps=12)
    found = {scored(short, tmp_path / str(seed), seed) for seed in range(4)}
    assert len(found) > 1


def test_a_search_trains_every_candidate(tmp_path: Path):
    stage = Search(
        name="s",
        space=Widths(),
        score=trained(steps=12, objective=objective()),
        budget={},
        trials=3,
        inputs={"data": "d.data", "validation": "v.data"},
        strategy=Exhaustive(),
    )
    given = inputs()
    artifacts = {
        "data": save_data(tmp_path / "data", given["data"].columns),
        "validation": save_data(tmp_path / "validation", given["validation"].columns),
    }
    tables = []
    for name in ("a", "b"):
        out = stage.run(artifacts, context(tmp_path / name)).outputs
        tables.append(load_data(out["trials"].path).columns)
    assert tables[0]["score"].tolist() == tables[1]["score"].tolist()
    assert len(set(tables[0]["score"].tolist())) > 1
    assert tables[0]["width"].tolist() == [1, 2, 3]


def test_wrong_settings_and_ports_say_so(tmp_path: Path):
    phase = Phase(trains=("student", "teacher"), optimizer=Optimizer(lr=0.1))
    both = replace(objective(kd=KD), phases={"main": phase})
    with pytest.raises(
        BadSetting, match=r"trains 'student' alone \(the objective trains student, "
    ):
        trained(objective=both)
    with pytest.raises(BadSetting, match=r"steps must be >= 1 \(got 0\)"):
        trained(steps=0)
    with pytest.raises(UnknownName, match="score by training: cache: unknown role 'teecher'"):
        scored(trained(cache={"teecher": Cache()}), tmp_path)
    given = inputs()
    rng = Generator().manual_seed(0)
    score = trained().prepare(Widths(), given, work=Work(rng=rng, ctx=context(tmp_path)))
    del given["validation"]
    with pytest.raises(UnknownName, match="score by training: unknown input 'validation'"):
        score(Widths().model({"width": 1}), given, work=Work(rng=rng))
