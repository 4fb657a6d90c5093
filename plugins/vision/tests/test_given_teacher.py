"""A teacher that others trained: its classes, their order, and what does not fit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from stillhouse.artifact import Built, Model, load_model
from stillhouse.class_order import class_names
from stillhouse.data import TensorData
from stillhouse.errors import BadData, UnknownName
from stillhouse.work import Work
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, channels, model, output_shapes
from stillhouse_vision.samples import digits

NAMES = tuple(f"digit {number}" for number in range(10))
IMAGES = ImageSpec(size=8, mean=(0.3,), std=(0.37,), names=NAMES)
SPEC = model("cnn8", classes=10, images=IMAGES)
COLOUR = ImageSpec(size=32)


@pytest.fixture(scope="module")
def data() -> TensorData:
    arrays = digits()
    return TensorData(
        {
            "images": torch.from_numpy(arrays["train_images"]),
            "labels": torch.from_numpy(arrays["train_labels"]),
        }
    )


@pytest.fixture(scope="module")
def state(data: TensorData) -> dict[str, torch.Tensor]:
    """Weights that know the digits."""
    torch.manual_seed(0)
    module = SPEC.new()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    batch = data.rows(torch.arange(len(data)))
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(module(batch)["logits"], batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.clone() for name, value in module.state_dict().items()}


def reordered(state: dict[str, torch.Tensor], order: Sequence[int]) -> dict[str, torch.Tensor]:
    head = {name: value[list(order)] for name, value in state.items() if name.startswith("head.")}
    return {**state, **head}


def load(source: object, data: TensorData | None, out: Path, spec: Model = SPEC) -> Built:
    inputs = {"checkpoint": source} | ({} if data is None else {"data": data})
    LoadCheckpoint(model=spec)(inputs, out, work=Work.seeded(0))
    return load_model(out)


def saved(content: object, file: Path) -> Path:
    torch.save(content, file)
    return file


def test_a_teacher_of_the_runs_classes_is_taken(
    state: dict[str, torch.Tensor], data: TensorData, tmp_path: Path
) -> None:
    file = saved({"state_dict": state, "classes": list(NAMES)}, tmp_path / "a.pth")
    built = load(file, data, tmp_path / "out")
    assert torch.equal(built.module.state_dict()["head.bias"], state["head.bias"])


@pytest.mark.parametrize(
    "entry",
    [
        {"class_to_idx": {name: 9 - number for number, name in enumerate(NAMES)}},
        {"classes": list(reversed(NAMES))},
        {"meta": {"CLASSES": tuple(reversed(NAMES))}},
    ],
)
def test_names_in_another_order_are_refused_with_both(
    entry: dict[str, Any], state: dict[str, torch.Tensor], data: TensorData, tmp_path: Path
) -> None:
    file = saved({"state_dict": state, **entry}, tmp_path / "a.pth")
    with pytest.raises(
        BadData,
        match=r"classes are in another order: its digit 9, .*digit 0; the run's digit 0, .*"
        "check_teacher=false",
    ):
        load(file, data, tmp_path / "out")
    load(file, None, tmp_path / "out")


def test_names_of_a_model_folder_are_compared(data: TensorData, tmp_path: Path) -> None:
    images = ImageSpec(size=8, mean=(0.3,), std=(0.37,), names=tuple(reversed(NAMES)))
    spec = model("cnn8", classes=10, images=images)
    with pytest.raises(BadData, match="in another order: its digit 9"):
        load(Built(spec=spec, module=spec.new()), data, tmp_path / "out")


def test_names_in_safetensors_and_in_a_hub_folder(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, str(tmp_path / "a.safetensors"), {"names": json.dumps(["b", "a"])})
    assert class_names(tmp_path / "a.safetensors") == ("b", "a")
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(state, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"id2label": {"1": "a", "0": "b"}}))
    assert class_names(folder) == ("b", "a")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert class_names(folder) == ()


@pytest.mark.parametrize("moved", [(9, 8, 7, 6, 5, 4, 3, 2, 1, 0), (0, 1, 2, 3, 4, 5, 6, 8, 7, 9)])
def test_an_order_that_no_name_tells_is_found_on_the_training_images(
    moved: tuple[int, ...], state: dict[str, torch.Tensor], data: TensorData, tmp_path: Path
) -> None:
    file = saved(reordered(state, moved), tmp_path / "a.pth")
    first = next(n for n, label in enumerate(moved) if n != label)
    told = f"were its classes in another order: its output {first} is 'digit {moved[first]}'"
    with pytest.raises(BadData, match=told):
        load(file, data, tmp_path / "out")


def test_a_teacher_near_chance_is_refused_with_the_likely_causes(
    data: TensorData, tmp_path: Path
) -> None:
    state = SPEC.new().state_dict()
    file = saved({**state, "head.weight": 0 * state["head.weight"]}, tmp_path / "a.pth")
    with pytest.raises(BadData) as error:
        load(file, data, tmp_path / "out")
    text = str(error.value)
    assert "of 400 training samples, which is near chance (10.0%)" in text
    assert "another order than digit 0, digit 1" in text
    assert "mean=0.3 std=0.37 size=8" in text
    assert "check_teacher=false" in text


def test_a_weak_teacher_is_no_teacher_of_another_order(
    state: dict[str, torch.Tensor], data: TensorData, tmp_path: Path
) -> None:
    """Right in half of the cases, and for the rest at random: nothing to refuse."""
    torch.manual_seed(1)
    noisy = {k: v + 0.6 * v.std() * torch.randn_like(v) if v.is_floating_point() and v.ndim == 4
             else v for k, v in state.items()}  # fmt: skip
    load(saved(noisy, tmp_path / "a.pth"), data, tmp_path / "out")


def test_other_classes_and_channels_are_said(tmp_path: Path) -> None:
    five = model("cnn8", classes=5, images=ImageSpec(size=8, mean=(0.3,), std=(0.37,)))
    file = saved(five.new().state_dict(), tmp_path / "a.pth")
    with pytest.raises(BadData, match=r"It has 5 classes, the run has 10 \(digit 0, digit 1"):
        load(file, None, tmp_path / "out")
    colour = model("cnn8", classes=10, images=ImageSpec(size=8))
    file = saved(colour.new().state_dict(), tmp_path / "b.pth")
    with pytest.raises(BadData, match=r"takes images of 3 channel\(s\), mean and std have 1"):
        load(file, None, tmp_path / "out")


@pytest.mark.slow
def test_a_checkpoint_says_whose_network_it_is(tmp_path: Path) -> None:
    """torchvision's ResNet-18 has the names of ours for CIFAR and another first layer."""
    ours = model("cifar-resnet18", classes=10, images=COLOUR)
    for net, name in (
        (models.resnet18(num_classes=10), "torchvision:resnet18"),
        (timm.create_model("resnet10t", num_classes=10), "timm:resnet10t"),
        (model("resnet20", classes=10, images=COLOUR).new(), "cifar-resnet20"),
    ):
        file = saved(net.state_dict(), tmp_path / f"{name.rpartition(':')[2]}.pth")
        with pytest.raises(BadData, match=f"Its tensors are those of {name}: set teacher_model="):
            load(file, None, tmp_path / "out", ours)


