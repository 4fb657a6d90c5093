"""A pretrained network of timm on small images, and its head of a few labels."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from stillhouse.artifact import Built, load_model
from stillhouse.data.data import TensorData
from stillhouse.embedding import Embed
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.models import ImageSpec, channels, named_upscaled, output_shapes
from stillhouse_vision.models.upscaled import FitHead, LoadPretrained, Upscaled, fit_head

SMALL = "tf_efficientnet_lite0"
SPEC = named_upscaled(
    SMALL, classes=3, images=ImageSpec(size=16), side=32, mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of another implementation: other names, a head of 7 classes at the end."""
    torch.manual_seed(0)
    net = timm.create_model(SMALL, num_classes=7)
    state = {f"block{i}": value for i, value in enumerate(net.state_dict().values())}
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(state, file)
    return file


def loaded(source: Path, out: Path) -> Built:
    LoadPretrained(model=SPEC)({"weights": source}, out, work=Work.seeded(0))
    return load_model(out)


def upscaled(built: Built) -> Upscaled:
    assert isinstance(built.module, Upscaled)
    return built.module


def test_other_names_are_read_in_their_order_and_the_head_is_left(
    weights: Path, tmp_path: Path
) -> None:
    module = upscaled(loaded(weights, tmp_path / "out"))
    state = list(torch.load(weights, weights_only=True).values())
    own = module.inner.net.state_dict()
    assert torch.equal(next(iter(own.values())), state[0])
    assert torch.equal(list(own.values())[-3], state[-3])
    assert module.head.weight.count_nonzero() == 0


def test_timms_own_names_are_read_by_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = timm.create_model(SMALL, num_classes=5)
    state = dict(reversed(net.state_dict().items()))
    torch.save(state, tmp_path / "w.pth")
    module = upscaled(loaded(tmp_path / "w.pth", tmp_path / "out"))
    assert torch.equal(module.inner.net.conv_stem.weight, state["conv_stem.weight"])


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    short = dict(list(state.items())[:50])
    torch.save(short, tmp_path / "a.pth")
    with pytest.raises(BadData, match="50 tensors, the network has .* set pretrained_name"):
        loaded(tmp_path / "a.pth", tmp_path / "out")
    first = next(iter(state))
    torch.save({**state, first: state[first][:4]}, tmp_path / "b.pth")
    with pytest.raises(BadData, match=r"a tensor \[4, 3, 3, 3\] where the network's 'conv_stem"):
        loaded(tmp_path / "b.pth", tmp_path / "out")


def test_images_are_scaled_and_normalized_as_the_network_was_trained() -> None:
    """Mean and deviation 0.5, BatchNorm's epsilon 1e-3: with others it seems to work, badly."""
    module = upscaled(Built(spec=SPEC, module=SPEC.new())).eval()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    scaled = nn.functional.interpolate(images / 255, size=32, mode="bilinear") * 2 - 1
    with torch.no_grad():
        expected = module.inner.net.forward_features(scaled)
        outputs = module({"images": images})
        again = module({"images": images / 255})
    assert torch.allclose(outputs["embedding"], expected.mean((2, 3)), atol=1e-5)
    assert torch.allclose(outputs["embedding"], again["embedding"], atol=1e-6)


def test_outputs_are_those_of_the_plugins_models() -> None:
    shapes = output_shapes(SPEC)
    assert shapes["logits"] == (3,)
    assert shapes["embedding"] == (1280,)
    assert channels(SPEC).embedding == 1280


def test_grey_images_are_taken() -> None:
    grey = ImageSpec(size=8, mean=(0.3,), std=(0.3,))
    spec = named_upscaled(SMALL, classes=2, images=grey, side=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert output_shapes(spec)["logits"] == (2,)


def test_stored_features_stand_in_for_the_network() -> None:
    built = Built(spec=SPEC, module=SPEC.new().eval())
    data = TensorData(
        {
            "images": torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8),
            "labels": torch.arange(5) % 3,
            "id": torch.arange(5) + 7,
        }
    )
    made = Embed()({"network": built, "data": data}, work=Work.seeded(0))["embedded"]
    batch = TensorData(made).rows(torch.arange(5))
    assert batch["id"].tolist() == [7, 8, 9, 10, 11]
    assert torch.equal(batch["images"], data.rows(torch.arange(5))["images"])
    with torch.no_grad():
        whole = built.module({"images": batch["images"]})
        short = built.module(batch)
    assert torch.allclose(short["embedding"], whole["embedding"], atol=1e-5)
    assert torch.allclose(short["logits"], whole["logits"], atol=1e-5)
    with torch.no_grad():
        other = built.module({**batch, "features": torch.zeros(5, 1280)})
    assert not torch.allclose(other["logits"], whole["logits"], atol=1e-5)


@pytest.mark.slow
def test_head_solves_what_is_linear_and_keeps_the_network(weights: Path, tmp_path: Path) -> None:
    built = loaded(weights, tmp_path / "net")
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    images = torch.randint(60, (30, 3, 16, 16), dtype=torch.uint8)
    images[torch.arange(30), labels] += 180  # a channel a class
    data = TensorData({"images": images, "labels": labels})
    before = {k: v.clone() for k, v in built.module.state_dict().items()}
    FitHead()({"network": built, "data": data}, tmp_path / "out", work=Work.seeded(0))
    fitted = upscaled(load_model(tmp_path / "out"))
    after = fitted.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"inner.net.classifier.weight", "inner.net.classifier.bias"}
    with torch.no_grad():
        assert torch.equal(fitted({"images": images})["logits"].argmax(1), labels)


@pytest.mark.parametrize("classes", [2, 4])
def test_fitted_head_is_a_softmax_of_features_as_they_are(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % classes
    centres = rng.normal(size=(classes, 6))
    features = 3 + 10 * (centres[labels] + 0.7 * rng.normal(size=(400, 6)))
    weight, bias = fit_head(features[:200], labels[:200], classes=classes, seed=0)
    logits = features[200:] @ weight.T + bias
    assert weight.shape == (classes, 6)
    assert (logits.argmax(1) == labels[200:]).mean() > 0.7
    chance = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels[200:])
    )
    assert float(chance) < 0.8 * np.log(classes)


def test_a_class_without_a_label_is_refused() -> None:
    with pytest.raises(BadData, match="class 2 has no labelled image; set more labels"):
        fit_head(np.zeros((4, 2)), np.array([0, 1, 0, 1]), classes=3, seed=0)
