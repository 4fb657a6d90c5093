import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, StillhouseError
from stillhouse.quantize.ptq import Quantize
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Train
from stillhouse.work import Work
from stillhouse_sam.annotated import PUBLISHABLE
from stillhouse_sam.confidence import CalibrateConfidence, Calibration, HighConfidence, confident
from stillhouse_sam.data import ReadMasks
from stillhouse_sam.everything import EverythingSettings
from stillhouse_sam.full_stage import TERMS
from stillhouse_sam.models import Shape, named
from stillhouse_sam.recipes.tinysam_settings import STUDENTS
from stillhouse_sam.samples import scenes

NAME = "sam/tinysam"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_stages_of_a_seed_and_rows_of_the_report() -> None:
    made = recipe(students=["embedding", "weighting"], bits=[8], compared=False)
    assert [s.name for s in made.stages] == [
        "data", "boxes", "teacher", "teacher-sam", "teacher-scores",
        "embedding-0", "embedding-0-sam", "embedding-0-scores",
        "weighting-0", "weighting-0-sam", "weighting-0-scores",
        "w8-0", "w8-0-scores", "int8-0", "int8-0-scores",
        "photos", "everything-confidence", "everything",
        "everything-teacher-confidence", "everything-teacher", "pictures",
        "onnx-0", "shipped", "ready", "export",
    ]  # fmt: skip
    assert {title: row.stages for title, row in made.rows.items()} == {
        "teacher": ("teacher-scores",),
        "embedding only": ("embedding-0-scores",),
        "+ hard mask weighting": ("weighting-0-scores",),
        "W8A8": ("w8-0-scores",),
        "int8, ONNX Runtime": ("int8-0-scores",),
    }
    assert made.baseline == "embedding only"
    assert made.rows["int8, ONNX Runtime"].kind == made.rows["W8A8"].kind == "compressed"
    # of the other seeds nothing reads the student's floats as ONNX
    assert [s.name for s in recipe(seeds=2).stages if s.name.startswith("onnx")] == ["onnx-0"]


def test_a_seed_later_leaves_the_stages_there_are() -> None:
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_each_student_has_one_part_more() -> None:
    made = recipe("small")
    losses = {name: made.stage(f"{name}-0").objective for name in STUDENTS}
    assert losses["alone"].distil == ()
    assert losses["embedding"].distil == ("embedding",)
    assert losses["embedding"].mask_weight == losses["embedding"].iou_weight == 0
    assert losses["embedding"].phases["student"].trains == ("encoder",)
    for name, rounds, weighted in (
        ("stages", 0, False), ("prompts", 9, False), ("weighting", 9, True),
    ):  # fmt: skip
        loss = losses[name]
        assert (loss.distil, loss.hard_rounds, loss.hard_weighting) == (TERMS, rounds, weighted)
        assert loss.phases["student"].trains == ("encoder", "decoder")


def test_students_see_the_same_images_from_the_same_first_weights() -> None:
    made = recipe("small")
    students = [made.stage(f"{name}-1") for name in STUDENTS]
    for student in students:
        assert isinstance(student, Train)
        assert student.setup() == students[0].setup()
        assert student.fresh == students[0].fresh
        assert student.inputs["data"] == "data.train"


def test_what_a_student_does_not_learn_is_the_teachers() -> None:
    made = recipe()
    for name, learned in (("embedding", {"encoder"}), ("stages", {"encoder", "decoder"})):
        inputs = made.stage(f"{name}-0-sam").inputs
        for part in ("encoder", "prompts", "decoder"):
            source = f"{name}-0" if part in learned else "teacher"
            assert inputs[part] == f"{source}.{part}"
    frozen = recipe(train_decoder=False).stage("weighting-0-sam").inputs
    assert frozen["decoder"] == "teacher.decoder"


def test_a_given_teacher_is_taken_apart() -> None:
    made = recipe(teacher="file:sam.pth")
    assert isinstance(made.stage("teacher"), Convert)
    given = {"checkpoint": "file:sam.pth"}
    assert made.stage("teacher").inputs == {**given, "data": "data.train"}
    untried = recipe(teacher="file:sam.pth", check_teacher=False)
    assert untried.stage("teacher").inputs == given
    student = made.stage("weighting-0")
    assert student.inputs["teacher-encoder"] == "teacher-encoder.model"
    assert student.inputs["decoder"] == "teacher-decoder.model"
    assert made.stage("teacher-scores").inputs["student"] == "teacher.model"


def test_nothing_but_training_photos_trains_or_calibrates() -> None:
    made = recipe("small")
    for stage in made.stages:
        port = stage.inputs.get("data")
        if isinstance(stage, Evaluate):
            everything = stage.name.startswith("everything")
            assert port == ("photos.photos" if everything else "data.test")
        elif stage.name.startswith(("w8", "w6", "w4", "onnx", "int8", "export")):
            assert port == "data.calibration"  # rendered scenes have other ranges
        elif stage.name not in ("data", "photos"):
            assert port in (None, "data.train")