def test_torchvisions_networks_by_name(tmp_path: Path) -> None:
    spec = model("torchvision:resnet18", classes=4, images=COLOUR)
    shapes = output_shapes(spec)
    assert shapes["logits"] == (4,)
    assert shapes["embedding"] == (512,)
    assert channels(spec).hints[-1] == 512
    net = models.resnet18(num_classes=4).eval()
    built = load(saved(net.state_dict(), tmp_path / "a.pth"), None, tmp_path / "out", spec)
    images = torch.rand(2, 3, 32, 32)
    outputs = built.module({"images": images})
    mean, std = (torch.tensor(v)[:, None, None] for v in (COLOUR.mean, COLOUR.std))
    assert torch.allclose(outputs["logits"], net((images - mean) / std), atol=1e-5)
    assert torch.allclose(built.module.get_submodule("net.fc")(outputs["embedding"]),
                          outputs["logits"], atol=1e-5)  # fmt: skip


def test_torchvisions_networks_take_grey_images_and_unknown_names_are_refused() -> None:
    grey = ImageSpec(size=32, mean=(0.5,), std=(0.25,))
    spec = model("torchvision:mobilenet_v3_small", classes=3, images=grey)
    assert output_shapes(spec)["logits"] == (3,)
    with pytest.raises(UnknownName, match="Did you mean 'resnet18'"):
        model("torchvision:resnet-18", classes=3, images=COLOUR).new()
