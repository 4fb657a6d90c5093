"""Banks, learned prompts, captions, few shots and predictions, at toy sizes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Train
from stillhouse.work import Work
from stillhouse_clip.banks import ClassBank, WithBank, ZeroShot, with_bank
from stillhouse_clip.exporting import TEXT_TOWER
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.labels import prompts_of
from stillhouse_clip.predict import predict
from stillhouse_clip.prompts import BankOfPrompts, FreshPrompts, PromptLearner, TrainedContext
from stillhouse_clip.recipes.own_teacher import FreshTowers
from stillhouse_clip.scores import FewShots, Known, Unseen
from stillhouse_clip.taught import Support, WithTeacher
from stillhouse_clip.text_side import text_side
from stillhouse_clip.towers import image_model

NAMES, IMAGES = ["disc", "ring", "cross"], ImageSpec(size=32)
DESCRIBED = ["round", "round with a hole", "two bars"]


@pytest.fixture
def classes() -> TensorData:
    known = torch.tensor([1, 1, 0])
    texts = {"plain": prompts_of(NAMES), "described": prompts_of(NAMES, DESCRIBED)}
    return TensorData({"name": NAMES, "description": DESCRIBED, "known": known, **texts})


@pytest.fixture
def teacher(classes: TensorData, tmp_path: Path) -> Built:
    fresh = FreshTowers(
        image="conv4", images=IMAGES, texts=("plain", "described"), dim=8, vocabulary=300, length=48
    )
    fresh({"classes": classes}, tmp_path / "teacher", work=Work())
    return load_model(tmp_path / "teacher")


@pytest.fixture
def images() -> TensorData:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    return TensorData({"images": pixels, "labels": labels, "captions": ["a"] * 3 + ["b"] * 3})


def bank(classes: TensorData, teacher: Built, out: Path, *, enriched: bool = False) -> Built:
    ClassBank(enriched=enriched)({"classes": classes, "teacher": teacher}, out, work=Work())
    return load_model(out)


def test_a_bank_holds_each_class_and_what_is_known(
    classes: TensorData, teacher: Built, tmp_path: Path
) -> None:
    plain = bank(classes, teacher, tmp_path / "plain").module({})
    rich = bank(classes, teacher, tmp_path / "rich", enriched=True).module({})
    assert {name: len(rows) for name, rows in plain.items()} == {"text": 2, "unseen": 1, "every": 3}
    assert torch.allclose(plain["every"].norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(plain["every"], rich["every"])
    bare = TensorData({"name": NAMES, "description": ["", "", ""], "known": torch.ones(3)})
    with pytest.raises(BadData, match="class 'disc' has no description"):
        bank(bare, teacher, tmp_path / "bare", enriched=True)


def test_a_text_bank_goes_on_behind_a_kill(
    classes: TensorData, teacher: Built, tmp_path: Path
) -> None:
    first = bank(classes, teacher, tmp_path / "whole").module({})["every"]
    work = Work(kept=tmp_path / "kept")
    for name in ("one", "two"):
        ClassBank(enriched=False)(
            {"classes": classes, "teacher": teacher}, tmp_path / name, work=work
        )
        if name == "one":  # what is kept is read, not computed: other weights change nothing
            with torch.no_grad():
                for parameter in teacher.module.parameters():
                    parameter.zero_()
    found = load_model(tmp_path / "two").module({})["every"]
    assert torch.equal(found, first)


def test_prompts_learn_their_vectors_alone(
    classes: TensorData, teacher: Built, tmp_path: Path
) -> None:
    FreshPrompts(enriched=True, contexts=3)(
        {"classes": classes, "teacher": teacher}, tmp_path / "prompts", work=Work()
    )
    built = load_model(tmp_path / "prompts")
    module = built.module.train()
    assert isinstance(module, PromptLearner)
    groups = TrainedContext()(module)
    assert [name for group in groups if group.trains for name in group.names] == ["context"]
    text = module({})["text"]
    assert text.shape == (2, 8)
    text.square().sum().backward()
    assert module.context.grad is not None
    assert module.context.grad.abs().sum() > 0
    before = module.eval()({})["every"].detach()
    with torch.no_grad():
        module.context.add_(1.0)
    assert not torch.allclose(module({})["every"], before)
    BankOfPrompts()({"prompts": built}, tmp_path / "bank", work=Work())
    rows = load_model(tmp_path / "bank").module({})["every"]
    unit = torch.nn.functional.normalize(module({})["every"].detach())
    assert torch.allclose(rows, unit, atol=1e-5)


def test_captions_and_support_by_the_teacher(teacher: Built, images: TensorData) -> None:
    make = WithTeacher(captions=True)
    found = make({"data": images, "teacher": teacher}, work=Work())["data"]
    with torch.no_grad():
        alone = teacher.module({"images": images.columns["images"]})["embedding"]
    assert torch.allclose(found["teacher"], alone, atol=1e-5)  # type: ignore[arg-type]
    captions = found["caption"]
    assert torch.equal(captions[0], captions[2])  # type: ignore[index]
    assert not torch.equal(captions[0], captions[3])  # type: ignore[index]
    support = Support(views=2)({"data": images, "teacher": teacher}, work=Work())["support"]
    assert support["labels"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]  # type: ignore[union-attr]
    assert support["embedding"].shape == (12, 8)  # type: ignore[union-attr]
    bare = TensorData({**images.columns, "captions": ["a"] * 5 + [""]})
    with pytest.raises(BadData, match="image 5 of the training data has no caption"):
        make({"data": bare, "teacher": teacher}, work=Work())


class Angle(torch.nn.Module):
    """The embedding of an image is what its first two pixels say."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"embedding": batch["images"][:, 0, 0, :2] * self.one}