def test_scales_are_searched_three_ways_and_the_integers_are_those_of_the_hessian() -> None:
    made = recipe(bits=[8, 4])
    found = {
        s.name: (s.convert.bits, s.convert.metric)
        for s in made.stages
        if isinstance(s, Convert) and isinstance(s.convert, Quantize)
    }
    assert found == {
        "w8-0": (8, "hessian"), "w8-mse": (8, "mse"), "w8-minmax": (8, "minmax"),
        "w4-0": (4, "hessian"), "w4-mse": (4, "mse"), "w4-minmax": (4, "minmax"),
    }  # fmt: skip
    assert made.stage("int8-0").inputs["student"] == "w8-0.model"


def test_everything_mode_is_asked_of_the_users_own_photos() -> None:
    mine = recipe("small", data="file:mine").stage("photos")
    assert mine.inputs == {"source": "file:mine"}
    assert mine.make.held_out == 0.2  # those that ReadMasks keeps for testing
    preset = recipe("small").stage("photos")
    assert preset.inputs == {"source": "data:coco-panoptic-val100"}
    assert preset.make.held_out is None
    other = recipe("small", data="file:mine", photos="file:other").stage("photos")
    assert other.inputs == {"source": "file:other"}
    assert recipe().stage("photos").inputs == recipe().stage("data").inputs


def test_the_gradients_norm_is_bounded_by_a_setting() -> None:
    for made, norm in ((recipe(), 1.0), (recipe(clip_norm=3.0), 3.0)):
        objectives = (s.objective for s in made.stages if isinstance(s, Train))
        assert {p.clip_norm for o in objectives for p in o.phases.values()} == {norm}


def test_void_values_reach_the_readers() -> None:
    made = recipe("small", data="file:mine", void=(255, 7))
    assert made.stage("data").make.void == made.stage("photos").make.void == (255, 7)


def test_images_are_of_photos_that_may_be_shown() -> None:
    made = recipe("small")
    figures = [f for s in made.stages if isinstance(s, Evaluate) for f in s.figures]
    assert len(figures) == 3
    assert all(figure.licences == PUBLISHABLE for figure in figures)


def test_paper_has_the_settings_of_the_paper() -> None:
    made = recipe("paper", teacher="file:sam_vit_h_4b8939.pth")
    student = made.stage("weighting-0")
    assert (student.steps, student.batch) == (110_000, 8)
    assert student.objective.prompts_per_image == 64
    assert student.fresh["encoder"].kwargs == {"size": 1024, "grid": 64, "channels": 256}
    everything = made.stage("everything")
    assert everything.metrics[0].settings == EverythingSettings()
    assert not [s.name for s in made.stages if s.name.endswith("confidence")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": ["stages"]}, "name each student once, and embedding among them"),
        ({"students": ["embedding", "stges"]}, "students.1: Input should be 'alone'"),
        ({"bits": [8, 9]}, "from 2 to 8"),
        ({"bits": [6]}, "add 8 to bits, or set int8=false"),
        ({"clicks": [0]}, "each once and >= 1"),
        ({"student": "cn8"}, "unknown model 'cn8'"),
        ({"size": 60}, "size must be a multiple of grid"),
        ({"high_confidence": -math.inf}, "high_confidence: .*give a logit, or inf to skip nothing"),
        ({"high_confidence": math.nan}, "give a logit, or inf to skip nothing"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message):
        recipe(**settings)


def test_a_sams_confidence_is_found_kept_and_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = named("cnn8", shape=Shape(size=64, grid=8, channels=32, heads=2, mlp=64))
    save_model(tmp_path / "sam", Built(spec=spec, module=spec.new().eval()))
    sam = load_model(tmp_path / "sam")
    parts = list(ReadMasks(size=64, low=32)({"source": scenes()}, work=Work())["test"])
    data = TensorData(parts[0])
    asked = EverythingSettings(points_per_side=4, pred_iou_thresh=-9.0, stability_score_thresh=0.0)
    convert = CalibrateConfidence(settings=asked, photos=2, lost=1.0)
    convert({"student": sam, "data": data}, tmp_path / "out", work=Work())
    kept = load_model(tmp_path / "out").module
    assert isinstance(kept, HighConfidence)
    found = kept.found()
    assert isinstance(found, Calibration)
    settings = confident(asked, {"confidence": kept}, "confidence")
    assert settings.high_confidence == found.high_confidence
    assert confident(asked, {}, None) is asked
    with pytest.raises(BadData, match="not what CalibrateConfidence makes"):
        confident(asked, {"confidence": torch.nn.Identity()}, "confidence")
    with pytest.raises(BadData, match="not a whole SAM"):
        convert(
            {"student": Built(spec=spec, module=kept), "data": data},
            tmp_path / "x",
            work=Work(),
        )
