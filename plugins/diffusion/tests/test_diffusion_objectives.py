import math
from typing import Any

import pytest
import torch

from stillhouse.errors import BadSetting
from stillhouse_diffusion.objectives import (
    adversarial_losses,
    distribution_matching_gradient,
    distribution_matching_loss,
    fake_score_loss,
    karras_sigmas,
    tsm_loss,
)


def images(*values: float) -> torch.Tensor:
    """[B, 1, 1, 2]: two equal pixels a value."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 1, 2).clone()


def test_karras_sigmas_by_hand() -> None:
    # rho 2: square roots 1, 2, 3
    assert karras_sigmas(3, low=1, high=9, rho=2).tolist() == [1, 4, 9]
    edm = karras_sigmas(1000, low=0.002, high=80, rho=7)
    assert edm[0] == pytest.approx(0.002)
    assert edm[-1] == pytest.approx(80)
    assert bool((edm.diff() > 0).all())


def test_karras_sigmas_are_those_of_diffusers_backwards() -> None:
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    scheduler: Any = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, rho=7)
    scheduler.set_timesteps(18)
    ours = karras_sigmas(18, low=0.002, high=80, rho=7).flip(0)
    torch.testing.assert_close(ours, scheduler.sigmas[:-1].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [(1, 0.1, 1, 7), (5, 1, 1, 7), (5, 0, 1, 7), (5, 0.1, 1, 0)])
def test_karras_sigmas_refuse_what_is_no_range(given: tuple[int, float, float, float]) -> None:
    n, low, high, rho = given
    with pytest.raises(BadSetting):
        karras_sigmas(n, low=low, high=high, rho=rho)


def test_the_gradient_is_normalised_a_sample_at_a_time() -> None:
    image = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])
    real = torch.tensor([[[[0.0, 0.0]]], [[[4.0, 4.0]]]])
    fake = torch.tensor([[[[1.0, 0.0]]], [[[2.0, 4.0]]]])
    # |image - real| has the means 2 and 4
    expected = torch.tensor([[[[0.5, 0.0]]], [[[-0.5, 0.0]]]])
    assert torch.equal(distribution_matching_gradient(image, real, fake), expected)


def test_the_gradient_of_an_image_that_the_teacher_returns_is_zero() -> None:
    same = images(1.0, 1.0)
    fake = images(1.0, 2.0)  # 0 / 0, and 1 / 0
    assert torch.equal(distribution_matching_gradient(same, same, fake), torch.zeros(2, 1, 1, 2))


def test_the_gradient_has_no_graph() -> None:
    image, real, fake = (images(v, v + 1).requires_grad_() for v in (0.0, 1.0, 3.0))
    assert not distribution_matching_gradient(image, real, fake).requires_grad


def test_the_matching_loss_hands_its_gradient_to_the_image() -> None:
    image = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = distribution_matching_loss(image, gradient)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item())
    torch.testing.assert_close(image.grad, gradient / gradient.numel())


def test_fake_score_loss_by_hand() -> None:
    # weights 1 / sigma^2 + 4: 5 and 4.25; squared errors 1 and 4
    loss = fake_score_loss(
        images(1.0, 2.0), images(0.0, 0.0), torch.tensor([1.0, 2.0]), sigma_data=0.5
    )
    assert loss.item() == pytest.approx((5 * 1 + 4.25 * 4) / 2)


def test_a_generator_learns_nothing_from_the_fake_score_loss() -> None:
    prediction, image = images(1.0).requires_grad_(), images(0.0).requires_grad_()
    fake_score_loss(prediction, image, torch.ones(1), sigma_data=0.5).backward()
    assert image.grad is None
    assert prediction.grad is not None


def test_adversarial_losses_by_hand() -> None:
    zero = torch.zeros(2)
    assert {k: v.item() for k, v in adversarial_losses(zero, zero).items()} == pytest.approx(
        {"generator": math.log(2), "discriminator": 2 * math.log(2)}
    )
    found = adversarial_losses(torch.tensor([1.0]), torch.tensor([2.0]))
    assert found["generator"].item() == pytest.approx(math.log1p(math.exp(-1)))
    assert found["discriminator"].item() == pytest.approx(
        math.log1p(math.exp(1)) + math.log1p(math.exp(-2))
    )


def test_tsm_loss_by_hand_and_zero_only_where_both_agree() -> None:
    sigma = torch.tensor([1.0, 2.0])
    # (1 + .25) / .25 = 5 and (4 + .25) / 1 = 4.25
    found = tsm_loss(images(1.0, 2.0), images(0.0, 0.0), sigma, sigma_data=0.5)
    assert found.item() == pytest.approx((5 + 17) / 2)
    same = images(0.3, -0.7)
    assert tsm_loss(same, same.clone(), sigma, sigma_data=0.5).item() == 0
    nearly = same.clone()
    nearly[1, 0, 0, 1] += 1e-3
    assert tsm_loss(nearly, same, sigma, sigma_data=0.5).item() > 0


def test_the_teacher_of_tsm_learns_nothing() -> None:
    student, teacher = images(1.0).requires_grad_(), images(0.0).requires_grad_()
    tsm_loss(student, teacher, torch.ones(1), sigma_data=0.5).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_losses_refuse_a_sigma_data_of_zero() -> None:
    one = images(1.0)
    for loss in (fake_score_loss, tsm_loss):
        with pytest.raises(BadSetting, match="sigma_data must be > 0"):
            loss(one, one, torch.ones(1), sigma_data=0.0)
