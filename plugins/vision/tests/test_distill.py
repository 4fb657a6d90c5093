from typing import Any

import pytest
import torch

from stillhouse.errors import BadSetting, StillhouseError, UnknownName
from stillhouse.objectives.catalogue import DISTILLATION_METHODS
from stillhouse.objectives.objective import Composed, Step
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Train
from stillhouse_vision.models import LoadCheckpoint
from stillhouse_vision.recipes.distill import distill
from stillhouse_vision.samples import digits

NAME = "vision/distill"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_stages_of_a_seed_and_rows_of_the_report() -> None:
    made = recipe(objective=["kd", "dkd"], seeds=2)
    assert [s.name for s in made.stages] == [
        "data", "teacher", "teacher-scores",
        "plain-0", "plain-0-scores", "plain-1", "plain-1-scores",
        "kd-0", "kd-0-scores", "kd-1", "kd-1-scores",
        "dkd-0", "dkd-0-scores", "dkd-1", "dkd-1-scores", "export",
    ]  # fmt: skip
    assert {title: row.stages for title, row in made.rows.items()} == {
        "teacher": ("teacher-scores",),
        "student": ("plain-0-scores", "plain-1-scores"),
        "student + kd": ("kd-0-scores", "kd-1-scores"),
        "student + dkd": ("dkd-0-scores", "dkd-1-scores"),
    }
    assert made.baseline == "student"


def test_a_seed_later_leaves_the_stages_there_are() -> None:
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_baseline_differs_from_the_distilled_only_in_what_it_learns_from() -> None:
    made = recipe("small")
    plain, kd = made.stage("plain-0"), made.stage("kd-0")
    assert isinstance(plain, Train)
    assert isinstance(kd, Train)
    assert plain.setup() == kd.setup()
    assert plain.fresh["student"] == kd.fresh["student"]
    assert plain.objective.phases["student"] == kd.objective.phases["student"]


def test_small_scores_the_pretrained_teacher_before_and_after_fine_tuning() -> None:
    made = recipe("small")
    loaded, tuned = made.stage("pretrained"), made.stage("teacher")
    assert isinstance(loaded, Convert)
    teacher = make_settings(NAME, "small").teacher
    assert loaded.inputs == {"checkpoint": teacher, "data": "data.train"}
    assert isinstance(tuned, Train)
    assert tuned.inputs["teacher"] == "pretrained.model"
    assert list(made.rows)[:2] == ["teacher (pretrained)", "teacher"]
    assert made.stage("kd-0").inputs["teacher"] == "teacher.teacher"
    tests = {s.inputs["data"] for s in made.stages if isinstance(s, Evaluate)}
    assert tests == {"data.test"}


def test_paper_has_the_settings_of_the_papers() -> None:
    made = recipe("paper")
    kd = made.stage("kd-4")
    assert isinstance(kd, Train)
    assert (kd.steps, kd.batch, kd.views, kd.cache) == (187_440, 64, 240, {})
    phase = kd.objective.phases["student"]
    assert (phase.optimizer.lr, phase.optimizer.build) == (0.05, torch.optim.SGD)
    assert phase.optimizer.kwargs == {"momentum": 0.9, "weight_decay": 5e-4}
    assert isinstance(phase.schedule, Step)
    factors = {e: phase.schedule.factor(e * 781, 187_440) for e in (149, 150, 180, 210)}
    assert factors == pytest.approx({149: 1, 150: 0.1, 180: 0.01, 210: 0.001})
    objective = kd.objective
    assert isinstance(objective, Composed)
    weights = {name: loss.weight for name, loss in objective.losses.items()}
    assert weights == {"ce": 0.1, "kd": 0.9}
    assert objective.losses["kd"].term.hyperparameters == {"temperature": 4.0}
    dkd = made.stage("dkd-0").objective.losses["dkd"].term.hyperparameters
    assert (dkd["alpha"], dkd["beta"]) == (1, 8)


