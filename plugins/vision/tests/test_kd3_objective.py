"""KD3's objective, the classifier it shares, and the student it leaves."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import Rows, TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Describing
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Train
from stillhouse.work import Work
from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.objectives import (
    KD3,
    SharedClassifierProjector,
    beta_sample,
    mix_distribution,
    mixing_weight,
    nt_xent,
    select_instances,
    weighted_alignment_loss,
)
from stillhouse_vision.objectives.shared import (
    ExtractHead,
    LinearHead,
    MergeStudent,
    last_map,
    linear_of,
)

IMAGES = ImageSpec(size=8, mean=(0.3,), std=(0.37,))
NAME = "vision/kd3"


def stage(**settings: Any) -> Train:
    found = make_recipe(NAME, make_settings(NAME, "tiny", settings)).stage("kd3-0")
    assert isinstance(found, Train)
    return found


def objective_of(train: Train) -> KD3:
    assert isinstance(train.objective, KD3)
    return train.objective


def teacher_and_head() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    teacher = model("cnn8", classes=10, images=IMAGES).new().eval()
    head = LinearHead(32, 10)
    head.linear.load_state_dict(linear_of(teacher).state_dict())
    return {r: m.requires_grad_(False) for r, m in (("teacher", teacher), ("head", head))}


def roles(train: Train) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {**{r: spec.new() for r, spec in train.fresh.items()}, **teacher_and_head()}


def batch(count: int = 12) -> dict[str, Tensor]:
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=rng()).to(torch.uint8)
    rows = torch.arange(count)
    return {"images": images, "id": rows, "view": torch.zeros_like(rows)}


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def terms(objective: KD3, models: Mapping[str, nn.Module], given: dict[str, Tensor]) -> Any:
    return objective.terms("student", models, given, step=0, steps=10, rng=rng(3))


SMALL = {"teacher_model": "cnn8", "cache": False}


def test_terms_are_the_equations() -> None:
    train = stage(**SMALL)
    objective, models, given = objective_of(train), roles(train), batch()
    found = terms(objective, models, given)
    # from scratch, on a second copy, in the released code's order of forward passes
    again = roles(train)
    pixels = given["images"] / 255
    teacher = again["teacher"](given)
    first = again["student"]({"images": pixels})
    projected = again["projector"]({"hint3": first["hint3"]})
    logits = F.linear(
        projected["map"].mean((2, 3)), again["head"].linear.weight, again["head"].linear.bias
    )
    align = weighted_alignment_loss(projected["map"], teacher["hint3"], logits, teacher["logits"])
    draws = rng(3)
    lam = beta_sample(12, 0.1, rng=draws)
    mixed = mix_distribution(pixels, lam, torch.randperm(12, generator=draws))
    second = again["student"]({"images": mixed})
    a, b = (
        again["embedding"]({"student.embedding": out["embedding"]})["embedding"]
        for out in (first, second)
    )
    torch.testing.assert_close(found["alignment"], align)
    torch.testing.assert_close(found["contrast"], 0.001 * nt_xent(a, b, temperature=0.3))
    assert set(found) == {"alignment", "contrast"}


def test_only_what_is_trained_gets_a_gradient() -> None:
    train = stage(**SMALL)
    models = roles(train)
    sum(terms(objective_of(train), models, batch()).values()).backward()
    trained = set(train.outputs)
    assert trained == {"student", "projector", "embedding"}
    for role, module in models.items():
        reached = any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
        assert reached == (role in trained), role
    # the student's own classifier is nobody's business
    assert all(p.grad is None for p in linear_of(models["student"]).parameters())


def test_images_go_through_the_student_in_two_passes() -> None:
    train = stage(**SMALL)
    models, given = roles(train), batch()
    counted = next(m for m in models["student"].modules() if isinstance(m, nn.BatchNorm2d))
    terms(objective_of(train), models, given)
    assert int(counted.num_batches_tracked) == 2
    terms(replace(objective_of(train), mix_weight=0.0), models, given)
    assert int(counted.num_batches_tracked) == 3


def test_ablations_leave_out_what_they_say() -> None:
    train = stage(**SMALL)
    objective, models, given = objective_of(train), roles(train), batch()
    assert set(terms(replace(objective, mix_weight=0.0), models, given)) == {"alignment"}
    plain = terms(replace(objective, weighted=False), models, given)["alignment"]
    student = models["student"](given)
    projected = models["projector"]({"hint3": student["hint3"]})["map"]
    torch.testing.assert_close(plain, F.mse_loss(projected, models["teacher"](given)["hint3"]))


def test_contrast_of_the_teacher_reaches_its_embedding_only() -> None:
    train = stage(**SMALL, teacher_contrast=True)
    models = roles(train)
    found = terms(objective_of(train), models, batch())
    assert set(found) == {"alignment", "contrast", "teacher_embedding"}
    found["teacher_embedding"].backward()
    reached = {r for r, m in models.items() if any(p.grad is not None for p in m.parameters())}
    assert reached == {"teacher_embedding"}
    assert "teacher_embedding" in train.outputs


def pool(count: int = 60) -> TensorData:
    columns = batch(count)
    even = torch.arange(count) % 2 == 0
    return TensorData({"images": columns["images"], "vocabulary": even})


def test_refresh_selects_by_both_networks_in_eval_mode() -> None:
    train = stage(**SMALL, select_on="pictures", refreshes=8)
    objective, data = replace(objective_of(train), pool_batch=7, least=1), pool()
    models = {r: m.eval() for r, m in roles(train).items()}
    step = 2 * objective.refresh_every
    chosen = objective.refresh(models, data, step=step, work=Work(rng=rng()))
    assert isinstance(chosen, Rows)
    with torch.no_grad():
        features = models["student"](data.columns)
        student = models["head"](models["projector"](features))["logits"]
        teacher = models["teacher"](data.columns)["logits"]
    alpha = mixing_weight(3, milestones=(4, 16 / 3))
    assert alpha == pytest.approx(objective.alpha(step))
    expected = select_instances(teacher, student, alpha=alpha)
    assert torch.equal(chosen.index, expected)
    assert 0 < len(expected) < 60
    told = objective.describe(chosen, data, step=step)
    share = float((expected % 2 == 0).float().mean())
    assert told == pytest.approx({"in_vocabulary_rate": share, "teacher_weight": alpha})
    assert isinstance(objective, Describing)


def test_selection_on_views_sees_those_of_training() -> None:
    train = stage(**SMALL)
    objective, data = objective_of(train), pool()
    models = {r: m.eval() for r, m in roles(train).items()}
    assert train.augment == objective.select_augment
    teacher, _ = objective.pool_logits(models, data, view=2)
    assert train.augment is not None
    seen = train.augment({**data.columns, "view": torch.full((60,), 2)})
    with torch.no_grad():
        torch.testing.assert_close(teacher, models["teacher"](seen)["logits"])


def test_selections_of_the_ablations() -> None:
    train = stage(**SMALL)
    models, data = {r: m.eval() for r, m in roles(train).items()}, pool()
    everything = replace(objective_of(train), selection="none")
    assert len(everything.refresh(models, data, step=0, work=Work(rng=rng()))) == 60
    assert "teacher_weight" not in everything.describe(Rows(data, torch.arange(4)), data, step=0)
    alone = replace(objective_of(train), selection="teacher", least=1)
    late = 7 * alone.refresh_every
    assert (alone.alpha(late), objective_of(train).alpha(late)) == (1, 0)
    before = alone.refresh(models, data, step=0, work=Work(rng=rng()))
    torch.nn.init.normal_(linear_of(models["student"]).weight)
    models["projector"] = roles(stage(**SMALL))["projector"].eval()
    torch.nn.init.normal_(models["projector"].maps[6].weight)
    after = alone.refresh(models, data, step=0, work=Work(rng=rng()))
    assert isinstance(before, Rows)
    assert isinstance(after, Rows)
    assert torch.equal(before.index, after.index)  # whatever the student says


def test_without_a_vocabulary_nothing_is_said_of_it() -> None:
    objective, data = objective_of(stage(**SMALL)), TensorData({"images": batch()["images"]})
    told = objective.describe(Rows(data, torch.arange(4)), data, step=0)
    assert set(told) == {"teacher_weight"}


# -- the shared classifier


def test_projector_is_that_of_simkd() -> None:
    projector = SharedClassifierProjector("student.hint3", 6, 16, 4)
    convs = [m for m in projector.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs] == [
        (6, 8, 1),
        (8, 8, 3),
        (8, 16, 1),
    ]
    assert all(c.bias is None for c in convs)
    kinds = [type(m).__name__ for m in projector.maps]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    x = torch.randn(2, 6, 8, 8, generator=rng())
    found = projector.eval()({"student.hint3": x})
    assert found["map"].shape == (2, 16, 4, 4)  # as large as the teacher's
    torch.testing.assert_close(found["map"], projector.maps(F.avg_pool2d(x, 2)))
    torch.testing.assert_close(found["embedding"], found["map"].mean((2, 3)))
    small = projector({"student.hint3": x[:, :, :2, :2]})
    assert small["map"].shape == (2, 16, 2, 2)  # never enlarged
    with pytest.raises(BadSetting, match="factor must divide target"):
        SharedClassifierProjector("a", 6, 15, 4)


def built(name: str) -> Built:
    torch.manual_seed(2)
    spec = model(name, classes=10, images=IMAGES)
    return Built(spec=spec, module=spec.new().eval())


def test_extracted_head_is_the_teachers(tmp_path: Path) -> None:
    teacher = built("cnn8")
    ExtractHead()({"teacher": teacher}, tmp_path / "head", work=Work(rng=rng()))
    head = load_model(tmp_path / "head").module
    with torch.no_grad():
        outputs = teacher.module(batch())
        logits = head({"embedding": outputs["hint3"].mean((2, 3))})["logits"]
    torch.testing.assert_close(logits, outputs["logits"])


class Rescaled(nn.Module):
    """A classifier whose logits are more than a linear layer of its last map."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self.module(given)
        return {**found, "logits": found["logits"].square()}


