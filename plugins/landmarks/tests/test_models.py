from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator

from stillhouse.artifact import Built, Model, load_model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.work import Work
from stillhouse_landmarks.models import ImageSpec, LoadCheckpoint, images_of, model

SMALL = ImageSpec(size=32, points=5)
SPEC = model("cnn2", images=SMALL)


def images(size: int = 32, rows: int = 2) -> torch.Tensor:
    rng = Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize(
    "name", ["cnn4", "res4", "mobilenetv2-035", "mobilenetv3-small", "timm:resnet10t"]
)
def test_any_network_gives_two_numbers_a_point(name: str) -> None:
    module = model(name, images=SMALL).new().eval()
    with torch.no_grad():
        found = module({"images": images()})
    assert found["landmarks"].shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    # timm's own counts without their last layer: 10,696,232 and 2,223,872; then features * 136 + 136
    [("efficientnet-b3", 10_696_232 + 1537 * 136), ("mobilenetv2", 2_223_872 + 1281 * 136)],
)
def test_the_papers_networks_have_their_size(name: str, parameters: int) -> None:
    module = model(name, images=ImageSpec(size=224, points=68), dropout=0.5).new()
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_a_network_without_features_says_the_middle() -> None:
    module = SPEC.new().eval()
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    with torch.no_grad():
        assert torch.equal(module({"images": images()})["landmarks"], torch.full((2, 10), 0.5))


def test_bytes_and_fractions_are_the_same_image() -> None:
    module = SPEC.new().eval()
    with torch.no_grad():
        one, two = (module({"images": p})["landmarks"] for p in (images(), images() / 255))
    torch.testing.assert_close(one, two)


def test_images_are_normalised_by_the_spec() -> None:
    images = ImageSpec(size=32, points=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    module = model("cnn2", images=images).new()
    seen: list[torch.Tensor] = []
    module.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module({"images": torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)})
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.8, 3.2, 3.5])


def test_dropout_is_of_the_features_and_off_when_evaluated() -> None:
    module = model("cnn4", images=SMALL, dropout=0.9).new()
    assert not torch.equal(*(module.train()({"images": images()})["landmarks"] for _ in range(2)))
    assert torch.equal(*(module.eval()({"images": images()})["landmarks"] for _ in range(2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv2-05", r"unknown model 'mobilenetv2-05'. Did you mean 'mobilenetv2-050'\?"),
        ("cnn0", "unknown model 'cnn0'"),
        ("timm:resnet10", "unknown timm model 'resnet10'. Did you mean 'resnet10t'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        model(name, images=SMALL).new()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5,)}, "mean and std need three values, red green blue"),
        ({"std": (0.1, 0.0, 0.1)}, r"std must be > 0 \(got 0.0\)"),
        ({"points": 0}, r"size and points must be >= 1 \(got 64, 0\)"),
    ],
)
def test_images_no_model_takes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ImageSpec(**change)
    with pytest.raises(BadSetting, match=r"dropout must be >= 0 and < 1 \(got 1\)"):
        model("cnn2", images=SMALL, dropout=1)


def test_the_images_of_a_converted_model_are_those_of_its_source() -> None:
    kwargs = {"source": {"build": "x:y", "kwargs": dict(SPEC.kwargs)}, "size": 9}
    converted = Model(build=torch.nn.Linear, kwargs=kwargs)
    assert images_of(converted) == images_of(SPEC) == SMALL
    assert images_of(Model(build=torch.nn.Linear)) is None


def convert(source: object, out: Path) -> Built:
    LoadCheckpoint(model=SPEC)({"checkpoint": source}, out, work=Work())
    return load_model(out)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return dict(SPEC.new().state_dict())


def test_checkpoints_and_folders_are_loaded_whole(tmp_path: Path) -> None:
    wanted = state()
    save_file(wanted, tmp_path / "a.safetensors")
    wrapped = {f"module.{name}": value for name, value in wanted.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "b.pth")
    for number, source in enumerate((tmp_path / "a.safetensors", tmp_path / "b.pth")):
        found = convert(source, tmp_path / f"out{number}").module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    again = convert(load_model(tmp_path / "out0"), tmp_path / "again")
    assert torch.equal(again.module.state_dict()["head.bias"], wanted["head.bias"])


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    changes = {
        "it lacks 'head.bias'": {k: v for k, v in state().items() if k != "head.bias"},
        "it has 'x' and 0 more": state() | {"x": torch.zeros(1)},
        r"'head.bias' is \[3\]": state() | {"head.bias": torch.zeros(3)},
    }
    for number, (message, content) in enumerate(changes.items()):
        save_file(content, file)
        with pytest.raises(BadData, match=f"a.safetensors: does not fit the model: {message}"):
            convert(file, tmp_path / str(number))
    (tmp_path / "b.pth").write_bytes(b"nothing")
    with pytest.raises(BadData, match=r"b.pth: not a checkpoint that can be read safely"):
        convert(tmp_path / "b.pth", tmp_path / "x")
    with pytest.raises(BadData, match=r"expected model.json or one checkpoint file \(found a"):
        convert(tmp_path, tmp_path / "y")


def test_a_teacher_of_other_faces_is_refused(tmp_path: Path) -> None:
    other = model("cnn2", images=ImageSpec(size=32, points=7))
    with pytest.raises(BadData, match=r"gives 7 points, the recipe has 32 and 5"):
        convert(Built(spec=other, module=other.new()), tmp_path / "a")
    with pytest.raises(BadData, match="is no model of landmarks"):
        convert(
            Built(spec=Model(build=torch.nn.Linear), module=torch.nn.Linear(1, 1)), tmp_path / "b"
        )
