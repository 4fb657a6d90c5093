"""Models by name: `model("resnet20", ...)`; the tests hold their sizes against the papers'."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.methods import Channels
from stillhouse_vision.models.classifier import ImageSpec
from stillhouse_vision.models.cnn import flat_cnn, small_cnn
from stillhouse_vision.models.from_timm import timm_model
from stillhouse_vision.models.from_torchvision import torchvision_model
from stillhouse_vision.models.resnet import resnet, resnet_of_blocks
from stillhouse_vision.models.shufflenet import shufflenet_v2
from stillhouse_vision.models.vgg import vgg
from stillhouse_vision.models.wide_resnet import wide_resnet

TIMM, TORCHVISION = "timm:", "torchvision:"
CIFAR = "cifar-"  # networks for images of 32 pixels, whose names others use for ImageNet's
WRN = re.compile(rf"{CIFAR}wrn-(\d+)-(\d+)")
BARE_WRN = re.compile(r"wrn-\d+-\d+")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A builder and the arguments that make it this model."""

    build: Callable[..., nn.Module]
    kwargs: Mapping[str, Any]  # Any: JSON values


def _resnet(depth: int, width: int = 16) -> Architecture:
    widths = [width, width, 2 * width, 4 * width]
    return Architecture(build=resnet, kwargs={"depth": depth, "widths": widths, "shortcut": "pad"})


def _resnet_of_four(blocks: list[int]) -> Architecture:
    """ImageNet's basic-block ResNets with a stem for 32 x 32 images, as the KD field has them."""
    kwargs = {"blocks": blocks, "widths": [64, 64, 128, 256, 512], "shortcut": "conv"}
    return Architecture(build=resnet_of_blocks, kwargs=kwargs)


def _resnet_x4(depth: int) -> Architecture:
    return Architecture(
        build=resnet, kwargs={"depth": depth, "widths": [32, 64, 128, 256], "shortcut": "conv"}
    )


def _vgg(convolutions: int) -> Architecture:
    return Architecture(
        build=vgg, kwargs={"stages": [[w] * convolutions for w in (64, 128, 256, 512, 512)]}
    )


def _wrn(depth: int, k: int) -> Architecture:
    return Architecture(build=wide_resnet, kwargs={"depth": depth, "k": k})


ARCHITECTURES: Mapping[str, Architecture] = {
    **{
        f"cnn{width}": Architecture(build=small_cnn, kwargs={"width": width})
        for width in (2, 4, 8, 16, 32)
    },
    **{
        f"flat{depth}-{width}": Architecture(
            build=flat_cnn, kwargs={"width": width, "depth": depth}
        )
        for depth in (2, 3)
        for width in (4, 8, 16, 32)
    },
    **{f"{CIFAR}resnet{depth}": _resnet(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    f"{CIFAR}resnet20x0.5": _resnet(20, 8),
    f"{CIFAR}resnet18": _resnet_of_four([2, 2, 2, 2]),
    f"{CIFAR}resnet34": _resnet_of_four([3, 4, 6, 3]),
    f"{CIFAR}resnet8x4": _resnet_x4(8),
    f"{CIFAR}resnet32x4": _resnet_x4(32),
    **{f"{CIFAR}wrn-{depth}-{k}": _wrn(depth, k) for depth in (16, 40) for k in (1, 2)},
    f"{CIFAR}vgg8": _vgg(1),
    f"{CIFAR}vgg13": _vgg(2),
    f"{CIFAR}shufflenet-v2": Architecture(
        build=shufflenet_v2, kwargs={"widths": [24, 116, 232, 464, 1024], "blocks": [4, 8, 4]}
    ),
}


def full_name(name: str) -> str:
    """The same with "cifar-" before it where it is one of those networks, as they were called."""
    known = f"{CIFAR}{name}" in ARCHITECTURES or BARE_WRN.fullmatch(name)
    return f"{CIFAR}{name}" if known else name


def model(name: str, *, classes: int, images: ImageSpec) -> Model:
    """The spec of a model by name, of any "cifar-wrn-<depth>-<k>", or of "torchvision:<name>" or
    "timm:<name>". "cifar-" may be left out.

    Raises UnknownName with the nearest name.
    """
    if images.names and len(images.names) != classes:
        raise BadSetting(f"names must be one a class: {len(images.names)} names, classes={classes}")
    name = full_name(name)
    if name.startswith(TIMM):
        found = Architecture(build=timm_model, kwargs={"name": name.removeprefix(TIMM)})
    elif name.startswith(TORCHVISION):
        bare = name.removeprefix(TORCHVISION)
        found = Architecture(build=torchvision_model, kwargs={"name": bare})
    elif wide := WRN.fullmatch(name):
        found = _wrn(int(wide[1]), int(wide[2]))
    elif name in ARCHITECTURES:
        found = ARCHITECTURES[name]
    else:
        raise UnknownName(
            "model", name, [*ARCHITECTURES, *(f"{p}<name>" for p in (TORCHVISION, TIMM))]
        )
    return Model(
        build=found.build, kwargs={**found.kwargs, "classes": classes, "images": images.json()}
    )


def output_shapes(spec: Model) -> Mapping[str, tuple[int, ...]]:
    """The shape of each output without its batch dimension, by running one blank image through
    fresh weights.
    """
    return _shapes(spec.build, json.dumps(spec.kwargs, sort_keys=True))


@functools.lru_cache(maxsize=256)  # recipes are built several times to compare their settings
def _shapes(build: Callable[..., nn.Module], kwargs: str) -> Mapping[str, tuple[int, ...]]:
    spec = Model(build=build, kwargs=json.loads(kwargs))
    images = ImageSpec.of(spec.kwargs["images"])
    # the CPU, not torch's meta device: that one imports for seconds before its first convolution
    with torch.random.fork_rng(), torch.no_grad():
        outputs: Mapping[str, Tensor] = spec.new().eval()(
            {"images": torch.zeros(1, images.channels, *[images.size] * 2)}
        )
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}


def channels(spec: Model) -> Channels:
    """What the objectives must know of a model; its embedding counts as its hint where it shows
    none.
    """
    shapes = output_shapes(spec)
    width = shapes["embedding"][0]
    hints = [shape for name, shape in shapes.items() if name.startswith("hint")] or [(width, 1, 1)]
    return Channels(
        hints=tuple(s[0] for s in hints), sizes=tuple(s[1] for s in hints), embedding=width
    )
