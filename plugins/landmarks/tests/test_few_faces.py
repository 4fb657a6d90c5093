"""landmarks/two_teacher with few or noisy labels: who sees which points, cross-fitted teachers on a
pretrained network, losses where a face has no points.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, load_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.recipe import Context
from stillhouse.runs import Runs, run_stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Train
from stillhouse.stages.choosing import Choose, TrainChosen
from stillhouse.work import Work
from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.drawing import AddNoise, CopyFaces, DrawFaces, FirstViews
from stillhouse_landmarks.few_labels import (
    UNLABELLED,
    completed_assistive_loss,
    completed_l1_loss,
    completed_main_loss,
)
from stillhouse_landmarks.models import ImageSpec
from stillhouse_landmarks.objectives import assistive_loss, l1_loss, paper_main_loss
from stillhouse_landmarks.pretrained import (
    FitRidge,
    FrozenRegressor,
    LoadFrozen,
    WithoutFolds,
    frozen_regressor,
)
from stillhouse_landmarks.recipes.soft_faces import Copies
from stillhouse_landmarks.ridge import STRENGTHS, cross_fitted, fitted

NAME, TIMM = "landmarks/two_teacher", "test_efficientnet"
NUMBERS: Mapping[str, Any] = {"positive": 0.9, "negative": -0.45, "beta": 0.4, "ramp": True}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the whole network as timm has it, its names another implementation's."""
    torch.manual_seed(0)
    state = timm.create_model(TIMM, num_classes=1000).state_dict()
    file = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save({f"body.{n}": value for n, value in enumerate(state.values())}, file)
    return file


def network(level: int = 2, folds: int = 0) -> dict[str, Any]:
    images = ImageSpec(size=8, points=2).json()
    colours = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {"name": TIMM, "level": level, "side": 32, "images": images, "folds": folds, **colours}


def recipe(**settings: Any) -> Any:
    given = {"pretrained": "file:net.pth", "pretrained_name": TIMM, "rates": [], **settings}
    return make_recipe(NAME, make_settings(NAME, "tiny", given))


def faces(count: int, copies: int) -> TensorData:
    """Copies of faces whose points name their face, view after view."""
    face = torch.arange(count).repeat(copies)
    return TensorData(
        {
            "images": torch.zeros(len(face), 3, 8, 8, dtype=torch.uint8),
            "face": face,
            "copy": torch.arange(copies).repeat_interleave(count),
            "landmarks": face[:, None].expand(-1, 4).float(),
            "noisy-1": face[:, None].expand(-1, 4) + 0.5,
        }
    )


def drawn(seed: int = 0, **how: Any) -> Mapping[str, Any]:
    given: dict[str, Any] = {"faces": 10, "folds": 3, **how}
    return DrawFaces(**given)({"data": faces(30, 4)}, work=Work.seeded(seed))


def test_the_rest_has_no_points_and_all_copies_of_a_face_are_together() -> None:
    made = drawn()
    labelled, rest = made["labelled"], made["unlabelled"]
    assert "landmarks" not in rest
    assert "noisy-1" not in rest
    assert "face" not in rest
    found = labelled["landmarks"][:, 0]
    assert found.unique(return_counts=True)[1].tolist() == [4] * 10
    assert set(labelled["id"].tolist()).isdisjoint(rest["id"].tolist())
    assert len(labelled["id"]) + len(rest["id"]) == 120
    assert bool((rest["fold"] == -1).all())


def test_a_fold_holds_whole_faces_and_each_as_many() -> None:
    labelled = drawn()["labelled"]
    pairs = {(int(f), int(p)) for f, p in zip(labelled["fold"], labelled["landmarks"][:, 0])}  # noqa: B905
    assert len(pairs) == 10
    assert sorted(fold for fold, _ in pairs) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_each_seed_draws_faces_of_its_own_and_may_read_noisy_points() -> None:
    one, two = drawn(0), drawn(1)
    assert one["labelled"]["id"].tolist() != two["labelled"]["id"].tolist()
    noisy = drawn(0, points="noisy-1")["labelled"]["landmarks"]
    assert torch.equal(noisy, one["labelled"]["landmarks"] + 0.5)