def test_own_teacher_is_used_as_it_is() -> None:
    made = recipe(teacher="file:mine", teacher_model="resnet20")
    assert made.stage("teacher").inputs == {"checkpoint": "file:mine", "data": "data.train"}
    unchecked = recipe(teacher="file:mine", check_teacher=False).stage("teacher")
    assert unchecked.inputs == {"checkpoint": "file:mine"}
    assert made.stage("kd-0").inputs["teacher"] == "teacher.model"
    assert "teacher (pretrained)" not in made.rows


def test_own_teacher_must_have_the_feature_maps_that_are_read() -> None:
    by_logits = recipe(teacher="file:mine").stage("teacher").convert
    by_maps = recipe(teacher="file:mine", objective="at").stage("teacher").convert
    assert isinstance(by_logits, LoadCheckpoint)
    assert by_logits.agree == ("logits",)
    assert by_maps.agree == ("logits", "hint1", "hint2", "hint3")
    by_embedding = recipe(teacher="file:mine", objective=["kd", "rkd"]).stage("teacher").convert
    assert by_embedding.agree == ("logits", "embedding")


def test_temperature_and_numbers_reach_their_objective_only() -> None:
    chosen = recipe(objective=["kd", "std_kd", "dkd"], temperature=3, numbers={"dkd.beta": 5.0})
    terms = {o: chosen.stage(f"{o}-0").objective.losses[o].term for o in ("kd", "std_kd", "dkd")}
    numbers = {o: term.hyperparameters for o, term in terms.items()}
    assert [numbers[o]["temperature"] for o in ("kd", "std_kd", "dkd")] == [3, 2, 3]
    assert numbers["dkd"]["beta"] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "kdd"}, r"unknown objective 'kdd'. Did you mean 'kd'\?"),
        ({"numbers": {"dkd.betta": 1}}, r"'dkd': unknown number 'betta'. Did you mean 'beta'\?"),
        ({"student": "resnet-20"}, r"unknown model 'resnet-20'. Did you mean 'cifar-resnet20'\?"),
        ({"objective": ["kd", "kd"]}, "name each objective once"),
        ({"objective": []}, "and at least one"),
        ({"names": ["a", "b"]}, "2 names for classes=10; give one a class"),
        ({"milestones": [150, 180]}, "fractions between 0 and 1"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"augment": "crops"}, "augment: Input should be 'none', 'crop'"),
        ({"std": [0.0]}, r"std must be > 0 \(got 0.0\)"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert isinstance(error.value, UnknownName | BadSetting)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    arrays = digits()
    rows = torch.arange(0, 400, 25)
    images = torch.from_numpy(arrays["train_images"])[rows]
    labels = torch.from_numpy(arrays["train_labels"])[rows]
    return {"id": rows, "view": torch.zeros_like(rows), "images": images, "labels": labels}


@pytest.mark.parametrize("name", DISTILLATION_METHODS)
def test_every_objective_of_the_zoo_trains_the_student(
    name: str, batch: dict[str, torch.Tensor]
) -> None:
    stage = recipe(objective=name).stage(f"{name}-0")
    assert isinstance(stage, Train)
    torch.manual_seed(0)
    models = {role: spec.new() for role, spec in stage.fresh.items()}
    teacher = recipe().stage("teacher").fresh["teacher"].new().eval()
    models["teacher"] = teacher.requires_grad_(False)
    terms = stage.objective.terms(
        "student", models, batch, step=50, steps=100, rng=torch.Generator().manual_seed(0)
    )
    own = sum(value for term, value in terms.items() if term != "ce")
    assert torch.isfinite(own)
    own.backward()
    reached = [p for p in models["student"].parameters() if p.grad is not None]
    assert any(bool(p.grad.abs().sum() > 0) for p in reached)


# vectors of the teacher are stored, maps are not
STORED = {
    **dict.fromkeys(("kd", "dkd", "dist", "std_kd"), ("logits",)),
    **dict.fromkeys(("rkd", "cc", "pkt", "infonce", "crd"), ("embedding",)),
}
PAIRED = ("dist", "sp", "rkd", "cc", "pkt", "infonce", "crd")  # no means over samples


@pytest.mark.parametrize("name", DISTILLATION_METHODS)
def test_what_is_stored_and_what_may_be_cut_follow_from_the_terms(name: str) -> None:
    stage = recipe(objective=name).stage(f"{name}-0")
    assert {r: c.outputs for r, c in stage.cache.items()} == (
        {"teacher": STORED[name]} if name in STORED else {}
    )
    assert stage.micro_batch == (None if name in PAIRED else 8)


@pytest.mark.parametrize("name", STORED)
def test_stored_outputs_of_the_teacher_are_all_that_is_read(
    name: str, batch: dict[str, torch.Tensor]
) -> None:
    """What the cache leaves out must not be missed: the terms are the same from the stored ones."""
    stage = recipe(objective=name).stage(f"{name}-0")
    assert isinstance(stage, Train)
    assert stage.cache["teacher"].outputs == STORED[name]
    torch.manual_seed(0)
    models = {role: spec.new() for role, spec in stage.fresh.items()}
    outputs = recipe().stage("teacher").fresh["teacher"].new().eval()(batch)
    stored = {output: outputs[output].detach() for output in STORED[name]}
    terms = []
    for given in (outputs, stored):
        teacher = _Says(given)
        rng = torch.Generator().manual_seed(0)
        copies = {role: module.eval() for role, module in models.items()}
        roles = {**copies, "teacher": teacher}
        terms.append(stage.objective.terms("student", roles, batch, step=50, steps=100, rng=rng))
    assert all(torch.equal(terms[0][term], terms[1][term]) for term in terms[0])


class _Says(torch.nn.Module):
    """A role whose outputs are known."""

    def __init__(self, outputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.outputs


def test_a_network_of_before_is_the_same_under_its_full_name() -> None:
    short, full = (recipe(student=name) for name in ("resnet8", "cifar-resnet8"))
    assert short == full
    preset = make_settings(NAME, "small")
    assert make_settings(NAME, "small", {"student": "resnet20"}).variant() == preset.variant()


@pytest.mark.parametrize("name", ["distill", "diswot", "kd3", "knfu"])
def test_tiny_says_beside_its_headline_why_it_may_mislead(name: str) -> None:
    tiny, small = (
        make_recipe(f"vision/{name}", make_settings(f"vision/{name}", scale))
        for scale in ("tiny", "small")
    )
    assert tiny.caution.startswith("Scale tiny shows that everything works, not what the method")
    assert "--scale small --set seeds=3" in tiny.caution
    assert small.caution == ""


@pytest.mark.parametrize("name", ["distill", "diswot", "kd3"])
def test_notes_say_that_all_students_have_one_teacher(name: str) -> None:
    made = make_recipe(f"vision/{name}", make_settings(f"vision/{name}", "small"))
    assert any("All students have one teacher, of one seed" in note for note in made.notes)


def test_notes_say_how_students_are_trained_beside_the_papers() -> None:
    for name, said, official in (
        ("kd3", "1,000 steps of 128 images, augment=crop-flip padding=4", "crops of random size"),
        ("diswot", "312 steps of 64 images, augment=crop-flip padding=4", "240 epochs of batches"),
    ):
        made = make_recipe(f"vision/{name}", make_settings(f"vision/{name}", "small"))
        (note,) = [note for note in made.notes if said in note]
        assert "learning rate of 0.05 that falls as a cosine" in note
        assert official in note


def test_recipe_is_a_function_of_its_settings() -> None:
    assert distill(make_settings(NAME, "tiny")) == distill(make_settings(NAME, "tiny"))
