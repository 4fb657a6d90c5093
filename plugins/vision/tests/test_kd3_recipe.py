"""The recipe vision/kd3: what is compared with what, and its settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from stillhouse.cli.target import Target
from stillhouse.data.data import TensorData
from stillhouse.data.shards import load_data
from stillhouse.errors import BadSetting, StillhouseError, UnknownName
from stillhouse.objectives.objective import Step
from stillhouse.runs import run_stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Train
from stillhouse.stages.choosing import CHOICES, Choose, TrainChosen, read_by
from stillhouse.work import Work
from stillhouse_vision.metrics import Kept, KeptImages
from stillhouse_vision.objectives import KD3, select_instances
from stillhouse_vision.recipes.kd3 import VARIANTS, kd3

NAME = "vision/kd3"
ALL = list(VARIANTS)


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def train(made: Any, name: str) -> Train:
    found = made.stage(name)
    assert isinstance(found, Train)
    return found


def test_stages_of_a_seed_and_rows_of_the_report() -> None:
    made = recipe()
    assert [s.name for s in made.stages] == [
        "data", "teacher", "teacher-scores", "web", "kd-all-0", "kd-all-0-scores",
        "confident", "kd-confident-0", "kd-confident-0-scores",
        "head", "kd3-0", "kd3-0-merged", "kd3-0-scores", "kd3-0-kept", "export",
    ]  # fmt: skip
    assert list(made.rows) == [
        "teacher",
        "student, KD on all web images",
        "student, KD on the teacher's most confident",
        "student, KD3",
    ]
    assert made.baseline == "student, KD on all web images"
    assert list(made.studies.values()) == [("kd3-0-kept",)]


def test_no_student_sees_the_target_and_all_see_as_much() -> None:
    made = recipe("small", variants=ALL, seeds=3, rates=[])
    students = [s for s in made.stages if isinstance(s, Train) and s.name != "teacher"]
    assert len(students) == 3 * (3 + len(ALL))
    for student in students:
        assert student.inputs["data"] in ("web.web", "confident.web")
        assert student.setup() == train(made, f"kd-all-{student.seed}").setup()
        assert student.fresh["student"] == students[0].fresh["student"]
        assert next(iter(student.fresh)) == "student"  # the same first weights in every row
        assert student.views == 4
        assert student.cache == students[0].cache
    assert made.stage("confident").inputs == {"web": "web.web", "teacher": "teacher.teacher"}


def test_scores_export_and_study_are_of_the_merged_student() -> None:
    made = recipe("small", seeds=2, rates=[])
    merged = made.stage("kd3-1-merged")
    assert isinstance(merged, Convert)
    assert merged.inputs == {
        "student": "kd3-1.student", "projector": "kd3-1.projector", "head": "head.model"
    }  # fmt: skip
    for name in ("kd3-1-scores", "kd3-1-kept"):
        assert made.stage(name).inputs["student"] == "kd3-1-merged.model"
    assert made.stage("export").inputs["student"] == "kd3-0-merged.model"
    tests = {s.inputs["data"] for s in made.stages if isinstance(s, Evaluate)}
    assert tests == {"data.test", "web.web"}


def test_every_row_chooses_its_rate_on_images_kept_apart_from_test_and_students() -> None:
    made = recipe("small", seeds=2, variants=["no-mix"])
    choosers = [s for s in made.stages if isinstance(s, Choose)]
    assert [s.name for s in choosers] == [
        *("choose-kd-all", "choose-kd-confident", "choose-kd3", "choose-kd3-no-mix"),
    ]
    for chooser in choosers:
        assert chooser.inputs["validation"] == "apart.validation"
        assert not any(ref.endswith(".test") for ref in read_by(chooser))
        assert [c.chosen["lr"] for c in chooser.candidates.values()] == [0.05, 0.3, 1.0, 3.0]
        row = chooser.name.removeprefix("choose-")
        for seed in range(2):
            final = made.stage(f"{row}-{seed}")
            assert isinstance(final, TrainChosen)
            assert final.inputs["choice"] == f"{chooser.name}.choice"
            trains = [candidate.train for candidate in final.candidates.values()]
            assert [(t.seed, t.steps) for t in trains] == [(seed, 1000)] * 4
    # a short training is whole: as many selections, as far apart as its steps allow
    for name, every in (("choose-kd3", 16), ("kd3-0", 63)):
        (first, *_) = made.stage(name).candidates.values()
        assert isinstance(first.train.objective, KD3)
        assert first.train.objective.refresh_every == every
    assert made.stage("kd3-0-merged").inputs["projector"] == "kd3-0.projector"
    assert list(made.studies)[-1] == CHOICES


@pytest.mark.slow
def test_the_student_that_is_scored_has_the_teachers_classifier(tmp_path: Path) -> None:
    """A tiny run: rates of which one learns nothing, on digits and glyphs."""
    given = make_settings(NAME, "tiny", {"rates": [1e-9, 2.0], "choose_steps": 200, "steps": 20})
    target = Target(name=NAME, settings=given, recipe=make_recipe(NAME, given), root=tmp_path)
    runs = target.runs()
    for name in ("data", "apart", "web", "teacher", "head", "choose-kd3", "kd3-0"):
        run_stage(target.recipe, target.recipe.stage(name), runs)
    table = load_data(runs.folder / "choose-kd3" / "choice")
    assert table.columns["candidate"] == ["lr2", "lr1e-09"]
    learned, still = table.rows(torch.arange(2))["score"].tolist()
    assert learned > still + 0.1
    record = json.loads((runs.folder / "kd3-0.run.json").read_text())
    assert record["measured"]["chosen"] == {"candidate": "lr2", "lr": 2.0}


def test_variants_differ_in_one_thing() -> None:
    made = recipe(variants=ALL)
    base = train(made, "kd3-0").objective
    assert isinstance(base, KD3)
    changed = {
        "no-selection": {"selection": "none"},
        "no-weighting": {"weighted": False},
        "teacher-selection": {"selection": "teacher"},
    }
    for variant, change in changed.items():
        assert train(made, f"kd3-{variant}-0").objective == replace(base, **change)
        assert VARIANTS[variant][0] in made.rows
    unmixed = train(made, "kd3-no-mix-0")
    assert "embedding" not in unmixed.outputs
    assert unmixed.objective == replace(base, mix_weight=0.0, phases=unmixed.objective.phases)
    without = recipe()
    for stage in without.stages:
        assert made.stage(stage.name) == stage


def test_paper_has_the_settings_of_the_released_code() -> None:
    made = recipe("paper")
    stage = train(made, "kd3-2")
    objective = stage.objective
    assert isinstance(objective, KD3)
    assert (stage.steps, stage.batch, stage.cache) == (240 * 1251, 1024, {})
    assert objective.refresh_every == 1251
    assert objective.milestones == pytest.approx((120, 160))
    phase = objective.phases["student"]
    assert (phase.optimizer.lr, phase.optimizer.build) == (0.05, torch.optim.SGD)
    assert phase.optimizer.kwargs == {"momentum": 0.9, "weight_decay": 5e-4}
    assert isinstance(phase.schedule, Step)
    factors = {e: phase.schedule.factor(e * 1251, stage.steps) for e in (149, 150, 180, 210)}
    assert factors == pytest.approx({149: 1, 150: 0.1, 180: 0.01, 210: 0.001})
    assert (objective.mix_weight, objective.contrast_temperature) == (0.001, 0.3)
    assert (objective.cutoff, objective.concentration) == (0.95, 0.1)
    assert stage.fresh["embedding"].kwargs["targets"] == [128]
    assert stage.fresh["projector"].kwargs == {
        "source": "hint4", "channels": 512, "target": 512, "size": 4, "factor": 2
    }  # fmt: skip
    teacher = train(made, "teacher")
    assert (teacher.steps, teacher.batch) == (240 * 781, 64)
    assert objective.select_augment == stage.augment


def test_teacher_selects_first_and_the_student_alone_at_the_end() -> None:
    stage = train(recipe("small", rates=[]), "kd3-0")
    objective = stage.objective
    assert isinstance(objective, KD3)
    steps = range(0, stage.steps, objective.refresh_every)
    assert len(steps) == 16
    weights = [objective.alpha(step) for step in steps]
    assert weights[0] > 0.9
    assert weights[7:] == [0.0] * 9  # epochs 8 to 16
    kept = recipe("small").stage("kd3-0-kept").metrics[0]
    assert kept.alpha == weights[-1]


def test_own_teacher_web_and_target(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "target" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "target" / name / "0.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "mine.pth").touch()
    target, web, mine = (f"file:{tmp_path / n}" for n in ("target", "images", "mine.pth"))
    made = recipe(teacher=mine, web=web, data=target)
    assert made.stage("teacher").inputs == {"checkpoint": mine, "data": "data.train"}
    assert made.stage("web").inputs == {"source": web}
    assert made.stage("data").inputs == {"source": target}
    assert made.stage("head").inputs == {"teacher": "teacher.model"}
    assert train(made, "kd3-0").inputs["teacher"] == "teacher.model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": "no-mixing"}, "variants.0: Input should be 'no-selection', 'no-mix'"),
        ({"variants": ["no-mix", "no-mix"]}, "name each once"),
        ({"student": "resnet-20"}, "unknown model 'resnet-20'"),
        ({"milestones": [150, 180]}, "fractions between 0 and 1"),
        ({"mixing": [0.0, 0.5]}, "mixing: fractions > 0 of the refreshes"),
        ({"names": ["a", "b"]}, "2 names for classes=10; give one a class"),
        ({"select_on": "pictures"}, "set cache=false for select_on=images"),
        ({"factor": 3}, "factor must divide target"),
        ({"cutoff": 0}, "cutoff: Input should be greater than 0"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert isinstance(error.value, UnknownName | BadSetting)
    assert "\n" not in str(error.value)


def test_recipe_is_a_function_of_its_settings() -> None:
    assert kd3(make_settings(NAME, "tiny")) == kd3(make_settings(NAME, "tiny"))


class Says(nn.Module):
    """A role with known logits, by image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.logits[given["images"][:, 0, 0, 0].long()]}


