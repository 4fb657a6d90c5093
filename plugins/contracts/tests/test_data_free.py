import math
from typing import Any

import pytest
import torch

from stillhouse.errors import BadSetting
from stillhouse_contracts.data_free import Generated, Noise, Perturbed, balanced, table_of
from stillhouse_contracts.generator import FORBIDDEN, SHORTEST, SoftTokens, one_hot
from stillhouse_contracts.models import model

LR = 1e-2
LENGTH = 12


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, **changes: Any) -> torch.nn.Module:
    small = {"width": 8, "heads": 2, "slots": 3, **changes}
    return model(name, types=("a", "b"), length=LENGTH, vectors=6, **small).new().eval()


@pytest.fixture
def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    generator = SoftTokens(noise=4, width=8, length=LENGTH, replay=6)
    teacher = network("af-teacher", backbone="none", blocks=1).requires_grad_(False)
    return {"teacher": teacher, "student": network("stip"), "generator": generator}


def test_balance_takes_the_surest_of_each_type_and_of_none_in_turns() -> None:
    logits = torch.tensor([[5.0], [1.0], [-3.0], [-1.0]])
    assert balanced(logits, 2).tolist() == [0, 2]
    assert balanced(logits, 4).tolist() == [0, 2, 1, 3]
    two = torch.tensor([[4.0, 9.0], [3.0, -9.0], [-5.0, -5.0]])
    # row 0 is the first type's, so the second type's next is row 2; row 1 is left
    assert balanced(two, 3).tolist() == [0, 2, 1]
    with pytest.raises(BadSetting, match="5 of 4"):
        balanced(logits, 5)


def test_a_batch_of_noise_has_each_type_although_the_teacher_sees_it_seldom() -> None:
    logits = torch.randn(400, 1, generator=rng()) - 1.5
    plain, chosen = logits[:100], logits[balanced(logits, 100)]
    assert float((plain > 0).float().mean()) < 0.1
    assert float((chosen > 0).float().mean()) > 0.2


