"""Rates of clip/vlm_ood are chosen on images that no score of its report reads."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import load_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.recipe import Recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Evaluate, Train
from stillhouse.work import Work
from stillhouse_clip.closed_set import ClosedSet, FreshClosedSet
from stillhouse_clip.holding import HoldOutImages
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.scores import FewShots, Known
from stillhouse_clip.towers import image_model

NAME = "clip/vlm_ood"
# of the data stage; `every` is what a teacher of drawn scenes is trained on
TESTED = {"data.validation", "data.unseen", "data.shots"}


def recipe(scale: str = "tiny", **settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def lr_of(stage: Any) -> float:
    (phase,) = stage.objective.phases.values()
    return phase.optimizer.lr


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_with_a_grid_nothing_reads_a_test_port(scale: str) -> None:
    made = recipe(scale, grid=[0.01, 0.1], seeds=1)
    reads = {ref for stage in made.stages for ref in stage.inputs.values()}
    assert not reads & TESTED
    assert made.stage("held-out").inputs["data"] == "data.train"
    for stage in made.stages:
        if isinstance(stage, Evaluate):
            assert stage.inputs["held_out"] == "held-out.held_out"
        if isinstance(stage, Train) and "student" in stage.objective.phases:
            assert stage.inputs["data"] == "held-out.train"
    if scale == "small":
        assert "data.every" not in reads
        assert made.stage("feature-pairs").inputs["data"] == "held-out.train"


def test_a_grid_has_each_row_and_the_closed_set_at_each_rate() -> None:
    made = recipe(grid=[0.01, 1.0], rows=["cls", "imitation"], shot_rows=[], texts=["plain"])
    assert [title for title in made.rows if title.endswith(", rate 0.01")] == [
        "cls, names, rate 0.01",
        "mse alone, names, rate 0.01",
        "closed set, rate 0.01",
    ]
    assert len(made.rows) == 1 + 2 * 3
    for name, lr in (("cls-plain-0_01-0", 0.01), ("imitation-1-0", 1.0), ("closed-1-0", 1.0)):
        assert lr_of(made.stage(name)) == lr


def test_a_row_has_its_own_rate() -> None:
    rates = {"cls-plain": 0.02, "imitation": 0.03, "closed": 0.04, "mse": 0.06, "mse-plain": 0.05}
    made = recipe(rates=rates, shot_rows=["cls"])
    assert lr_of(made.stage("mse-plain-0")) == 0.05
    assert lr_of(made.stage("mse-described-0")) == 0.06
    assert lr_of(made.stage("cls-plain-0")) == 0.02
    assert lr_of(made.stage("cls-described-0")) == 5e-3
    assert lr_of(made.stage("imitation-0")) == 0.03
    assert lr_of(made.stage("closed-0")) == 0.04
    assert lr_of(made.stage("cls-plain-0-tuned")) == 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": {"imitation-plain": 1.0}}, "rates: 'imitation-plain' is none of cls, mse"),
        ({"rates": {"closed": 0.0}}, "rates: closed must be > 0"),
        ({"grid": [0.1, 0.1]}, "grid: name rates > 0, each once"),
    ],
)
def test_rates_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        recipe(**settings)


def test_a_share_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 20)
    data = TensorData({"images": torch.arange(35.0)[:, None], "labels": labels})
    found = HoldOutImages(share=0.2)({"data": data}, work=Work())
    assert Counter(found["held_out"]["labels"].tolist()) == {0: 2, 1: 1, 2: 4}  # type: ignore[union-attr]
    both = torch.cat([found[port]["images"] for port in ("train", "held_out")])  # type: ignore[list-item]
    assert sorted(both.flatten().tolist()) == list(range(35))
    with pytest.raises(BadData, match="label 0 has 2 images, too few to hold 20% out"):
        HoldOutImages()({"data": TensorData({"labels": torch.zeros(2).long()})}, work=Work())


class Looks(torch.nn.Module):
    """The embedding of an image is what its first two pixels say."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"embedding": batch["images"][:, 0, 0, :2] * self.one}


def test_a_closed_set_classifies_known_classes_and_finds_others_by_shots() -> None:
    model = ClosedSet(Looks(), dim=2, known=2)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model.classifier.bias.zero_()
    pixels = torch.zeros(4, 3, 1, 2)
    pixels[:, 0, 0] = torch.tensor([[1.0, 0.2], [0.3, 0.9], [-1.0, 0.1], [0.1, -1.0]])
    known = TensorData({"images": pixels[:2], "labels": torch.tensor([0, 0])})
    work = Work(data={"validation": known})
    assert Known()({"student": model}, known, work=work)["known_accuracy"] == 0.5
    # unseen classes 0 and 1 are labels 2 and 3 among all; by hand: each image lies at its own shot
    support = TensorData(
        {"embedding": torch.tensor([[-2.0, 0.0], [0.0, -3.0]]), "labels": torch.tensor([2, 3])}
    )
    unseen = TensorData({"images": pixels[2:], "labels": torch.tensor([0, 0])})
    metric = FewShots(support="support", own=True)
    work = Work(data={"support": support})
    assert metric({"student": model}, unseen, work=work)["few_shot_accuracy"] == 0.5
    with pytest.raises(BadSetting, match="own embeddings need a data port"):
        FewShots(own=True)
    with pytest.raises(BadData, match="role 'student' has no bank of class texts"):
        FewShots(support="support")({"student": model}, unseen, work=work)


def test_a_fresh_closed_set_has_the_known_classes(tmp_path: Path) -> None:
    tower = image_model("conv2", dim=8, images=ImageSpec(size=32))
    classes = TensorData({"known": torch.tensor([1, 1, 1, 0])})
    for name in ("one", "two"):
        FreshClosedSet(tower=tower, dim=8)({"classes": classes}, tmp_path / name, work=Work())
    one, two = (load_model(tmp_path / name).module for name in ("one", "two"))
    found = one({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "embedding": (2, 8),
        "logits": (2, 3),
    }
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_closed_set_learns_by_cross_entropy_and_reads_no_text() -> None:
    made = recipe()
    train = made.stage("closed-0")
    assert isinstance(train, Train)
    assert dict(train.inputs) == {"data": "data.train", "student": "closed-start-0.model"}
    assert train.objective.roles == ("student",)
    assert "closed-0" not in {t for row in made.rows.values() for t in row.stages}
    assert made.studies["The closed set on its own classes"] == ("closed-0-scores",)
