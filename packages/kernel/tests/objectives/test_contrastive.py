"""InfoNCE and CRD: numbers by hand, the papers' forms, and what the memory keeps."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.objectives.contrastive import crd_loss, crd_sides_loss, info_nce_loss
from stillhouse.objectives.projectors import ContrastiveMemory
from stillhouse.objectives.term import Term


def embeddings(seed: int, width: int = 4, count: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_info_nce_by_hand():
    # T = 1, own cosine 1, other 0: -ln(e / (e + 1)) = ln(1 + 1/e); swapped rows: ln(1 + e)
    eye = torch.eye(2)
    assert info_nce_loss(eye, 5 * eye, temperature=1.0).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )
    assert info_nce_loss(eye, eye.flip(0), temperature=1.0).item() == pytest.approx(
        math.log(1 + math.e)
    )


def test_info_nce_against_a_loop():
    s, t = embeddings(1), embeddings(2)
    cosines = F.cosine_similarity(s[:, None], t[None], dim=2) / 0.5
    forth = sum(-math.log(cosines[i].softmax(0)[i].item()) for i in range(5)) / 5
    back = sum(-math.log(cosines[:, i].softmax(0)[i].item()) for i in range(5)) / 5
    assert info_nce_loss(s, t, temperature=0.5).item() == pytest.approx(forth, rel=1e-5)
    both = info_nce_loss(s, t, temperature=0.5, symmetric=True)
    assert both.item() == pytest.approx((forth + back) / 2, rel=1e-5)
    assert forth != pytest.approx(back, rel=1e-2)


def test_info_nce_of_rows_that_are_all_equal_is_log_batch():
    same = torch.ones(5, 4)
    assert info_nce_loss(same, same, temperature=0.07).item() == pytest.approx(math.log(5))


def test_info_nce_gradient_reaches_the_student_only():
    student, teacher = embeddings(1).requires_grad_(), embeddings(2).requires_grad_()
    info_nce_loss(student, teacher, temperature=0.07, symmetric=True).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum(dim=1).min() > 0


def test_crd_by_hand():
    # K = 1 of 2 samples: K / samples = 1/2, scores 0: h = 1 / (1 + 1/2) = 2/3
    # -ln h - ln(1 - h) = ln 3/2 + ln 3
    loss = crd_loss(torch.zeros(1), torch.zeros(1, 1), samples=2)
    assert loss.item() == pytest.approx(math.log(1.5) + math.log(3))


def test_crd_is_the_papers_h():
    # h = e^g / (e^g + K / samples)
    g, negatives = embeddings(1)[:, 0].double(), embeddings(2, width=7).double()
    ratio = 7 / 50
    hit = (g.exp() / (g.exp() + ratio)).log()
    miss = (1 - negatives.exp() / (negatives.exp() + ratio)).log().sum(dim=1)
    expected = -(hit + miss).mean().item()
    assert crd_loss(g, negatives, samples=50).item() == pytest.approx(expected)


def test_crd_is_finite_for_large_scores():
    for size in (1e3, -1e3):
        assert torch.isfinite(crd_loss(torch.full((2,), size), torch.full((2, 3), size), samples=9))


PROJECTED = ("projector.embedding", "teacher.embedding")


def crd(samples: int) -> Term:
    hits, misses = (
        tuple(f"memory.{side}_{which}" for side in ("student", "teacher"))
        for which in ("positives", "negatives")
    )
    return Term(crd_sides_loss, hits, misses, samples=samples)


def memory(samples: int = 12, negatives: int = 6) -> ContrastiveMemory:
    torch.manual_seed(0)
    return ContrastiveMemory(3, 5, samples, width=4, negatives=negatives)


def given(ids: tuple[int, ...] = (0, 5, 11), seed: int = 7) -> dict[str, Tensor]:
    return {
        "student.embedding": embeddings(1, 3, len(ids)),
        "teacher.embedding": embeddings(2, 5, len(ids)),
        "id": torch.tensor(ids),
        "seed": torch.tensor(seed),
    }


def test_memory_scores_against_a_loop():
    role, batch = memory(), given()
    banks = role.get_buffer("banks").clone()
    found = role(batch)
    log_z = role.get_buffer("log_z")
    rng = torch.Generator().manual_seed(7)
    drawn = torch.randint(11, (3, 6), generator=rng)
    for side, name in enumerate(("student", "teacher")):
        embed = role.embed[side](batch[f"{name}.embedding"])
        for i, own in enumerate(batch["id"].tolist()):
            unit = embed[i] / embed[i].norm()
            score = unit @ banks[1 - side, own] / 0.07 - log_z[side]
            assert found[f"{name}_positives"][i].item() == pytest.approx(score.item(), rel=1e-4)
            for k in range(6):
                other = drawn[i, k].item()
                other += other >= own
                score = unit @ banks[1 - side, int(other)] / 0.07 - log_z[side]
                assert found[f"{name}_negatives"][i, k].item() == pytest.approx(
                    score.item(), rel=1e-4, abs=1e-4
                )


def test_memory_never_draws_a_sample_as_its_own_negative():
    role = memory(samples=3, negatives=200)
    drawn = role._draw(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    assert [sorted(set(row)) for row in drawn.tolist()] == [[1, 2], [0, 2], [0, 1]]


def test_memory_draws_from_the_seed_alone():
    first, again, other = (memory()(given(seed=s)) for s in (7, 7, 8))
    assert torch.equal(first["student_negatives"], again["student_negatives"])
    assert not torch.equal(first["student_negatives"], other["student_negatives"])


def test_memory_moves_only_the_rows_of_the_batch():
    role = memory()
    before = role.get_buffer("banks").clone()
    role(given())
    after = role.get_buffer("banks")
    new = F.normalize(role.embed[1](given()["teacher.embedding"]), dim=1)
    mixed = F.normalize(0.5 * before[1, [0, 5, 11]] + 0.5 * new, dim=1)
    torch.testing.assert_close(after[1, [0, 5, 11]], mixed)
    rest = [i for i in range(12) if i not in (0, 5, 11)]
    assert torch.equal(after[:, rest], before[:, rest])
    assert not after.requires_grad


def test_memory_fixes_z_on_the_first_batch():
    role = memory()
    scores = role(given())
    # Z is the mean of exp(similarity / T) times the samples, so exp(score) averages 1 / samples
    every = torch.cat([scores["student_positives"][:, None], scores["student_negatives"]], dim=1)
    assert every.exp().mean().item() == pytest.approx(1 / 12, rel=1e-4)
    log_z = role.get_buffer("log_z").clone()
    role(given(ids=(1, 2, 3), seed=9))
    assert torch.equal(role.get_buffer("log_z"), log_z)


def test_memory_in_evaluation_mode_remembers_nothing():
    role = memory().eval()
    before = {name: value.clone() for name, value in role.named_buffers()}
    role(given())
    for name, value in role.named_buffers():
        assert torch.equal(value, before[name])


def test_crd_term_trains_both_embeddings_and_the_student():
    role, batch = memory(), given()
    batch["student.embedding"].requires_grad_()
    loss = crd(12)({"memory": role(batch)}, {})
    loss.backward()
    gradients = [batch["student.embedding"].grad, *(p.grad for p in role.parameters())]
    for gradient in gradients:
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_crd_training_lifts_the_positives():
    torch.manual_seed(0)
    role = ContrastiveMemory(3, 5, 8, width=4, negatives=7)
    batch = given(ids=tuple(range(8)))
    optimizer = torch.optim.SGD(role.parameters(), lr=0.05)
    losses: list[float] = []
    for step in range(60):
        batch["seed"] = torch.tensor(step)
        loss = crd(8)({"memory": role(batch)}, {})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_info_nce_term_calls_its_function():
    outputs = {"projector": {"embedding": embeddings(1)}, "teacher": {"embedding": embeddings(2)}}
    term = Term(info_nce_loss, *PROJECTED, temperature=0.2, symmetric=True)
    expected = info_nce_loss(embeddings(1), embeddings(2), temperature=0.2, symmetric=True)
    assert term(outputs, {}) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Term(info_nce_loss, *PROJECTED, temperature=0.0),
            r"temperature must be > 0 \(got 0.0\)",
        ),
        (lambda: crd(1), r"samples must be >= 2 \(got 1\)"),
        (
            lambda: crd_loss(torch.zeros(1), torch.zeros(1, 1), samples=0),
            r"samples must be >= 2 \(got 0\)",
        ),
        (lambda: ContrastiveMemory(3, 5, 1), r"samples must be >= 2 \(got 1\)"),
        (lambda: ContrastiveMemory(3, 5, 9, negatives=0), r"negatives must be > 0 \(got 0\)"),
        (
            lambda: ContrastiveMemory(3, 5, 9, momentum=1.0),
            r"momentum must be >= 0 and < 1 \(got 1",
        ),
        (lambda: ContrastiveMemory(3, 5, 9, temperature=-1.0), r"temperature must be > 0 \(got -1"),
    ],
)
def test_values_out_of_range(make: Callable[[], object], message: str):
    with pytest.raises(BadSetting, match=message):
        make()


def test_memory_too_small_for_an_id_and_missing_inputs():
    with pytest.raises(
        BadData, match=r"rows for ids 0 to 11 \(got id 12\); give it as many samples"
    ):
        memory()(given(ids=(0, 12)))
    batch = given()
    del batch["id"]
    with pytest.raises(UnknownName, match="ContrastiveMemory: unknown input 'id'"):
        memory()(batch)
