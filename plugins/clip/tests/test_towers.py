"""Towers: what they map to what, texts as tokens, and what pairs teach them."""

from pathlib import Path

import pytest
import torch

from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.tokens import tokenized, trained_tokenizer
from stillhouse_clip.towers import MOST, TextTower, image_model, two_towers

IMAGES = ImageSpec(size=32)


def towers(**more: int) -> torch.nn.Module:
    kwargs = {"vocabulary": 300, "length": 12, "width": 16, "layers": 1, "heads": 2} | more
    return two_towers(image="conv4", images=IMAGES.json(), dim=8, **kwargs)


def test_what_runs_follows_from_the_columns() -> None:
    module = towers().eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens = torch.randint(1, 300, (3, 5))
    seen, read = module({"images": images}), module({"tokens": tokens})
    assert seen["embedding"].shape == read["text"].shape == (3, 8)
    assert seen["map"].shape == (3, 4, 32)
    assert read["text_map"].shape == (3, 5, 16)
    assert "text" not in seen
    assert "embedding" not in read
    both = module({"images": images, "tokens": tokens})
    assert torch.equal(both["text"], read["text"])
    assert float(both["scale"].detach()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_scale_stays_below_its_bound() -> None:
    module = towers()
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    assert float(module({})["scale"].detach()) == MOST


def test_padding_changes_no_text() -> None:
    tower = TextTower(vocabulary=50, length=9, dim=4, width=8, layers=2, heads=2).eval()
    tokens = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    plain = tower({"tokens": tokens})["text"]
    assert torch.allclose(tower({"tokens": padded})["text"], plain, atol=1e-6)
    assert torch.allclose(tower({"tokens": padded, "mask": mask})["text"], plain, atol=1e-6)
    assert not torch.allclose(tower({"tokens": tokens.flip(1)})["text"], plain, atol=1e-6)


def test_images_of_another_size_are_scaled_and_floats_taken() -> None:
    module = towers().eval()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    small = module({"images": images})["embedding"]
    assert small.shape == (2, 8)
    assert torch.allclose(module({"images": images / 255})["embedding"], small, atol=1e-5)


@pytest.mark.parametrize("name", ["conv4", "timm:resnet10t", "torchvision:resnet18"])
def test_students_by_name(name: str) -> None:
    module = image_model(name, dim=6, images=IMAGES).new().eval()
    assert module({"images": torch.rand(2, 3, 32, 32)})["embedding"].shape == (2, 6)


def test_an_unknown_student_is_one_line() -> None:
    with pytest.raises(BadSetting, match=r"model 'resnet18': expected conv<width>, timm:<name>"):
        image_model("resnet18", dim=4, images=IMAGES)
    with pytest.raises(UnknownName, match=r"unknown torchvision model 'resnet19'. Did you mean"):
        image_model("torchvision:resnet19", dim=4, images=IMAGES)


def test_a_tokenizer_writes_any_text_and_refuses_what_is_too_long(tmp_path: Path) -> None:
    made = trained_tokenizer(["a photo of a red disc", "a photo of kugape"], 300)
    made.save(str(tmp_path / "tokenizer.json"))
    texts = ["A photo of a RED disc", "übermäßig 红色"]
    found = tokenized(tmp_path / "tokenizer.json", texts, length=40)
    assert found["mask"].sum(1).tolist() == [(found["tokens"][i] != 0).sum() for i in (0, 1)]
    assert made.decode(found["tokens"][1].tolist()).strip() == "übermäßig 红色"
    short = tokenized(tmp_path / "tokenizer.json", texts[:1], length=4, truncate=True)["tokens"]
    assert short.shape == (1, 4)
    assert short[0, -1] == made.token_to_id("[EOS]")
    with pytest.raises(
        BadData, match=r"'A photo of a RED disc' has \d+ tokens, more than the 4 of"
    ):
        tokenized(tmp_path / "tokenizer.json", texts, length=4)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadData, match="not a tokenizer.json"):
        tokenized(tmp_path / "broken.json", texts, length=4)
