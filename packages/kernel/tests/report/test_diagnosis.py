"""Each check of a diagnosis on a small run that has exactly that illness, and on a healthy one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Model
from stillhouse.data.data import Columns
from stillhouse.metrics import Classification, Profile
from stillhouse.objectives import kd_loss
from stillhouse.objectives.features import hint_loss
from stillhouse.objectives.objective import (
    Composed,
    Constant,
    Cosine,
    Optimizer,
    Phase,
    Weighted,
)
from stillhouse.objectives.term import Term
from stillhouse.recipe import Bound, Kind, Recipe, Row
from stillhouse.report.build import build
from stillhouse.report.document import Document, Finding
from stillhouse.report.measured import measure
from stillhouse.report.statistics import seeds_needed
from stillhouse.runs import Runs, run_recipe
from stillhouse.stages import Evaluate, Make, Train
from stillhouse.work import Work

from ..toys import SITE, Hidden, Selfish  # noqa: TID252

CLASSES = 4


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models are opened again: what builds them is that of an installed domain."""
    monkeypatch.syspath_prepend(str(SITE))


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """A Gaussian a class; students see labels of which a share is drawn at random."""

    noise: float
    rows: int
    blur: float

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        centres = torch.randn(CLASSES, 8, generator=work.rng)
        return {port: self._part(centres, work.rng) for port in ("train", "test")}

    def _part(self, centres: Tensor, rng: Generator) -> Columns:
        labels = torch.randint(0, CLASSES, (self.rows,), generator=rng)
        x = centres[labels] + self.blur * torch.randn(self.rows, 8, generator=rng)
        drawn = torch.randint(0, CLASSES, (self.rows,), generator=rng)
        odd = torch.rand(self.rows, generator=rng) < self.noise
        return {"x": x, "labels": labels, "said": torch.where(odd, drawn, labels)}


def said_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class Ills:
    """What may be wrong with a run; nothing is, as it stands."""

    noise: float = 0.6
    rows: int = 240
    blur: float = 0.7
    teacher_steps: int = 100
    teacher_width: int = 48
    teacher_lr: float = 0.05
    width: int = 12
    steps: int = 80
    plain_steps: int = 80
    lr: float = 0.05
    constant: bool = False
    weight: float = 4.0
    temperature: float = 2.0
    seeds: int = 3
    projector: bool = False


def study(ills: Ills) -> Recipe:
    def phase(*roles: str, lr: float) -> Phase:
        tune = Optimizer(build=torch.optim.Adam, lr=lr)
        return Phase(
            trains=roles, optimizer=tune, schedule=Constant() if ills.constant else Cosine()
        )

    ce = Weighted(term=Term(said_loss, "student.logits", "batch.said"))
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=ills.temperature)
    losses = {"ce": ce, "kd": Weighted(term=kd, weight=ills.weight)}
    fresh = {"student": Model(build=Hidden, kwargs={"width": ills.width})}
    roles = ("student",)
    if ills.projector:
        hint = Term(hint_loss, "projector.hint", "teacher.hint")
        losses = {"ce": ce, "hint": Weighted(term=hint, weight=ills.weight)}
        roles = ("student", "projector")
        fresh["projector"] = Model(build=Selfish, kwargs={"width": ills.teacher_width})
    taught = Composed(phases={"main": phase(*roles, lr=ills.lr)}, losses=losses)
    plain = Composed(phases={"main": phase("student", lr=ills.lr)}, losses={"ce": ce})
    teach = Composed(
        phases={"main": phase("teacher", lr=ills.teacher_lr)},
        losses={
            "ce": Weighted(
                term=Term(said_loss, "teacher.logits", "batch.labels"),
                weight=1.0,
            )
        },
    )
    data = Make(
        name="data",
        make=Blobs(noise=ills.noise, rows=ills.rows, blur=ills.blur),
        inputs={},
        ports=("train", "test"),
    )
    teacher = Train(
        name="teacher",
        objective=teach,
        inputs={"data": "data.train"},
        fresh={"teacher": Model(build=Hidden, kwargs={"width": ills.teacher_width})},
        steps=ills.teacher_steps,
        batch=60,
    )
    untaught = Model(build=Hidden, kwargs={"width": 2})
    chance = Train(
        name="chance",
        objective=Composed(phases={"main": phase("student", lr=1e-9)}, losses={"ce": ce}),
        inputs={"data": "data.train"},
        fresh={"student": untaught},
        steps=1,
        batch=60,
    )
    stages: list[Any] = [data, teacher, chance]
    scores: list[Any] = [scored("teacher", "teacher.teacher"), scored("chance", "chance.student")]
    for seed in range(ills.seeds):
        for name, objective, steps in (
            ("kd", taught, ills.steps),
            ("plain", plain, ills.plain_steps),
        ):
            inputs = {"data": "data.train"} | (
                {"teacher": "teacher.teacher"} if name == "kd" else {}
            )
            own = fresh if name == "kd" else {"student": fresh["student"]}
            stages.append(
                Train(
                    name=f"{name}-{seed}",
                    objective=objective,
                    inputs=inputs,
                    fresh=own,
                    steps=steps,
                    batch=60,
                    seed=seed,
                )
            )
            scores.append(scored(f"{name}-{seed}", f"{name}-{seed}.student"))
    kinds: dict[str, Kind] = {"plain": "baseline", "kd": "student"}
    rows = {"teacher": Row(kind="teacher", stages=("teacher-scores",))}
    rows |= {
        name: Row(kind=kind, stages=tuple(f"{name}-{i}-scores" for i in range(ills.seeds)))
        for name, kind in kinds.items()
    }
    control = Bound(name="an untrained network", stages=("chance-scores",), score="accuracy")
    return Recipe(
        name="toy/study",
        reference="none",
        stages=(*stages, *scores),
        rows=rows,
        method="kd",
        control=control,
    )


