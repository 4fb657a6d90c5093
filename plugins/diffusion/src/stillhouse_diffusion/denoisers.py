"""Denoisers: networks that predict the clean image of a noised one, at a noise level, of a label.

B: batch. C H W: channels, height, width; points of a plane are images of 2 x 1 x 1. Every denoiser
maps batch["images"] [B, C, H, W] (clean plus sigma times noise), batch["sigma"] [B] and
batch["labels"] int64 [B] to "denoised" [B, C, H, W].
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from stillhouse.errors import BadSetting

# EDM's noise condition is ln(sigma) / 4; diffusers' embedding counts up to 1000
TIMESTEPS = 1000.0
MOST_GROUPS = 32  # of a group norm, as diffusers has by default


class Network(Protocol):
    """What a denoiser wraps: raw outputs, or the innermost features, of scaled inputs."""

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor: ...
    def bottleneck(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor: ...


class UNet(nn.Module):
    """A UNet2DModel of diffusers; without an embedding of classes labels are not looked at."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return cast("Any", self.unet)(x, time, class_labels=self._known(labels)).sample

    def bottleneck(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """The map behind the middle block [B, D, h, w]: the encoder alone is run."""
        unet: Any = self.unet  # Any: diffusers types none of its parts
        if unet.config.center_input_sample:
            x = 2 * x - 1
        condition = unet.time_embedding(unet.time_proj(time).to(x.dtype))
        if (known := self._known(labels)) is not None:
            condition = condition + unet.class_embedding(known)
        x = unet.conv_in(x)
        for block in unet.down_blocks:
            x, _ = block(hidden_states=x, temb=condition)
        return x if unet.mid_block is None else unet.mid_block(x, condition)

    def _known(self, labels: Tensor) -> Tensor | None:
        return None if cast("Any", self.unet).class_embedding is None else labels


class Mlp(nn.Module):
    """Points of a plane, their noise level as a sinusoidal embedding and a label, through `layers`
    hidden layers of `width` units.
    """

    frequencies: Tensor

    def __init__(self, *, channels: int, classes: int, width: int, layers: int) -> None:
        super().__init__()
        half = width // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(1e4) * torch.arange(half) / half), persistent=False
        )
        self.label = nn.Embedding(classes, width)
        self.first = nn.Linear(channels + 2 * half, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.last = nn.Linear(width, channels)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return self.last(self._features(x, time, labels))[:, :, None, None]

    def bottleneck(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return self._features(x, time, labels)[:, :, None, None]

    def _features(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        h = self.first(torch.cat([x.flatten(1), angles.sin(), angles.cos()], dim=1))
        h = nn.functional.silu(h + self.label(labels))
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        return h


class Edm(nn.Module):
    """Preconditioning of EDM (Karras et al. 2022, table 1): D(x; sigma) = c_skip x + c_out
    F(c_in x; c_noise), with c_noise ln(sigma) / 4 times 1000, the range of diffusers' embeddings.

    `bf16` runs the network in bfloat16 by autocast, the preconditioning in float32; it is left out
    while a file is exported.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float, bf16: bool) -> None:
        super().__init__()
        self.network, self.sigma_data, self.bf16 = network, sigma_data, bf16

    def forward(
        self, batch: Mapping[str, Tensor], *, bottleneck: bool = False
    ) -> dict[str, Tensor]:
        """ "denoised"; with `bottleneck` only "bottleneck" [B, D, h, w] of the same inputs."""
        x, sigma, data = batch["images"], batch["sigma"], self.sigma_data
        if x.dtype == torch.float16:
            raise BadSetting("denoisers diverge in fp16; use bf16 or fp32")
        s = sigma[:, None, None, None]
        scale = (s.square() + data**2).sqrt()
        given = x / scale, TIMESTEPS * sigma.log() / 4, batch["labels"]
        network = cast("Network", self.network)
        with self._cast(x):
            found = network.bottleneck(*given) if bottleneck else network(*given)
        if bottleneck:
            return {"bottleneck": found.float()}
        skip, out = data**2 / scale.square(), s * data / scale
        return {"denoised": skip * x + out * found.float()}

    def _cast(self, x: Tensor) -> contextlib.AbstractContextManager[Any]:  # Any: torch's or none
        if not self.bf16 or torch.compiler.is_exporting():
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)


class Vp(nn.Module):
    """A network that predicts the noise of DDPM (Ho et al. 2020) as a denoiser at any sigma: EDM's
    table 1, "VP", with the steps of `alphas_cumprod` as they were trained.

    D(x; sigma) = x - sigma F(x / sqrt(1 + sigma^2); t), t the step whose own sigma is `sigma`,
    between two steps by ln(sigma). Beyond the first and last step t is theirs.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, alphas_cumprod: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        alphas = torch.tensor(alphas_cumprod, dtype=torch.float64)
        self.register_buffer("steps", (((1 - alphas) / alphas).log() / 2).float(), persistent=False)

    def forward(
        self, batch: Mapping[str, Tensor], *, bottleneck: bool = False
    ) -> dict[str, Tensor]:
        """As that of `Edm`."""
        x, sigma = batch["images"], batch["sigma"]
        s = sigma[:, None, None, None]
        given = x / (1 + s.square()).sqrt(), self.time(sigma), batch["labels"]
        network = cast("Network", self.network)
        if bottleneck:
            return {"bottleneck": network.bottleneck(*given)}
        return {"denoised": x - s * network(*given)}

    def time(self, sigma: Tensor) -> Tensor:
        """The step of each noise level, a real number [B]."""
        level = sigma.log().contiguous()
        above = torch.searchsorted(self.steps, level).clamp(1, len(self.steps) - 1)
        low, high = self.steps[above - 1], self.steps[above]
        return (above - 1 + ((level - low) / (high - low)).clamp(0, 1)).float()


def edm_unet(
    *,
    size: int,
    channels: int,
    classes: int,
    widths: Sequence[int],
    layers: int,
    attention: Sequence[int] = (),
    sigma_data: float = 0.5,
    bf16: bool = False,
) -> nn.Module:
    """A class-conditional UNet2DModel under EDM's preconditioning; blocks of `widths` from the
    outside in, `layers` residual layers each, self-attention where a block's map has a side in
    `attention`. Raises BadSetting for an image that cannot be halved so often.
    """
    check_halved(size, widths)
    attends = [size // 2**i in attention for i in range(len(widths))]
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        add_attention=attends[-1],
        norm_num_groups=_groups(widths),
        num_class_embeds=classes,
    )
    return Edm(UNet(unet), sigma_data=sigma_data, bf16=bf16)


def check_halved(size: int, widths: Sequence[int]) -> None:
    """Raises BadSetting for an image that cannot be halved once between two blocks."""
    downs = len(widths) - 1
    if downs < 0 or size % 2**downs:
        raise BadSetting(
            f"images of {size} pixels cannot be halved {downs} times; give other than "
            f"{len(widths)} widths or another size"
        )


def edm_mlp(
    *,
    channels: int,
    classes: int,
    width: int,
    layers: int,
    sigma_data: float = 0.5,
) -> nn.Module:
    """An `Mlp` of points under EDM's preconditioning."""
    network = Mlp(channels=channels, classes=classes, width=width, layers=layers)
    return Edm(network, sigma_data=sigma_data, bf16=False)


def diffusers_unet(
    *,
    config: Mapping[str, Any],  # Any: JSON values; config.json of a UNet2DModel
    sigma_data: float = 0.5,
    alphas_cumprod: Sequence[float] = (),
    bf16: bool = False,
) -> nn.Module:
    """A denoiser of any UNet2DModel: one that predicts noise where `alphas_cumprod` are given, else
    one under EDM's preconditioning.
    """
    unet = UNet(cast("UNet2DModel", UNet2DModel.from_config(dict(config))))
    if alphas_cumprod:
        return Vp(unet, alphas_cumprod)
    return Edm(unet, sigma_data=sigma_data, bf16=bf16)


def _groups(widths: Sequence[int]) -> int:
    """The most groups, up to diffusers' 32, of at least four channels that divide every width."""
    return max(
        n
        for n in range(1, MOST_GROUPS + 1)
        if all(w % n == 0 for w in widths) and (n == 1 or min(widths) >= 4 * n)
    )


class Discriminator(nn.Module):
    """The head of DMD2 on the innermost features of a denoiser: batch["bottleneck"] [B, D, h, w] to
    "logit" [B], larger for real images.

    For maps of 8 x 8 and more DMD2's layers: conv 4 stride 2, conv 4 stride 4, conv 1, group norm
    of 32 and SiLU between them. Differs, for smaller ones: one convolution over the whole map.
    """

    def __init__(self, *, features: int, side: int) -> None:
        super().__init__()
        groups = _groups([features])
        kernels = [(4, 2), (side // 2, side // 2)] if side >= 8 else [(side, 1)]
        layers: list[nn.Module] = []
        for kernel, stride in kernels:
            padding = 1 if kernel == 4 and stride == 2 else 0
            layers += [
                nn.Conv2d(features, features, kernel, stride=stride, padding=padding),
                nn.GroupNorm(groups, features),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(features, 1, 1))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logit": self.layers(batch["bottleneck"]).flatten(1).mean(1)}