def test_a_teacher_without_such_a_head_is_refused(tmp_path: Path) -> None:
    teacher = built("cnn8")
    strange = Built(spec=teacher.spec, module=Rescaled(teacher.module))
    with pytest.raises(BadData, match="Rescaled: has no linear head that a student could share"):
        ExtractHead()({"teacher": strange}, tmp_path / "a", work=Work(rng=rng()))
    teacher.module.register_forward_hook(lambda m, i, out: {**out, "logits": 2 * out["logits"]})
    with pytest.raises(BadData, match="not a linear layer on the mean of its last map"):
        ExtractHead()({"teacher": teacher}, tmp_path / "b", work=Work(rng=rng()))
    with pytest.raises(BadSetting, match="this model shows none"):
        last_map({"logits": 1})


def test_a_timm_teacher_can_share_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = model("timm:resnet10t", classes=7, images=ImageSpec(size=32))
    teacher = Built(spec=spec, module=spec.new().eval())
    ExtractHead()({"teacher": teacher}, tmp_path / "head", work=Work(rng=rng()))
    assert load_model(tmp_path / "head").spec.kwargs == {"width": 512, "classes": 7}


def test_merged_student_is_body_projector_and_head_in_one_file(tmp_path: Path) -> None:
    train = stage(**SMALL)
    torch.manual_seed(0)
    parts = {r: Built(spec=s, module=s.new().eval()) for r, s in train.fresh.items()}
    ExtractHead()({"teacher": built("cnn8")}, tmp_path / "head", work=Work(rng=rng()))
    parts["head"] = load_model(tmp_path / "head")
    # what is merged is what was stored
    stored = {r: save_model(tmp_path / r, parts[r]) for r in ("student", "projector")}
    opened = {**{r: a.open() for r, a in stored.items()}, "head": parts["head"]}
    MergeStudent()(opened, tmp_path / "merged", work=Work(rng=rng()))
    merged, given = load_model(tmp_path / "merged"), batch()
    with torch.no_grad():
        features = parts["student"].module(given)
        projected = parts["projector"].module(features)
        expected = parts["head"].module(projected)["logits"]
        found = merged.module(given)
    torch.testing.assert_close(found["logits"], expected)
    torch.testing.assert_close(found["embedding"], projected["embedding"])
    names = tuple(str(digit) for digit in range(10))
    # what predict reads
    assert ImageSpec.of(merged.spec.kwargs["images"]) == replace(IMAGES, names=names)
    sizes = {r: sum(p.numel() for p in b.module.parameters()) for r, b in parts.items()}
    own = sum(p.numel() for p in linear_of(parts["student"].module).parameters())
    total = sum(p.numel() for p in merged.module.parameters())
    assert total == sizes["student"] - own + sizes["projector"] + sizes["head"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"refresh_every": 0}, "refresh_every must be >= 1"),
        ({"mix_weight": -1.0}, "mix_weight must be >= 0"),
        ({"contrast_temperature": 0.0}, "contrast_temperature must be > 0"),
        ({"milestones": (0.0, 1.0)}, "both milestones > 0"),
    ],
)
def test_objective_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        replace(objective_of(stage()), **changed)