@pytest.mark.parametrize("spread", ["unit", "matched"])
def test_noise_asks_the_teacher_and_trains_the_student_alone(
    models: dict[str, torch.nn.Module], spread: Any
) -> None:
    seen: list[torch.Tensor] = []
    models["teacher"].register_forward_pre_hook(lambda _, args: seen.append(args[0]["vectors"]))
    objective = Noise(lr=LR, length=LENGTH, spread=spread)
    batch = {"id": torch.arange(50)}
    terms = objective.terms("student", models, batch, step=0, steps=1, rng=rng())
    (vectors,) = seen
    assert vectors.shape == (200, LENGTH, 6)
    table = table_of(models["teacher"])[1:]
    mean, std = (table.mean(0), table.std(0)) if spread == "matched" else (0.0, 1.0)
    standard = (vectors - mean) / std
    assert float(standard.mean().abs()) < 0.05
    assert float((standard.std() - 1).abs()) < 0.05
    sum(terms.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert any(p.grad is not None for p in models["student"].parameters())
    assert objective.phases["student"].trains == ("student",)


def test_perturbed_texts_without_noise_are_the_texts(models: dict[str, torch.nn.Module]) -> None:
    tokens = torch.randint(2, 90, (3, LENGTH), generator=rng())
    tokens[:, 8:] = 0
    batch = {"id": torch.arange(3), "tokens": tokens}
    seen: list[Any] = []
    models["student"].register_forward_hook(lambda _m, _i, out: seen.append(out["logits"]))
    Perturbed(lr=LR, sigma=0).terms("student", models, batch, step=0, steps=1, rng=rng())
    torch.testing.assert_close(seen[0], models["student"]({"tokens": tokens})["logits"])
    Perturbed(lr=LR, sigma=2).terms("student", models, batch, step=0, steps=1, rng=rng())
    assert float((seen[2] - seen[0]).detach().abs().max()) > 0.01
    with pytest.raises(BadSetting, match="sigma"):
        Perturbed(lr=LR, sigma=-1)


def test_soft_texts_are_distributions_and_end_in_padding() -> None:
    torch.manual_seed(0)
    generator = SoftTokens(noise=4, width=8, length=LENGTH, replay=0)
    given = generator.noise_for(20, rng())
    assert int(given["lengths"].min()) >= SHORTEST
    assert int(given["lengths"].max()) <= LENGTH
    found = generator(given)["mixture"]
    torch.testing.assert_close(found.sum(-1), torch.ones(20, LENGTH))
    for text, length in zip(found, given["lengths"].tolist(), strict=True):
        assert float(text[:length][:, list(FORBIDDEN)].detach().sum()) == 0
        assert float(text[length:, 0].detach().sum()) == LENGTH - length


def test_the_pool_keeps_the_latest_texts_over_the_oldest() -> None:
    generator = SoftTokens(noise=1, width=1, length=2, replay=3)
    assert len(generator.draw(4, rng())) == 0
    for number in range(4):
        generator.keep(one_hot(torch.full((1, 2), 10 + number)))
    assert generator.pool[:, 0].tolist() == [13, 11, 12]
    assert generator.draw(5, rng()).shape == (5, 2)
    generator.keep(one_hot(torch.arange(20, 28).view(4, 2)))
    assert {20, 21} & set(generator.pool.flatten().tolist()) == set(), "more texts than places"
    assert {"pool", "pooled"} <= set(generator.state_dict())


def test_each_phase_reaches_its_own_role(models: dict[str, torch.nn.Module]) -> None:
    objective = Generated(lr=LR, generator_lr=LR)
    batch = {"id": torch.arange(4)}
    for phase, other in (("student", "generator"), ("generator", "student")):
        for role in models.values():
            role.zero_grad()
        for role in ("student", "generator"):
            models[role].requires_grad_(role == phase)
        terms = objective.terms(phase, models, batch, step=0, steps=1, rng=rng())
        sum(terms.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        grads = [p.grad for p in models[phase].parameters()]
        assert any(g is not None and float(g.abs().sum()) > 0 for g in grads)
        assert all(p.grad is None or not p.grad.any() for p in models[other].parameters())
    assert set(terms) == {"one_hot", "statistics", "balance", "adversarial"}
    generator = models["generator"]
    assert isinstance(generator, SoftTokens)
    assert int(generator.pooled) == 4


def test_a_step_of_the_student_reads_fresh_and_replayed_texts(
    models: dict[str, torch.nn.Module],
) -> None:
    objective = Generated(lr=LR, generator_lr=LR)
    batch, counts = {"id": torch.arange(4)}, list[int]()
    models["student"].register_forward_pre_hook(lambda _, a: counts.append(len(a[0]["mixture"])))
    for phase in ("student", "generator", "student"):
        objective.terms(phase, models, batch, step=0, steps=1, rng=rng())
    assert counts == [4, 4, 8], "an empty pool at first, then as many again"


def test_the_generator_lowers_its_loss_on_a_frozen_teacher(
    models: dict[str, torch.nn.Module],
) -> None:
    objective = Generated(lr=LR, generator_lr=LR, adversarial=0, statistics=0)
    generator = models["generator"]
    adam = torch.optim.Adam(generator.parameters(), lr=3e-2)
    batch, losses = {"id": torch.arange(32)}, list[float]()
    for step in range(30):
        terms = objective.terms("generator", models, batch, step=step, steps=30, rng=rng(step))
        loss = sum(terms.values(), torch.zeros(()))
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < losses[0] - 0.01
    assert all(map(math.isfinite, losses))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadSetting, match="oversample"):
        Noise(lr=LR, length=4, oversample=0)
    with pytest.raises(BadSetting, match="balance"):
        Generated(lr=LR, generator_lr=LR, balance=-1)
    with pytest.raises(BadSetting, match="replay >= 0"):
        SoftTokens(noise=1, width=1, length=1, replay=-1)
    with pytest.raises(BadSetting, match="no token vectors"):
        table_of(torch.nn.Linear(1, 1))
