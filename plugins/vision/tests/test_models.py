import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse_vision.models import ARCHITECTURES, ImageSpec, channels, model, output_shapes
from stillhouse_vision.models.resnet import PadShortcut
from stillhouse_vision.models.shufflenet import shuffled

IMAGES = ImageSpec()
GREY = ImageSpec(size=8, mean=(0.5,), std=(0.25,))
SLOW = ("cifar-resnet110", "cifar-resnet32x4", "cifar-resnet34")


# millions of parameters as printed: He et al. 2016 table 6 (10 classes), the others at 100 classes
@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("resnet20", 10, "0.27"),
        ("resnet32", 10, "0.46"),
        ("resnet44", 10, "0.66"),
        ("resnet56", 10, "0.85"),
        ("resnet110", 10, "1.73"),
        ("resnet20x0.5", 10, "0.07"),
        ("resnet18", 10, "11.17"),
        ("resnet34", 10, "21.28"),
        ("resnet8x4", 100, "1.23"),
        ("resnet32x4", 100, "7.43"),
        ("wrn-16-1", 100, "0.18"),
        ("wrn-16-2", 100, "0.70"),
        ("wrn-40-1", 100, "0.57"),
        ("wrn-40-2", 100, "2.26"),
        ("wrn-28-10", 100, "36.54"),
        ("vgg8", 100, "3.97"),
        ("vgg13", 100, "9.46"),
        ("shufflenet-v2", 100, "1.36"),
    ],
)
def test_parameters_are_those_of_the_papers(name: str, classes: int, millions: str) -> None:
    with torch.device("meta"):
        module = model(name, classes=classes, images=IMAGES).new()
    assert f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}" == millions


def outputs_of(name: str, images: ImageSpec = IMAGES) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = model(name, classes=7, images=images).new().eval()
    noise = torch.rand(2, images.channels, images.size, images.size)
    with torch.no_grad():
        return module({"images": noise})


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in SLOW])
def test_hints_are_their_preacts_after_the_relu(name: str) -> None:
    outputs = outputs_of(name)
    hints = [n for n in outputs if n.startswith("hint")]
    counts = {"cifar-vgg": 5, "cifar-resnet18": 4, "flat2": 2}
    assert len(hints) == next((n for start, n in counts.items() if name.startswith(start)), 3)
    for hint in hints:
        preact = outputs[hint.replace("hint", "preact")]
        assert torch.equal(F.relu(preact), outputs[hint])
        assert bool((preact < 0).any())
    assert outputs["logits"].shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-1", "vgg8", "cnn4"])
def test_embedding_is_the_mean_of_the_last_hint(name: str) -> None:
    outputs = outputs_of(name)
    last = max(n for n in outputs if n.startswith("hint"))
    torch.testing.assert_close(outputs["embedding"], outputs[last].mean((2, 3)))


@pytest.mark.parametrize(("name", "places"), [("flat2-4", 16 * 16 * 8), ("flat3-8", 8 * 8 * 32)])
def test_embedding_of_a_flat_network_is_its_last_map(name: str, places: int) -> None:
    outputs = outputs_of(name)
    last = max(n for n in outputs if n.startswith("hint"))
    assert torch.equal(outputs["embedding"], outputs[last].flatten(1))
    assert outputs["embedding"].shape == (2, places)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet20", (32, 16, 8)),
        ("wrn-16-2", (32, 16, 8)),
        ("vgg8", (32, 16, 8, 4, 4)),
        ("shufflenet-v2", (16, 8, 4)),
    ],
)
def test_stages_have_the_sizes_of_the_field(name: str, sizes: tuple[int, ...]) -> None:
    assert channels(model(name, classes=10, images=IMAGES)).sizes == sizes