def test_more_faces_than_there_are_is_one_line() -> None:
    with pytest.raises(BadData, match="labels=31: there are 30 training faces; set fewer"):
        drawn(faces=31, rest=False)
    with pytest.raises(BadData, match="there are 30 training faces; set fewer, or rows that need"):
        drawn(faces=30)
    assert len(drawn(faces=0, rest=False)["labelled"]["id"]) == 120


def test_first_views_are_kept() -> None:
    found = FirstViews(views=2)({"data": faces(3, 4)}, work=Work())["train"]
    assert found["copy"].tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]


def test_noise_is_of_its_size_and_moves_with_the_face() -> None:
    points = torch.rand(400, 136, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(400, 3, 8, 8, dtype=torch.uint8)
    data = TensorData({"images": images, "landmarks": points})
    noised = AddNoise(noise=0.03, seeds=2)({"data": data}, work=Work.seeded(0))["train"]
    noise = noised["noisy-1"] - points  # type: ignore[operator]
    assert float(noise.std()) == pytest.approx(0.03, rel=0.01)
    assert not torch.equal(noised["noisy-0"], noised["noisy-1"])  # type: ignore[arg-type]
    columns = ("landmarks", "noisy-1")
    augment = FaceAugment(rotation=90.0, scale=0.0, translation=0.0, flip=0.5, columns=columns)
    copy = CopyFaces(augment=Copies(augment=augment), views=2, columns=columns)
    made = list(copy({"data": TensorData(noised)}, work=Work())["train"])
    turned = made[-1]["noisy-1"] - made[-1]["landmarks"]  # type: ignore[operator]
    last = noise[-len(turned) :]
    lengths = [n.unflatten(1, (-1, 2)).norm(dim=-1).sort(1).values for n in (turned, last)]
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-3, atol=1e-5)
    assert float((turned - last).abs().max()) > 0.01  # it is turned, not left as it was


def test_ridge_is_that_of_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 3))
    found = fitted(x, y, 7.0)
    standard = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(standard.T @ standard + 7 * np.eye(6), standard.T @ (y - y.mean(0)))
    np.testing.assert_allclose(found(x), standard @ weight + y.mean(0), rtol=1e-9)


def test_a_fold_s_fit_has_not_seen_it_and_the_strength_is_that_of_the_least_error() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
    fold = np.arange(30) % 3
    whole, parts = cross_fitted(x, y, fold, folds=3, where="here")
    errors = {
        s: sum(
            ((fitted(x[fold != k], y[fold != k], s)(x[fold == k]) - y[fold == k]) ** 2).sum()
            for k in range(3)
        )
        for s in STRENGTHS
    }
    best = min(errors, key=lambda s: errors[s])
    np.testing.assert_allclose(whole.weight, fitted(x, y, best).weight)
    for k, part in enumerate(parts):
        np.testing.assert_allclose(part.weight, fitted(x[fold != k], y[fold != k], best).weight)
    with pytest.raises(BadData, match="2 folds of labelled faces, 3 are fitted; set more labels"):
        cross_fitted(x, y, fold % 2, folds=3, where="here")