def scored(name: str, ref: str) -> Evaluate:
    return Evaluate(
        name=f"{name}-scores",
        metrics=(Classification(), Profile()),
        inputs={"data": "data.test", "student": ref},
    )


def examined(root: Path, **ills: Any) -> tuple[Document, list[Finding]]:
    """The document of a run with these ills, and what is found when it is measured."""
    recipe = study(Ills(**ills))
    runs = Runs(root=root, recipe="toy/study", variant="tiny")
    run_recipe(recipe, runs)
    document = build(recipe, runs.recipe, root, runs.folder)
    return document, list(measure(document, recipe, runs))


def found(root: Path, **ills: Any) -> dict[str, Finding]:
    document, more = examined(root, **ills)
    return {finding.check: finding for finding in (*document.diagnosis, *more)}


def test_a_healthy_run_is_told_nothing(tmp_path: Path) -> None:
    document, more = examined(tmp_path)
    assert document.headline.sentence.startswith("Kd gains")
    assert (document.diagnosis, more) == ((), [])


@pytest.mark.parametrize(
    ("ills", "expected"),
    [
        (
            {"teacher_steps": 1, "teacher_lr": 1e-9, "seeds": 1},
            {
                "teacher not ahead": "nothing to learn from it",
                "teacher near the trivial control": "an untrained network",
                "too few seeds": "no interval can be given",
            },
        ),
        (
            {"plain_steps": 40, "width": 64, "seeds": 1},
            {
                "rows trained unlike one another": "have steps 80 and 40",
                "student costs as much as its teacher": "than the teacher: every student",
            },
        ),
        (
            {"weight": 0.001},
            {
                "distillation term too small": "kd make 0.",
                "distillation gradient too small": "of the gradient in the student",
                "too few seeds": "is distinguished from noise by about",
            },
        ),
        ({"lr": 1e-7, "seeds": 1}, {"distillation term not learned": "'kd' of kd-0 went from"}),
        (
            {"lr": 3e-3, "constant": True, "seeds": 1},
            {"loss still falling": "of its whole fall"},
        ),
        (
            {"projector": True, "seeds": 1},
            {"distillation term not earned by the student": "with the student frozen"},
        ),
        (
            {"temperature": 0.05, "seeds": 1},
            {"teacher's answers are one-hot": "At temperature 0.05 of 'kd'"},
        ),
        (
            {"temperature": 400.0, "seeds": 1},
            {"teacher's answers are flat": "all classes look alike"},
        ),
        (
            {"blur": 3.0, "rows": 60, "teacher_steps": 300, "seeds": 1},
            {"teacher knows the training samples": "on the samples that students learn from"},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_illness_is_found(
    tmp_path: Path, ills: dict[str, Any], expected: dict[str, str]
) -> None:
    every = found(tmp_path, **ills)
    assert {check for check in expected if check not in every} == set(), every
    for check, figure in expected.items():
        assert figure in every[check].figure


def test_seeds_needed_by_the_power_of_a_t_test() -> None:
    # Cohen's table: an effect of one half takes 34 pairs, of 0.8 15, of one 10
    assert [seeds_needed(gain, 1.0) for gain in (0.5, 0.8, 1.0)] == [34, 15, 10]
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(0.0, 1.0) == seeds_needed(1e-6, 1.0) == 0
