"""Phases on real (small) networks: who learns, who is frozen, what is left behind."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse.recipe import Context
from stillhouse.training import Setup
from stillhouse_diffusion.denoisers import Discriminator, edm_mlp
from stillhouse_diffusion.phases import (
    DenoiseImages,
    MatchDistribution,
    MatchScores,
    Noise,
    noised,
    pixels,
)

ADAM = Optimizer(build=torch.optim.AdamW, lr=1e-3)
NOISE = Noise(high=10.0)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def network(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return edm_mlp(channels=2, classes=4, width=width, layers=2)


def roles() -> dict[str, nn.Module]:
    torch.manual_seed(9)
    return {
        "student": network(1),
        "teacher": network(2),
        "fake": network(3),
        "discriminator": Discriminator(features=16, side=1),
    }


def batch(count: int = 12) -> dict[str, Tensor]:
    return {
        "id": torch.arange(count),
        "images": 0.5 * torch.randn(count, 2, 1, 1, generator=rng(4)),
        "labels": torch.arange(count) % 4,
    }


def adversarial(**kwargs: Any) -> MatchDistribution:
    phases = {
        "student": Phase(trains=("student",), optimizer=ADAM, every=2),
        "fake": Phase(trains=("fake", "discriminator"), optimizer=ADAM),
    }
    given: dict[str, Any] = {"adversarial": 3e-3, **kwargs}
    return MatchDistribution(phases=phases, noise=NOISE, **given)


def test_pixels_lie_between_minus_one_and_one() -> None:
    stored = torch.tensor([0, 255], dtype=torch.uint8)
    assert pixels(stored).tolist() == [-1, 1]
    floats = torch.tensor([0.25])
    assert pixels(floats) is floats


def test_noise_levels_are_those_of_edm() -> None:
    many = torch.zeros(20_000, 1, 1, 1)
    drawn = Noise(mean=-1.2, std=1.2).training(many, rng()).log()
    assert drawn.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert drawn.std().item() == pytest.approx(1.2, abs=0.03)
    grid = NOISE.grid(many, rng(), first=0.02, last=0.98)
    whole = torch.unique(NOISE.grid(many, rng()))
    assert whole.min() == pytest.approx(0.002)
    assert whole.max() == pytest.approx(10)
    assert grid.min() > whole.min()
    assert grid.max() < whole.max()


def test_noise_that_is_none_is_refused() -> None:
    wrong: list[dict[str, Any]] = [{"std": 0.0}, {"low": 3.0, "high": 2.0}, {"levels": 3}]
    for given in wrong:
        with pytest.raises(BadSetting):
            Noise(**given)


def test_noised_images_have_the_noise_of_their_level() -> None:
    images = torch.zeros(2, 1, 64, 64)
    found = noised(images, torch.tensor([0.1, 7.0]), torch.zeros(2).long(), rng())
    stds = found["images"].std(dim=(1, 2, 3))
    torch.testing.assert_close(stds, torch.tensor([0.1, 7.0]), rtol=0.05, atol=0)


def test_the_loss_of_matching_is_that_of_its_functions() -> None:
    from stillhouse_diffusion.objectives import (
        distribution_matching_gradient,
        distribution_matching_loss,
    )

    models, given, draws = roles(), batch(), rng(7)
    found = adversarial(adversarial=0.0).terms(
        "student", models, given, step=0, steps=1, rng=rng(7)
    )
    noise = torch.randn(12, 2, 1, 1, generator=draws)
    level = torch.full((12,), 10.0)
    student = {"images": 10 * noise, "sigma": level, "labels": given["labels"]}
    image = models["student"](student)["denoised"]
    sigma = NOISE.grid(image, draws, first=0.02, last=0.98)
    noisy = noised(image, sigma, given["labels"], draws)
    gradient = distribution_matching_gradient(
        image, models["teacher"](noisy)["denoised"], models["fake"](noisy)["denoised"]
    )
    assert {*found} == {"matching"}
    torch.testing.assert_close(found["matching"], distribution_matching_loss(image, gradient))


def test_in_each_phase_only_its_roles_learn() -> None:
    for phase, learners in (("student", {"student"}), ("fake", {"fake", "discriminator"})):
        models = roles()
        for role, module in models.items():  # as the engine does
            module.requires_grad_(role in learners)
        terms = adversarial().terms(phase, models, batch(), step=0, steps=1, rng=rng())
        torch.stack(list(terms.values())).sum().backward()
        for role, module in models.items():
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            assert bool(grads) == (role in learners), (phase, role)


def test_the_adversarial_term_reaches_the_student_through_the_frozen_fake_score() -> None:
    models = roles()
    for role, module in models.items():
        module.requires_grad_(role == "student")
    terms = adversarial().terms("student", models, batch(), step=0, steps=1, rng=rng())
    terms["adversarial"].backward()
    assert any(bool(p.grad.any()) for p in models["student"].parameters() if p.grad is not None)


def test_the_discriminator_trains_the_features_it_reads_from_the_fake_score_alone() -> None:
    for features, learns in (("fake", True), ("teacher", False)):
        models = roles()
        for role, module in models.items():
            module.requires_grad_(role in ("fake", "discriminator"))
        objective = adversarial(features=features)
        terms = objective.terms("fake", models, batch(), step=0, steps=1, rng=rng())
        terms["discriminating"].backward()
        grads = [p.grad for p in models["fake"].parameters() if p.grad is not None]
        assert bool(grads) == learns


def fitted(objective: Any, models: dict[str, nn.Module], tmp_path: Any, steps: int = 4) -> None:
    ctx = Context(stage="t", out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "k")
    data = TensorData({k: v for k, v in batch().items() if k != "id"})
    fit(objective, models, data, setup=Setup(steps=steps, batch=12), ctx=ctx)


def copies(models: dict[str, nn.Module]) -> dict[str, list[Tensor]]:
    return {r: [p.detach().clone() for p in m.parameters()] for r, m in models.items()}


def test_the_generator_step_leaves_no_gradient_to_the_guidance(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's adversarial term goes through fake score and discriminator: nothing of it is
    left in their gradients when their own phase begins.
    """
    models, left, seen = roles(), list[Any](), list[str]()
    original = MatchDistribution.terms

    def looking(self: MatchDistribution, phase: str, *given: Any, **more: Any) -> Any:
        if phase == "fake":
            seen.append(phase)
            parameters = [*models["fake"].parameters(), *models["discriminator"].parameters()]
            left.extend(p.grad for p in parameters if p.grad is not None and bool(p.grad.any()))
        return original(self, phase, *given, **more)

    monkeypatch.setattr(MatchDistribution, "terms", looking)
    fitted(adversarial(), models, tmp_path)
    assert left == []
    assert len(seen) == 4