def test_channels_of_a_wide_resnet() -> None:
    found = channels(model("wrn-16-2", classes=10, images=IMAGES))
    assert (found.hints, found.embedding) == ((32, 64, 128), 128)


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-1", "shufflenet-v2", "vgg8", "cnn2"])
def test_every_parameter_has_a_gradient_from_the_logits(name: str) -> None:
    module = model(name, classes=3, images=IMAGES).new()
    module({"images": torch.rand(4, 3, 32, 32)})["logits"].square().sum().backward()
    unused = [n for n, p in module.named_parameters() if p.grad is None]
    # a WRN's last BatchNorm of a block is the next block's first: all are on the way
    assert unused == []


def test_pad_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    y = PadShortcut(stride=2, extra=2)(x)
    assert y[0].tolist() == [[[0, 0], [0, 0]], [[0, 2], [8, 10]], [[0, 0], [0, 0]]]


def test_shuffle_takes_the_halves_in_turn() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffled(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_bytes_and_fractions_are_the_same_image() -> None:
    module = model("cnn4", classes=3, images=GREY).new().eval()
    stored = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    as_bytes = module({"images": stored})["logits"]
    assert torch.equal(as_bytes, module({"images": stored.float() / 255})["logits"])


def test_normalisation_by_hand_and_not_among_the_weights() -> None:
    module = model("cnn2", classes=3, images=GREY).new()
    x = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert module.get_submodule("normalise")(x).item() == pytest.approx((1 - 0.5) / 0.25)
    assert not any("mean" in name and "running" not in name for name in module.state_dict())


def test_models_are_stored_and_opened_with_their_spec(tmp_path) -> None:
    spec = model("shufflenet-v2", classes=4, images=IMAGES)
    built = Built(spec=spec, module=spec.new().eval())
    opened = load_model(save_model(tmp_path / "m", built).path)
    assert opened.spec == spec
    x = {"images": torch.rand(1, 3, 32, 32)}
    assert torch.equal(opened.module(x)["logits"], built.module(x)["logits"])


def test_timm_models_by_name_have_the_same_outputs() -> None:
    spec = model("timm:resnet10t", classes=5, images=IMAGES)
    shapes = output_shapes(spec)
    assert shapes["logits"] == (5,)
    assert shapes["embedding"] == (512,)
    assert [n for n in shapes if n.startswith("hint")] == [f"hint{i}" for i in range(1, 6)]
    assert channels(spec).hints[-1] == 512


def test_timm_transformers_take_the_size_of_the_images() -> None:
    images = ImageSpec(size=32, mean=(0.5,), std=(0.5,))
    shapes = output_shapes(model("timm:vit_tiny_patch16_224", classes=5, images=images))
    assert shapes["hint1"] == (192, 2, 2)


def test_unknown_names_tell_the_nearest() -> None:
    with pytest.raises(
        UnknownName, match=r"unknown model 'resnet-20'. Did you mean 'cifar-resnet20'\?"
    ):
        model("resnet-20", classes=10, images=IMAGES)
    with pytest.raises(UnknownName, match=r"unknown timm model 'resnet18x'. Did you mean"):
        model("timm:resnet18x", classes=10, images=IMAGES).new()


@pytest.mark.parametrize(
    ("name", "message"),
    [("wrn-15-2", "depth 6n \\+ 4"), ("wrn-16-0", "k >= 1")],
)
def test_impossible_depths_are_refused(name: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        model(name, classes=10, images=IMAGES).new()


def test_bad_image_specs_are_refused() -> None:
    with pytest.raises(BadSetting, match=r"one value a channel each \(got 2 and 1 values\)"):
        ImageSpec(mean=(0.1, 0.2), std=(0.1,))
    with pytest.raises(BadSetting, match=r"std must be > 0 \(got 0.0\)"):
        ImageSpec(mean=(0.1,), std=(0.0,))
    with pytest.raises(BadSetting, match="1 names, classes=2"):
        model("cnn2", classes=2, images=ImageSpec(names=("a",)))


def test_building_a_model_twice_from_one_seed_gives_the_same_weights() -> None:
    spec = model("wrn-16-1", classes=3, images=IMAGES)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(spec.new().state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
