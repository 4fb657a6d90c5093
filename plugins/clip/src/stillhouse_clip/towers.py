"""Two towers into one space, and small ones to train here.

B: batch. D: width of the space. L: tokens of a text. N: places of a map. A tower of two maps what a
batch has: "images" to "embedding" [B, D], "tokens" (with "mask") to "text" [B, D]; none is of unit
length. "scale" [] is the learned factor of cosines in training, at most `MOST`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse_clip.images import ImageSpec, Normalized

MOST = 100.0  # of the factor of cosines, as CLIP's (arXiv 2103.00020)
FIRST = 1 / 0.07  # the factor that training begins with
CONV = re.compile(r"conv([1-9]\d*)")
PAD = 0  # token


class ConvNet(nn.Module):
    """Images [B, 3, S, S] to a map [B, 8 * width, S / stride, S / stride]: four residual stages of
    `width` times 1, 2, 4 and 8 channels.
    """

    def __init__(self, width: int, *, size: int) -> None:
        super().__init__()
        first = 2 if size >= 32 else 1
        # fewer channels than a vector holds, in channels_last: oneDNN's backward corrupts the heap
        self.plain = width % 8 > 0
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, first, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        ends = [width * 2**stage for stage in range(4)]
        begins = [width, *ends[:-1]]
        self.stages = nn.Sequential(
            *(
                _Block(a, b, 1 if n == 0 else 2)
                for n, (a, b) in enumerate(zip(begins, ends, strict=True))
            )
        )
        self.width = ends[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images.contiguous() if self.plain else images))


class _Block(nn.Module):
    """A residual block of two 3 x 3 convolutions (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Sequential()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.skip(x))


class ImageTower(nn.Module):
    """batch["images"] [B, 3, H, W] -> embedding [B, D], and the map before the pool, map [B, N, C],
    where the network `net` gives one.
    """

    def __init__(self, net: nn.Module, head: nn.Module, *, images: ImageSpec) -> None:
        super().__init__()
        self.normalized, self.net, self.head = Normalized(images), net, head

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self.net(self.normalized(batch["images"]))
        if found.ndim == 4:
            found = found.flatten(2).mT
            return {"embedding": self.head(found.mean(1)), "map": found}
        return {"embedding": self.head(found)}


def image_tower(*, name: str, dim: int, images: Mapping[str, Any]) -> nn.Module:
    """A tower with fresh weights: "conv<width>" of ours, or "timm:<name>" or "torchvision:<name>"
    with its last linear layer made `dim` wide. Raises UnknownName or BadSetting.
    """
    spec = ImageSpec.of(images)
    if found := CONV.fullmatch(name):
        net = ConvNet(int(found[1]), size=spec.size)
        return ImageTower(net, nn.Linear(net.width, dim), images=spec)
    source, colon, own = name.partition(":")
    if colon and source == "timm":
        return ImageTower(_of_timm(own, dim), nn.Identity(), images=spec)
    if colon and source == "torchvision":
        return ImageTower(_of_torchvision(own, dim), nn.Identity(), images=spec)
    raise BadSetting(f"model '{name}': expected conv<width>, timm:<name> or torchvision:<name>")


def _of_timm(name: str, dim: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models())
    return timm.create_model(name, num_classes=dim)


def _of_torchvision(name: str, dim: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UnknownName("torchvision model", name, models.list_models(module=models))
    return models.get_model(name, weights=None, num_classes=dim)


def image_model(name: str, *, dim: int, images: ImageSpec) -> Model:
    """The spec of `image_tower`; raises as it does, without making the network."""
    source, _, own = name.partition(":")
    if not CONV.fullmatch(name):
        match source:
            case "timm":
                import timm

                known = timm.list_models()
            case "torchvision":
                from torchvision import models

                known = models.list_models(module=models)
            case _:
                raise BadSetting(
                    f"model '{name}': expected conv<width>, timm:<name> or torchvision:<name>"
                )
        if own not in known:
            raise UnknownName(f"{source} model", own, known)
    return Model(build=image_tower, kwargs={"name": name, "dim": dim, "images": images.json()})


class TextTower(nn.Module):
    """batch["tokens"] int64 [B, L] (and "mask" [B, L], 1 where a token is; else all but `PAD`) ->
    text [B, D], the mean over the tokens, and text_map [B, L, width].

    A transformer encoder: learned positions, normalization before attention and MLP, GELU.
    """

    def __init__(
        self, *, vocabulary: int, length: int, dim: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise BadSetting(f"width {width} is no multiple of {heads} heads")
        self.length = length
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.01 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, dim)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens = batch["tokens"]
        mask = batch["mask"].bool() if "mask" in batch else tokens != PAD
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        weight = mask.to(x.dtype)[..., None]
        mean = (x * weight).sum(1) / weight.sum(1).clamp_min(1)
        return {"text": self.head(mean), "text_map": x}


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        split = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None])
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.after(x))


def context_length(text: nn.Module) -> int:
    """The most tokens that a text tower reads: its attribute `length`."""
    return int(getattr(text, "length"))  # noqa: B009  of any module


class TwoTowers(nn.Module):
    """An image tower and a text tower into one space; which of them runs is decided by the batch's
    columns "images" and "tokens".
    """

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.length = context_length(text)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST)))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "images" in batch:
            found |= self.image(batch)
        if "tokens" in batch:
            found |= self.text(batch)
        return {**found, "scale": self.log_scale.exp().clamp_max(MOST)}


def two_towers(
    *,
    image: str,
    images: Mapping[str, Any],
    dim: int,
    vocabulary: int,
    length: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> nn.Module:
    """A small image tower and a small text tower with fresh weights."""
    text = TextTower(
        vocabulary=vocabulary, length=length, dim=dim, width=width, layers=layers, heads=heads
    )
    return TwoTowers(image_tower(name=image, dim=dim, images=images), text)
