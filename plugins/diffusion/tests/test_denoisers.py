import math
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse_diffusion.denoisers import (
    Discriminator,
    Edm,
    UNet,
    Vp,
    diffusers_unet,
    edm_mlp,
    edm_unet,
)


def inputs(size: int = 8, count: int = 3) -> dict[str, Tensor]:
    rng = Generator().manual_seed(0)
    return {
        "images": torch.randn(count, 1, size, size, generator=rng),
        "sigma": torch.tensor([0.01, 1.0, 20.0])[:count],
        "labels": torch.tensor([0, 1, 9])[:count],
    }


def small(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return edm_unet(size=8, channels=1, classes=10, widths=(8, 16), layers=1, **kwargs).eval()


class Constant(nn.Module):
    """A network that gives `value`, and records the times it was asked at."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.seen = value, []

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((x, time))
        return torch.full_like(x, self.value)


def test_preconditioning_by_hand() -> None:
    network = Constant(3.0)
    x = torch.full((1, 1, 1, 1), 10.0)
    given = {"images": x, "sigma": torch.tensor([2.0]), "labels": torch.zeros(1).long()}
    found = Edm(network, sigma_data=0.5, bf16=False)(given)["denoised"]
    total = 4 + 0.25
    assert found.item() == pytest.approx(0.25 / total * 10 + 2 * 0.5 / math.sqrt(total) * 3)
    scaled, time = network.seen[0]
    assert scaled.item() == pytest.approx(10 / math.sqrt(total))
    # not an integer: diffusers would round a number, not a tensor
    assert time.item() == pytest.approx(1000 * math.log(2) / 4)


def test_at_no_noise_the_image_is_returned_whatever_the_network_says() -> None:
    given = inputs() | {"sigma": torch.full((3,), 1e-6)}
    torch.testing.assert_close(small()(given)["denoised"], given["images"], atol=1e-4, rtol=0)


def test_labels_and_levels_change_what_is_predicted() -> None:
    network, given = small(), inputs()
    found = network(given)["denoised"]
    other = network(given | {"labels": torch.tensor([1, 1, 1])})["denoised"]
    assert not torch.equal(found[0], other[0])
    assert torch.equal(found[1], other[1])
    noisier = network(given | {"sigma": torch.tensor([0.02, 1.0, 20.0])})["denoised"]
    assert not torch.allclose(found[0], noisier[0], atol=1e-5)


@pytest.mark.parametrize("attention", [(), (4,)])
def test_bottleneck_is_the_map_behind_the_middle_block(attention: tuple[int, ...]) -> None:
    network, given = small(attention=attention), inputs()
    seen: list[Tensor] = []
    unet = network.network.unet

    def keep(module: nn.Module, given: Any, found: Tensor) -> None:
        seen.append(found)

    handle = unet.mid_block.register_forward_hook(keep)
    network(given)
    handle.remove()
    assert torch.equal(network(given, bottleneck=True)["bottleneck"], seen[0])


def test_bf16_is_the_same_within_its_precision_and_gives_fp32() -> None:
    full, half = small()(inputs())["denoised"], small(bf16=True)(inputs())["denoised"]
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.05, rtol=0.05)


def test_fp16_is_refused() -> None:
    given = inputs() | {"images": inputs()["images"].half()}
    with pytest.raises(BadSetting, match="diverge in fp16; use bf16 or fp32"):
        small()(given)


def test_points_of_a_plane() -> None:
    network = edm_mlp(channels=2, classes=4, width=16, layers=3)
    given = {
        "images": torch.randn(5, 2, 1, 1),
        "sigma": torch.linspace(0.01, 10, 5),
        "labels": torch.arange(5) % 4,
    }
    assert network(given)["denoised"].shape == (5, 2, 1, 1)
    assert network(given, bottleneck=True)["bottleneck"].shape == (5, 16, 1, 1)


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(BadSetting, match="28 pixels cannot be halved 3 times"):
        edm_unet(size=28, channels=1, classes=10, widths=(8, 8, 8, 8), layers=1)


def test_a_network_that_predicts_noise_is_a_denoiser_at_its_own_steps() -> None:
    scheduler = DDPMScheduler()
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=2,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    denoiser = Vp(UNet(unet), scheduler.alphas_cumprod.tolist())
    clean, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    step = torch.tensor([40, 700])
    noisy = cast("Any", scheduler).add_noise(clean, noise, step)
    alpha = scheduler.alphas_cumprod[step][:, None, None, None]
    with torch.no_grad():
        predicted = unet(noisy, step).sample
    expected = (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    given = {
        "images": noisy / alpha.sqrt(),
        "sigma": ((1 - alpha) / alpha).sqrt().flatten(),
        "labels": torch.zeros(2).long(),
    }
    with torch.no_grad():
        found = denoiser(given)["denoised"]
    torch.testing.assert_close(denoiser.time(given["sigma"]), step.float(), atol=0.02, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-3)


def test_a_unet_of_diffusers_is_rebuilt_from_its_config() -> None:
    unet = small().network.unet
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    again: Any = diffusers_unet(config=config).eval()
    again.network.unet.load_state_dict(unet.state_dict())
    assert torch.equal(again(inputs())["denoised"], small()(inputs())["denoised"])


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_discriminators_of_maps_of_any_side(side: int) -> None:
    head = Discriminator(features=64, side=side)
    assert head({"bottleneck": torch.randn(3, 64, side, side)})["logit"].shape == (3,)
