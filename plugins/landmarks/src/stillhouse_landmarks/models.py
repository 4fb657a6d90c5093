"""Regressors of landmarks by name, and weights that others trained for them.

B: batch. P: points. S: side of the crop in pixels. A network's features, pooled over the image,
and one linear layer give 2P numbers: x0, y0, x1, y1, ... as fractions of the crop. They are offsets
from its middle, as the paper centres its targets, so that fresh weights start there.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.weights import import_checkpoint
from stillhouse.work import Work

TIMM = "timm:"
SMALL = re.compile(r"(cnn|res)([1-9]\d*)")
CENTRE = 0.5
# the paper's networks, and the family they belong to, as timm names them
NAMED: Mapping[str, str] = {
    "efficientnet-b3": "efficientnet_b3",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv2-050": "mobilenetv2_050",
    "mobilenetv2-035": "mobilenetv2_035",
    "mobilenetv3-large": "mobilenetv3_large_100",
    "mobilenetv3-small": "mobilenetv3_small_100",
}


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The crops a model takes: side in pixels, mean and std a channel (of values in [0, 1]), and
    how many points a face has.
    """

    size: int = 64
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    points: int = 68

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3:
            counts = f"{len(self.mean)} and {len(self.std)}"
            raise BadSetting(f"mean and std need three values, red green blue (got {counts})")
        if min(self.std) <= 0:
            raise BadSetting(f"std must be > 0 (got {min(self.std)})")
        if self.size < 1 or self.points < 1:
            raise BadSetting(f"size and points must be >= 1 (got {self.size}, {self.points})")

    def json(self) -> dict[str, Any]:  # Any: JSON values
        """As a model's keyword argument `images`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "ImageSpec":  # Any: what `json` gave
        return cls(
            size=int(record["size"]),
            mean=tuple(float(v) for v in record["mean"]),
            std=tuple(float(v) for v in record["std"]),
            points=int(record["points"]),
        )


def images_of(spec: Model) -> ImageSpec | None:
    """The crops a model takes, by its spec or by that of the network it was converted from."""
    kwargs = spec.kwargs.get("source", {}).get("kwargs", spec.kwargs)
    return ImageSpec.of(kwargs["images"]) if "images" in kwargs else None


class Regressor(nn.Module):
    """batch["images"] [B, 3, S, S], uint8 or floats in [0, 1] -> landmarks [B, 2P].

    `net` maps normalised images to features [B, width].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, width: int, images: ImageSpec, dropout: float) -> None:
        super().__init__()
        # not persistent: they are in the model's spec
        self.register_buffer("mean", torch.tensor(images.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(images.std)[:, None, None], persistent=False)
        self.net = net
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 2 * images.points)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = batch["images"]
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        x = (x - self.mean) / self.std
        # a third to a half faster on a CPU, most of all depthwise convolutions
        x = x.contiguous(memory_format=torch.channels_last)
        return {"landmarks": self.head(self.dropout(self.net(x))) + CENTRE}


def timm_regressor(*, name: str, images: Mapping[str, Any], dropout: float = 0.0) -> nn.Module:
    """timm's `name` with fresh weights and its own pool; raises UnknownName with the nearest."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0)
        raise UnknownName("timm model", name, near)
    spec = ImageSpec.of(images)
    fixed = timm.get_pretrained_cfg(name)
    # models with a fixed grid of patches must know the size when they are built
    given: dict[str, Any] = {"num_classes": 0}  # Any: arguments of create_model
    if fixed is not None and fixed.fixed_input_size:
        given["img_size"] = spec.size
    net: Any = timm.create_model(name, **given)  # Any: timm's models share no type
    width = int(net.head_hidden_size or net.num_features)
    return Regressor(net, width=width, images=spec, dropout=dropout)


def small_regressor(
    *, width: int, residual: bool, images: Mapping[str, Any], dropout: float = 0.0
) -> nn.Module:
    """Four convolutions that halve the map, to `width`, 2, 4 and 8 times as many channels; with
    `residual`, a residual block after each.

    Differs from the other networks: the last map is not pooled but given to the linear layer whole.
    On small crops and in minutes a pooled network hardly learns where things are.
    """
    spec = ImageSpec.of(images)
    inside, side, layers = 3, spec.size, list[nn.Module]()
    for outside in (width, 2 * width, 4 * width, 8 * width):
        layers += [*_conv(inside, outside, stride=2), nn.ReLU()]
        layers += [Residual(outside)] if residual else []
        inside, side = outside, (side + 1) // 2
    net = nn.Sequential(*layers, nn.Flatten())
    return Regressor(net, width=inside * side * side, images=spec, dropout=dropout)


def _conv(inside: int, outside: int, *, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outside)]


class Residual(nn.Module):
    """Two convolutions beside the identity: He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width), nn.ReLU(), *_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def model(name: str, *, images: ImageSpec, dropout: float = 0.0) -> Model:
    """The spec of a regressor: a name of `NAMED`; "timm:<name>", any backbone of timm; "cnn<width>"
    or "res<width>", small ones for small crops. Raises UnknownName with the nearest name.
    """
    if not 0 <= dropout < 1:
        raise BadSetting(f"dropout must be >= 0 and < 1 (got {dropout})")
    build: Callable[..., nn.Module] = timm_regressor
    if name.startswith(TIMM):
        kwargs: dict[str, Any] = {"name": name.removeprefix(TIMM)}  # Any: JSON values
    elif name in NAMED:
        kwargs = {"name": NAMED[name]}
    elif found := SMALL.fullmatch(name):
        build, kwargs = small_regressor, {"width": int(found[2]), "residual": found[1] == "res"}
    else:
        raise UnknownName("model", name, [*NAMED, "cnn<width>", "res<width>", f"{TIMM}<name>"])
    return Model(build=build, kwargs={**kwargs, "images": images.json(), "dropout": dropout})


@dataclass(frozen=True, kw_only=True)
class LoadCheckpoint:
    """A `convert`: the weights of the port "checkpoint" in `model`, every tensor accounted for.

    The port is a folder with model.json, which keeps its own spec and must give as many points for
    crops of the same size; or a .safetensors file or torch checkpoint, read without running code in
    it.
    """

    model: Model

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path
        out: Path,
        *,
        work: Work,
    ) -> None:
        import_checkpoint(inputs["checkpoint"], out, spec=self.model, check=self._check)

    def _check(self, source: Built) -> None:
        wanted, found = images_of(self.model), images_of(source.spec)
        if found is None or wanted is None:
            raise BadData("the given teacher is no model of landmarks; give one that is")
        if (found.size, found.points) != (wanted.size, wanted.points):
            raise BadData(
                f"the given teacher takes {found.size}-pixel crops and gives {found.points} points,"
                f" the recipe has {wanted.size} and {wanted.points}; set size and points alike"
            )