def test_the_teacher_stays_and_both_others_move(tmp_path: Any) -> None:
    models = roles()
    before = copies(models)
    fitted(adversarial(), models, tmp_path)
    for role, parameters in copies(models).items():
        same = all(map(torch.equal, parameters, before[role]))
        assert same == (role == "teacher"), role


def test_a_guidance_step_without_a_generator_step_leaves_the_student(tmp_path: Any) -> None:
    """`every` is two: of two steps the first has both phases, the second the fake score's alone."""
    one, two = roles(), roles()
    fitted(adversarial(), one, tmp_path / "1", steps=1)
    fitted(adversarial(), two, tmp_path / "2", steps=2)
    schedules = copies({"a": one["student"], "b": two["student"]})
    assert all(map(torch.equal, schedules["a"], schedules["b"]))
    fakes = copies({"a": one["fake"], "b": two["fake"]})
    assert not all(map(torch.equal, fakes["a"], fakes["b"]))


def test_pairs_of_all_labels_pull_the_student_to_the_teachers_images() -> None:
    models, count = roles(), 12
    given = {f"part.{name}": value for name, value in batch().items()} | {
        "id": torch.arange(count),
        "pairs.noise": torch.randn(count, 2, 1, 1, generator=rng(5)),
        "pairs.images": torch.randn(count, 2, 1, 1, generator=rng(6)),
        "pairs.labels": torch.arange(count) % 4,
    }
    objective = adversarial(adversarial=0.0, regression=0.25)
    terms = objective.terms("student", models, given, step=0, steps=1, rng=rng())
    student = {
        "images": 10 * given["pairs.noise"],
        "sigma": torch.full((count,), 10.0),
        "labels": given["pairs.labels"],
    }
    gap = models["student"](student)["denoised"] - given["pairs.images"]
    torch.testing.assert_close(terms["regression"], 0.25 * gap.square().mean())


def test_the_student_sees_the_ids_of_the_whole_set() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, given: Any, **kwargs: Any) -> Any:
            seen.append(given["labels"])
            return self.inner(given, **kwargs)

    models = {role: Spy(module) for role, module in roles().items() if role != "discriminator"}
    part = batch() | {"labels": torch.full((12,), 3)}  # of a student that owns the last label
    objective = adversarial(adversarial=0.0)
    for phase in ("student", "fake"):
        objective.terms(phase, models, part, step=0, steps=1, rng=rng())
    assert {int(label) for labels in seen for label in labels} == {3}


def test_tsm_is_zero_for_a_student_that_is_its_teacher_and_for_no_other() -> None:
    phases = {"student": Phase(trains=("student",), optimizer=ADAM)}
    objective = MatchScores(phases=phases, noise=NOISE)
    for student, zero in ((network(2), True), (network(1), False), (network(2, width=8), False)):
        models = {"student": student, "teacher": network(2)}
        found = objective.terms("student", models, batch(), step=0, steps=1, rng=rng())
        assert (found["tsm"].item() == 0) == zero


def test_tsm_brings_a_narrow_student_nearer(tmp_path: Any) -> None:
    objective = MatchScores(
        phases={"student": Phase(trains=("student",), optimizer=ADAM)}, noise=NOISE
    )
    models: dict[str, nn.Module] = {"student": network(1, width=8), "teacher": network(2)}

    def loss() -> float:
        given = {"student": models["student"], "teacher": models["teacher"]}
        return objective.terms("student", given, batch(), step=0, steps=1, rng=rng())["tsm"].item()

    before = loss()
    fitted(objective, models, tmp_path, steps=60)
    assert loss() < before


def test_a_teacher_learns_to_denoise(tmp_path: Any) -> None:
    phases = {"teacher": Phase(trains=("teacher",), optimizer=ADAM, ema={"teacher": 0.9})}
    objective = DenoiseImages(phases=phases, noise=NOISE)
    models: dict[str, nn.Module] = {"teacher": network(1)}

    def loss(role: str) -> float:
        given = {"teacher": models[role]}
        found = objective.terms("teacher", given, batch(), step=0, steps=1, rng=rng())
        return found["denoising"].item()

    before = loss("teacher")
    fitted(objective, models, tmp_path, steps=60)
    assert loss("teacher") < before
    assert loss("teacher-ema") < before


def test_phases_that_are_missing_are_refused() -> None:
    with pytest.raises(BadSetting, match="phases student and fake"):
        MatchDistribution(
            phases={"student": Phase(trains=("student",), optimizer=ADAM)}, noise=NOISE
        )
