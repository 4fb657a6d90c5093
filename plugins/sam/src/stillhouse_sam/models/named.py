"""SAMs by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.artifact import Model, recorded
from stillhouse.errors import BadSetting, UnknownName
from stillhouse_sam.models.encoders import (
    TINY_VIT,
    cnn_encoder,
    timm_encoder,
    tiny_vit_encoder,
    vit_encoder,
)
from stillhouse_sam.models.network import mask_decoder, network, prompt_encoder

TIMM = "timm:"
VIT = re.compile(r"sam-([1-9]\d*)x([1-9]\d*)")
CNN = re.compile(r"cnn([1-9]\d*)")
HEAD = 32  # channels an attention head of a small ViT
# segment-anything's: width, depth, heads, blocks that attend everywhere
META: Mapping[str, tuple[int, int, int, tuple[int, ...]]] = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
META_WINDOW = 14


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the parts of a SAM have in common, by default as Meta's: side of the frame, side and
    channels of the embedding; heads and hidden width of the decoder's transformer.
    """

    size: int = 1024
    grid: int = 64
    channels: int = 256
    heads: int = 8
    mlp: int = 2048

    def __post_init__(self) -> None:
        if min(self.size, self.grid, self.channels, self.heads, self.mlp) < 1:
            raise BadSetting(f"size, grid, channels, heads and mlp must be >= 1 (got {self})")
        if self.size % self.grid:
            raise BadSetting(f"size must be a multiple of grid (got {self.size}, {self.grid})")


META_SHAPE = Shape()


def encoder_named(name: str, *, shape: Shape = META_SHAPE) -> Model:
    """The spec of an image encoder: "vit_b", "vit_l", "vit_h", "sam-<width>x<depth>" (a small SAM
    ViT without windows), "tiny_vit_5m_224", "timm:<name>" or "cnn<width>".

    Raises UnknownName with the nearest name.
    """
    size, grid, channels = shape.size, shape.grid, shape.channels
    common = {"size": size, "grid": grid, "channels": channels}
    if name in META:
        return _meta(name, shape)
    if name == TINY_VIT:
        return Model(build=tiny_vit_encoder, kwargs=common)
    if name.startswith(TIMM):
        return Model(build=timm_encoder, kwargs={"name": name.removeprefix(TIMM), **common})
    if found := CNN.fullmatch(name):
        return Model(build=cnn_encoder, kwargs={"width": int(found[1]), **common})
    if found := VIT.fullmatch(name):
        width, depth = int(found[1]), int(found[2])
        kwargs = {"size": size, "patch": size // grid, "width": width, "depth": depth}
        kwargs |= {"heads": max(1, width // HEAD), "channels": channels}
        return Model(build=vit_encoder, kwargs=kwargs)
    valid = [*META, TINY_VIT, "sam-<width>x<depth>", "cnn<width>", f"{TIMM}<name>"]
    raise UnknownName("model", name, valid)


def _meta(name: str, shape: Shape) -> Model:
    if shape != META_SHAPE:
        numbers = ("size", "grid", "channels", "heads", "mlp")
        lines = " ".join(f"--set {n}={getattr(META_SHAPE, n)}" for n in numbers)
        raise BadSetting(f"{name} is Meta's, of 1024 pixels (got {shape}); run with {lines}")
    width, depth, heads, everywhere = META[name]
    kwargs = {"size": shape.size, "patch": shape.size // shape.grid, "channels": shape.channels}
    kwargs |= {"width": width, "depth": depth, "heads": heads, "window": META_WINDOW}
    return Model(build=vit_encoder, kwargs={**kwargs, "everywhere": list(everywhere)})


def prompts_named(*, shape: Shape = META_SHAPE) -> Model:
    """The spec of the prompt encoder."""
    kwargs = {"size": shape.size, "grid": shape.grid, "channels": shape.channels}
    return Model(build=prompt_encoder, kwargs=kwargs)


def decoder_named(*, shape: Shape = META_SHAPE) -> Model:
    """The spec of the mask decoder."""
    kwargs = {"channels": shape.channels, "heads": shape.heads, "mlp": shape.mlp}
    return Model(build=mask_decoder, kwargs=kwargs)


def named(name: str, *, shape: Shape = META_SHAPE) -> Model:
    """The spec of a whole SAM with the encoder `name` (see `encoder_named`)."""
    return joined(
        encoder_named(name, shape=shape), prompts_named(shape=shape), decoder_named(shape=shape)
    )


def joined(encoder: Model, prompts: Model, decoder: Model) -> Model:
    """The spec of the SAM that has these parts."""
    parts = {"encoder": encoder, "prompts": prompts, "decoder": decoder}
    return Model(build=network, kwargs={part: recorded(spec) for part, spec in parts.items()})
