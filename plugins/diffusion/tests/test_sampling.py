import pytest
import torch
from torch import Tensor, nn

from stillhouse.artifact import Model, recorded
from stillhouse_diffusion.denoisers import edm_mlp
from stillhouse_diffusion.sampling import (
    HeunSampler,
    OneStepStudent,
    RoutedStudents,
    heun_sampler,
    routed_students,
)


class Gaussian(nn.Module):
    """The exact denoiser of N(mean of the label, std^2): its flow has a closed form."""

    def __init__(self, *, std: float) -> None:
        super().__init__()
        self.std, self.calls, self.levels = std, 0, []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        self.levels.append(batch["sigma"][0].item())
        sigma = batch["sigma"][:, None, None, None]
        mean = batch["labels"].float()[:, None, None, None]
        share = self.std**2 / (self.std**2 + sigma**2)
        return {"denoised": mean + share * (batch["images"] - mean)}


def batch(count: int = 6) -> dict[str, Tensor]:
    noise = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return {"noise": noise, "labels": torch.arange(count) % 3}


def test_heun_follows_the_flow_of_a_gaussian() -> None:
    denoiser = Gaussian(std=0.5)
    sampler = HeunSampler(denoiser, steps=64, low=0.002, high=80, rho=7)
    given = batch()
    mean = given["labels"].float()[:, None, None, None]
    # x - mean shrinks as sqrt(std^2 + sigma^2)
    expected = mean + (80 * given["noise"] - mean) * 0.5 / (0.25 + 80**2) ** 0.5
    torch.testing.assert_close(sampler(given)["images"], expected, atol=6e-3, rtol=0)
    assert denoiser.calls == sampler.evaluations == 127


def test_heun_is_of_second_order() -> None:
    given = batch()
    mean = given["labels"].float()[:, None, None, None]
    exact = mean + (80 * given["noise"] - mean) * 0.5 / (0.25 + 80**2) ** 0.5
    gaps = [
        (HeunSampler(Gaussian(std=0.5), steps=n, low=0.002, high=80, rho=7)(given)["images"] - exact)
        .abs().max().item()
        for n in (16, 32)
    ]  # fmt: skip
    assert gaps[0] > 3 * gaps[1]


def test_one_evaluation_at_the_level_it_starts_from() -> None:
    denoiser = Gaussian(std=0.5)
    found = OneStepStudent(denoiser, sigma=10.0)(batch())["images"]
    assert (denoiser.calls, denoiser.levels) == (1, [10.0])
    assert found.shape == (6, 1, 2, 2)


class Painter(nn.Module):
    """A student whose images are its own number plus a tenth of the label it is given."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.seen = number, set[int]()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen |= set(batch["labels"].tolist())
        value = self.number + batch["labels"].float() / 10
        return {"images": value[:, None, None, None].expand_as(batch["noise"])}


def test_each_image_is_made_by_the_student_that_owns_its_label() -> None:
    painters = [Painter(number) for number in range(2)]
    routed = RoutedStudents(painters, owner=[0, 1, 1, 0], training_steps=7)
    labels = torch.tensor([3, 1, 0, 2, 1])
    found = routed({"noise": torch.zeros(5, 1, 1, 1), "labels": labels})["images"].flatten()
    torch.testing.assert_close(found, torch.tensor([0.3, 1.1, 0.0, 1.2, 1.1]))
    # the ids of the whole set, not a student's own
    assert [painter.seen for painter in painters] == [{0, 3}, {1, 2}]


def test_a_student_without_rows_is_not_asked() -> None:
    painters = [Painter(0), Painter(1)]
    routed = RoutedStudents(painters, owner=[0, 1], training_steps=0)
    routed({"noise": torch.zeros(2, 1, 1, 1), "labels": torch.tensor([1, 1])})
    assert painters[0].seen == set()


def test_both_are_rebuilt_from_json() -> None:
    spec = Model(build=edm_mlp, kwargs={"channels": 2, "classes": 4, "width": 8, "layers": 2})
    shape = [2, 1, 1]
    teacher = heun_sampler(
        denoiser=recorded(spec), steps=4, low=0.002, high=10.0, rho=7.0, shape=shape
    )
    students = routed_students(
        students=[recorded(spec)] * 2, sigma=10.0, owner=[0, 0, 1, 1], training_steps=3, shape=shape
    )
    given = {"noise": torch.randn(4, *shape), "labels": torch.arange(4)}
    for module, evaluations in ((teacher, 7), (students, 1)):
        assert module(given)["images"].shape == (4, *shape)
        assert module.evaluations == evaluations
    with pytest.raises(ValueError, match="channels, height and width"):
        heun_sampler(denoiser=recorded(spec), steps=4, low=0.1, high=1.0, rho=7.0, shape=[2])
