"""Image encoders: segment-anything's own ViT, any timm backbone, TinyViT as TinySAM has it, a CNN.

B: batch. S: side of the frame in pixels. C: channels of the embedding. G: its side.
A frame is an image scaled so that its longer side is S, at the top left, padded right and below.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import BadSetting, UnknownName

# of pixel values 0..255, as segment-anything has them
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
TINY_VIT = "tiny_vit_5m_224"


class Encoder(nn.Module):
    """batch["images"] [B, 3, S, S], uint8 or floats in 0..255, and batch["sizes"] int [B, 2], the
    (height, width) of the real part -> {"embedding": [B, C, G, G]}.

    Normalised with SAM's mean and std; what is padding is zero after that, as in `Sam.preprocess`.
    `net` maps such frames to embeddings and has `img_size`: it is a stock Sam's `image_encoder`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        # not persistent: the same for every model
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.net = net

    @property
    def img_size(self) -> int:
        """The side S of the frames."""
        return int(cast("Any", self.net).img_size)  # Any: a module's attribute

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = frames(batch["images"], batch["sizes"], self.mean, self.std)
        return {"embedding": self.net(x)}


def frames(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised frames [B, 3, S, S] of pixels 0..255, zero outside `sizes` [B, 2]."""
    x = (images.to(mean.dtype) - mean) / std
    rows = torch.arange(images.shape[-2], device=images.device)[None, :, None]
    columns = torch.arange(images.shape[-1], device=images.device)[None, None, :]
    inside = (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    return torch.where(inside[:, None], x, x.new_zeros(()))


def neck(inside: int, channels: int) -> nn.Sequential:
    """SAM's neck: 1x1 and 3x3 convolution, each followed by a norm over the channels."""
    return nn.Sequential(
        nn.Conv2d(inside, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


class Backbone(nn.Module):
    """Frames [B, 3, S, S] -> [B, C, G, G]: the last map of `body`, resized bilinearly where its
    grid differs, and SAM's neck.
    """

    def __init__(
        self, body: nn.Module, *, inside: int, size: int, grid: int, channels: int, last: bool
    ) -> None:
        super().__init__()
        self.img_size, self.grid, self.last = size, grid, last
        self.body = body
        self.neck = neck(inside, channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Any = self.body(x)  # Any: a tensor, or timm's list of them
        x = found[-1] if self.last else found
        if x.shape[-2:] != (self.grid, self.grid):
            size = (self.grid, self.grid)
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.neck(x)


def vit_encoder(
    *,
    size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    channels: int,
    window: int = 0,
    everywhere: Sequence[int] = (),
    mlp: float = 4.0,
) -> nn.Module:
    """segment-anything's ImageEncoderViT: `depth` blocks of `width` channels on patches of `patch`
    pixels; attention within windows of `window` patches but for the blocks `everywhere` (0: no
    windows), with relative positions. G = size / patch.
    """
    if size % patch or width % heads:
        raise BadSetting(
            f"size must be a multiple of patch and width one of heads (got size {size}, patch "
            f"{patch}, width {width}, heads {heads})"
        )
    net = ImageEncoderViT(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp,
        out_chans=channels,
        norm_layer=cast("Any", partial(nn.LayerNorm, eps=1e-6)),  # Any: annotated as a class
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=tuple(everywhere),
    )
    return Encoder(net)


def timm_encoder(*, name: str, size: int, grid: int, channels: int) -> nn.Module:
    """timm's `name` with fresh weights, up to its deepest map of the stride nearest size / grid,
    and SAM's neck. Raises UnknownName with the nearest name, BadSetting for a model without maps.
    """
    whole = _timm(name, size)
    strides: list[int] = whole.feature_info.reduction()
    far = [abs(math.log2(stride * grid / size)) for stride in strides]
    nearest = max(i for i, distance in enumerate(far) if distance == min(far))
    # the stages behind it are left out: they would never be used
    body = _timm(name, size, out_indices=(nearest,))
    inside = int(whole.feature_info.channels()[nearest])
    net = Backbone(body, inside=inside, size=size, grid=grid, channels=channels, last=True)
    return Encoder(net)


def _timm(name: str, size: int, **given: Any) -> Any:  # Any: timm's models share no type
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0)
        raise UnknownName("timm model", name, near)
    fixed = timm.get_pretrained_cfg(name)
    # models with a fixed grid of patches must know the size when they are built
    if fixed is not None and fixed.fixed_input_size:
        given["img_size"] = size
    try:
        return timm.create_model(name, features_only=True, **given)
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadSetting(f"timm's {name} gives no maps at {size} pixels ({reason})") from error


def tiny_vit_encoder(*, size: int, grid: int, channels: int) -> nn.Module:
    """TinyViT-5M as TinySAM has it: all four stages, the last at stride 16 and not 32, and SAM's
    neck. At 1024 pixels G = 64 needs no resizing.
    """
    body = _timm(TINY_VIT, size)
    body.stages_3.downsample.conv2.conv.stride = (1, 1)
    inside = int(body.feature_info.channels()[-1])
    net = Backbone(body, inside=inside, size=size, grid=grid, channels=channels, last=True)
    return Encoder(net)


def cnn_encoder(*, width: int, size: int, grid: int, channels: int) -> nn.Module:
    """Convolutions that halve the map until it has `grid` rows, to `width` and then twice as many
    channels at each, with a residual block after each; SAM's neck. For small frames.
    """
    halvings = round(math.log2(size / grid)) if 0 < grid < size else 0
    if halvings < 1 or grid << halvings != size:
        raise BadSetting(f"size must be 2, 4, 8, ... times grid (got {size} and {grid})")
    inside, layers = 3, list[nn.Module]()
    for step in range(halvings):
        outside = width << step
        conv = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outside), nn.ReLU(), Residual(outside)]
        inside = outside
    body = nn.Sequential(*layers)
    net = Backbone(body, inside=inside, size=size, grid=grid, channels=channels, last=False)
    return Encoder(net)


class Residual(nn.Module):
    """Two convolutions beside the identity: He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        norms = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.body = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))