def test_scores_are_of_the_right_classes() -> None:
    """Four classes, two known, at 0, 90, 180 and 270 degrees; embeddings say where they look."""
    from stillhouse_clip.banks import Bank

    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    made = Bank(names=["a", "b", "c", "d"], dim=2, known=2)
    made.rows.copy_(rows)
    model = ZeroShot(Angle(), made, 0.07)
    looks = torch.tensor([[-1.0, 0.1], [0.1, -1.0], [0.9, -0.5]])  # c, d, and d though nearest a
    pixels = torch.zeros(3, 3, 1, 2)
    pixels[:, 0, 0] = looks
    labels = torch.tensor([0, 1, 1])
    data = TensorData({"images": pixels, "labels": labels, "teacher": looks})
    found = Unseen()({"student": model}, data, work=Work())
    assert found["unseen_accuracy"] == 1
    assert found["unseen_among_all_accuracy"] == pytest.approx(0.75)
    assert (found["m_rel"], found["m_vlalign2"]) == (1, 0)
    assert found["teacher_angle"] == pytest.approx(0, abs=0.1)
    assert FewShots()({"student": model}, data, work=Work())["few_shot_accuracy"] == 1
    # two shots of each image under the other label outvote the texts
    swapped = torch.tensor([3, 2, 2]).repeat(2)
    support = TensorData({"embedding": looks.repeat(2, 1), "labels": swapped})
    turned = FewShots(support="support")
    work = Work(data={"support": support})
    assert turned({"student": model}, data, work=work)["few_shot_accuracy"] == 0
    work = Work(
        data={"validation": TensorData({"images": -pixels, "labels": torch.tensor([0, 1, 0])})}
    )
    assert Known()({"student": model}, data, work=work)["known_accuracy"] == pytest.approx(0.75)


def test_labels_are_predicted_without_training(
    classes: TensorData, teacher: Built, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    spec = image_model("conv4", dim=8, images=IMAGES)
    text = tmp_path / TEXT_TOWER
    save_model(text, text_side(teacher))
    student = Built(spec=spec, module=spec.new().eval(), assets={TEXT_TOWER: text})
    WithBank()(
        {"student": student, "bank": bank(classes, teacher, tmp_path / "bank")},
        tmp_path / "student",
        work=Work(),
    )
    built = load_model(tmp_path / "student")
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "red.png")
    (row,) = predict(built, [tmp_path / "red.png"])
    assert {row["class"], row["class 2"], row["class 3"]} == set(NAMES)
    (row,) = predict(built, [tmp_path / "red.png"], labels=("a wheel", " a star "), top=1)
    assert row["class"] in ("a wheel", "a star")
    assert "class 2" not in row
    again = with_bank(built, bank(classes, teacher, tmp_path / "rich", enriched=True))
    assert isinstance(again.module, ZeroShot)
    assert torch.equal(next(again.module.tower.parameters()), next(built.module.parameters()))
    with pytest.raises(BadSetting, match="name each class once"):
        predict(built, [tmp_path / "red.png"], labels=("a", "a"))
    with pytest.raises(BadSetting, match="--top 0"):
        predict(built, [tmp_path / "red.png"], top=0)
    alone = Built(spec=built.spec, module=built.module)
    with pytest.raises(BadData, match="no text tower goes with this model"):
        predict(alone, [tmp_path / "red.png"], labels=("a", "b"))


def test_rows_add_up_the_losses() -> None:
    given = {"rows": ["cls", "mse", "contrastive", "proximity", "imitation", "captions", "prompts"]}
    made = make_recipe("clip/vlm_ood", make_settings("clip/vlm_ood", "tiny", given))
    losses = {
        stage.name: tuple(stage.objective.losses)  # type: ignore[attr-defined]
        for stage in made.stages
        if isinstance(stage, Train) and "plain-0" in stage.name and "tuned" not in stage.name
    }
    assert losses == {
        "cls-plain-0": ("cls",),
        "mse-plain-0": ("cls", "mse"),
        "contrastive-plain-0": ("cls", "mse", "cst"),
        "proximity-plain-0": ("cls", "mse", "cst", "vlprox"),
        "captions-plain-0": ("cls", "cap"),
        "prompts-plain-0": ("cls",),
    }


def test_descriptions_may_be_of_some_rows_alone() -> None:
    given = {"rows": ["cls", "mse", "proximity"], "described_rows": ["cls"], "shot_rows": ["mse"]}
    made = make_recipe("clip/vlm_ood", make_settings("clip/vlm_ood", "tiny", given))
    trained = {stage.name for stage in made.stages if isinstance(stage, Train)}
    names = ("cls-plain-0", "mse-plain-0", "proximity-plain-0", "cls-described-0")
    assert trained >= {*names, "mse-plain-0-tuned"}
    assert not trained & {"mse-described-0", "proximity-described-0", "mse-described-0-tuned"}
    assert made.stage("export").inputs["student"] == "cls-described-0-towers.model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ["mse"]}, "name cls among them"),
        ({"rows": ["cls", "cls"]}, "name each once"),
        ({"shot_rows": ["mse"], "rows": ["cls"]}, "shot_rows: 'mse' is none of the rows cls"),
        ({"described_rows": ["captions"]}, "described_rows: 'captions' is none of cls"),
        ({"image_weights": "file:a"}, "image_weights: an image network alone is no teacher"),
        ({"known": 1.0}, "known"),
        ({"student": "resnet18"}, "expected conv<width>, timm:<name>"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        make_recipe("clip/vlm_ood", make_settings("clip/vlm_ood", "tiny", settings))