def test_a_labelled_face_is_answered_for_by_a_fit_without_it(weights: Path, tmp_path: Path) -> None:
    kwargs = network()
    spec = LoadFrozen(model=make_spec(kwargs))
    spec({"weights": weights}, tmp_path / "net", work=Work())
    built = load_model(tmp_path / "net")
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=rng, dtype=torch.uint8)
    maps = built.module({"images": images})["embedding"].detach()
    points = torch.rand(12, 4, generator=rng)
    fold = torch.arange(12) % 3
    columns = {"images": images, "features": maps.half(), "landmarks": points, "fold": fold}
    ctx = Context(stage="tough", out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "d")
    work = Work.seeded(0, ctx=ctx)
    given = {"network": built, "data": TensorData(columns)}
    FitRidge(folds=3)(given, tmp_path / "tough", work=work)
    teacher = load_model(tmp_path / "tough")
    rows = {"images": images, "features": maps.half()}
    crossed = teacher.module({**rows, "fold": fold})["landmarks"]
    plain = teacher.module(rows)["landmarks"]
    torch.testing.assert_close(
        teacher.module({**rows, "fold": -torch.ones(12)})["landmarks"], plain
    )
    assert not torch.allclose(crossed, plain)
    # other points of fold 1: the answers for fold 1 alone stay as they are
    moved = points.clone()
    moved[fold == 1] += 0.3
    given["data"] = TensorData({**columns, "landmarks": moved})
    FitRidge(folds=3)(given, tmp_path / "moved", work=work)
    again = load_model(tmp_path / "moved").module({**rows, "fold": fold})["landmarks"]
    assert not torch.allclose(again[fold != 1], crossed[fold != 1], atol=1e-3)
    WithoutFolds()({"network": teacher}, tmp_path / "used", work=work)
    used = load_model(tmp_path / "used").module
    assert isinstance(used, FrozenRegressor)
    assert used.fold_weight.numel() == 0
    # stored maps are of 16 bits
    torch.testing.assert_close(used({"images": images})["landmarks"], plain, rtol=0, atol=5e-3)


def make_spec(kwargs: Mapping[str, Any]) -> Model:
    return Model(build=frozen_regressor, kwargs=kwargs)


def test_the_map_is_that_of_timm_s_own_network(weights: Path, tmp_path: Path) -> None:
    LoadFrozen(model=make_spec(network()))({"weights": weights}, tmp_path / "net", work=Work())
    built: Built = load_model(tmp_path / "net")
    assert isinstance(built.module, FrozenRegressor)
    whole: Any = timm.create_model(TIMM, num_classes=1000)
    whole.load_state_dict(dict(zip(whole.state_dict(), torch.load(weights).values(), strict=True)))
    images = torch.rand(2, 3, 8, 8)
    scaled = nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False)
    found = whole.eval().forward_intermediates((scaled - 0.5) / 0.5, intermediates_only=True)[2]
    mine = built.module.train()({"images": images})["embedding"]  # train: it stays as it is
    torch.testing.assert_close(mine, found.flatten(1), rtol=1e-4, atol=1e-5)
    less = sum(p.numel() for p in built.module.net.parameters())
    assert less < sum(p.numel() for p in whole.parameters())