def test_study_counts_what_is_kept_and_what_is_dropped() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(40, 3, generator=generator) for _ in range(2))
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    data = TensorData({"images": images, "vocabulary": torch.arange(40) % 4 == 0})
    models = {"teacher": Says(teacher), "student": Says(student)}
    kept = select_instances(teacher, student, alpha=0.5, cutoff=0.9).tolist()
    dropped = [i for i in range(40) if i not in kept]
    scores = Kept(alpha=0.5, cutoff=0.9, batch=7)(models, data, work=Work())
    agree = (teacher.argmax(1) == student.argmax(1)).tolist()
    for line, rows in (("kept", kept), ("dropped", dropped)):
        assert scores[line, "pool_rate"] == pytest.approx(len(rows) / 40)
        share = sum(i % 4 == 0 for i in rows) / len(rows)
        assert scores[line, "in_vocabulary_rate"] == pytest.approx(share)
        both = sum(agree[i] for i in rows) / len(rows)
        assert scores[line, "teacher_agreement"] == pytest.approx(both)
    drawing = KeptImages(alpha=0.5, cutoff=0.9, names=("a", "b", "c"), batch=7)
    figure = drawing(models, data, work=Work())
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [f"Kept: {len(kept)} of 40", f"Dropped: {len(dropped)} of 40"]
    texts = [axis.texts[0].get_text() for axis in figure.subfigs[1].axes if axis.texts]
    assert len(texts) == min(24, len(dropped))
    for axis in figure.subfigs[0].axes:
        if axis.texts:
            row = int(axis.images[0].get_array()[0, 0, 0])
            words = ("abc"[int(logits[row].argmax())] for logits in (teacher, student))
            assert axis.texts[0].get_text() == "teacher: {}\nstudent: {}".format(*words)
            assert row in kept