def test_what_cannot_be_a_backbone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="'test_efficientnet' has no block 9"):
        frozen_regressor(**network(level=9))
    torch.save({"a": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(BadData, match=r"odd.pth \(test_efficientnet\): does not fit the model"):
        LoadFrozen(model=make_spec(network()))(
            {"weights": tmp_path / "odd.pth"}, tmp_path / "net", work=Work()
        )


def points(count: int, seed: int) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def test_completed_losses_are_the_paper_s_where_faces_have_points() -> None:
    prediction, truth, teacher, other = (points(4, n) for n in range(4))
    assert torch.equal(completed_l1_loss(prediction, truth, teacher), l1_loss(prediction, truth))
    assert torch.equal(
        completed_main_loss(prediction, truth, teacher), paper_main_loss(prediction, truth)
    )
    assert torch.equal(
        completed_assistive_loss(prediction, truth, other, teacher, **NUMBERS),
        assistive_loss(prediction, truth, other, **NUMBERS),
    )


def test_without_points_a_teacher_s_stand_in_and_a_mean_over_all_faces_is_taken() -> None:
    prediction, truth, teacher = (points(4, n) for n in range(3))
    truth[2:] = UNLABELLED
    filled = torch.cat([truth[:2], teacher[2:]])
    prediction.requires_grad_(True)
    loss = completed_l1_loss(prediction, truth, teacher.requires_grad_(True))
    torch.testing.assert_close(loss, (prediction - filled).abs().mean())
    loss.backward()
    assert teacher.grad is None
    # a teacher that stands in for the truth has no error of its own: it only draws near
    own = completed_assistive_loss(prediction[2:], truth[2:], teacher[2:], teacher[2:], **NUMBERS)
    torch.testing.assert_close(own, 0.9 * (prediction[2:] - teacher[2:]).abs().mean())


def test_rows_and_who_sees_what() -> None:
    made = recipe(labels=20, seeds=2)
    assert [(title, row.kind) for title, row in made.rows.items()] == [
        ("tough teacher", "teacher"),
        ("tolerant teacher", "teacher"),
        ("student, labels alone (L1)", "baseline"),
        ("student, L1 + plain teacher, labelled faces", "student"),
        ("student, both teachers (paper), labelled faces", "student"),
        ("student, L1 + plain teacher, all faces", "student"),
        ("student, both teachers (paper), all faces", "student"),
        ("student, self-training on all faces", "student"),
    ]
    assert made.method == "student, both teachers (paper), all faces"
    alone, every = made.stage("labels-1"), made.stage("paper-all-1")
    assert dict(alone.inputs) == {"data": "draw-1.labelled"}
    assert {port: str(ref) for port, ref in every.inputs.items()} == {
        "labelled": "draw-1.labelled", "unlabelled": "draw-1.unlabelled",
        "tough": "tough-1.model", "tolerant": "tolerant-1.model",
    }  # fmt: skip
    assert set(made.stage("self-training-1").inputs) == {"labelled", "unlabelled", "labeller"}
    for row in ("labels", "plain", "paper", "plain-all", "paper-all", "self-training"):
        stage = made.stage(f"{row}-1")
        assert isinstance(stage, Train)
        assert (stage.fresh, stage.setup()) == (alone.fresh, alone.setup())


def test_noise_without_labels_has_the_rows_that_need_no_others() -> None:
    made = recipe(noise=0.03, seeds=2)
    assert list(made.rows)[2:] == [
        "student, labels alone (L1)",
        "student, L1 + plain teacher, labelled faces",
        "student, both teachers (paper), labelled faces",
    ]
    assert made.stage("draw-1").make.points == "noisy-1"
    assert made.method == "student, both teachers (paper), labelled faces"


def test_rates_are_chosen_on_validation_faces() -> None:
    made = recipe(labels=20, rates=[1e-3, 1e-2])
    chooser = made.stage("choose-paper-all")
    assert isinstance(chooser, Choose)
    assert str(chooser.inputs["validation"]) == "data.validation"
    assert set(chooser.candidates) == {"lr0_001", "lr0_01"}
    assert isinstance(made.stage("paper-all-0"), TrainChosen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": 5, "pretrained": ""}, "set pretrained to its weights"),
        ({"noise": 0.1, "rows": ["labels", "plain-all"]}, "'plain-all' needs faces without points"),
        ({"labels": 5, "rows": ["plain"]}, "name each row once, 'labels' and at least one more"),
        ({"labels": 5, "rows": ["labels", "kd"]}, "no row 'kd' (rows: labels, plain, paper,"),
        ({"labels": 5, "rates": [0.0]}, "rates: numbers > 0"),
        ({"labels": 5, "pretrained_std": [0, 1, 1]}, "pretrained_std must be > 0"),
    ],
)
def test_wrong_settings_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting) as error:
        recipe(**given)
    assert message in str(error.value)


def test_it_runs_to_its_report(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn faces, a network of fresh weights: every stage, and the student's points."""
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    made = recipe(
        pretrained=f"file:{weights}", labels=12, copies=2, steps=3, choose_steps=2, folds=3,
        fitted_copies=2, rates=[1e-3, 1e-2], pretrained_side=32, pretrained_level=2,
        rows=["labels", "paper-all", "self-training"],
    )  # fmt: skip
    runs = Runs(root=tmp_path, recipe=NAME, variant="tiny-few")
    for stage in made.stages:
        run_stage(made, stage, runs)
    student = load_model(runs.folder / "paper-all-0" / "student").module
    found = student({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})["landmarks"]
    assert found.shape == (1, 136)
