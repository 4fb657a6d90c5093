"""Losses of a few kept classes: numbers by hand, equality with KD, bias and its absence."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.sparse import fused_kd_loss, sampled_kd_loss, sparse_kd_loss
from stillhouse.objectives.term import Term
from stillhouse.sparse import drawn, likeliest


def logits(seed: int, scale: float = 3.0, shape: tuple[int, ...] = (6, 40)) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=rng)


def of_top(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    kept = likeliest(teacher, k, temperature)
    return sparse_kd_loss(student, *kept, temperature=temperature)


def of_draw(student: Tensor, teacher: Tensor, k: int, temperature: float, u: float = 0.3) -> Tensor:
    starts = torch.full(teacher.shape[:-1], u)
    index, log_weight, entropy = drawn(teacher, k, temperature, starts)
    return sampled_kd_loss(student, index, log_weight.exp(), entropy, temperature=temperature)


def graded(loss: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    x = student.clone().requires_grad_()
    value = loss(x)
    return value.detach(), *torch.autograd.grad(value, x)


def of_all(student: Tensor, teacher: Tensor, _k: int, temperature: float) -> Tensor:
    return fused_kd_loss(student, teacher, temperature=temperature)


BOTH = pytest.mark.parametrize("loss", [of_top, of_draw, of_all])


def test_sparse_kd_by_hand():
    # T = 2, four classes, one kept: teacher t = 1/2 and 1/2 for the rest, student 1/4 and 3/4
    # KL = 1/2 ln 2 + 1/2 ln(2/3) = 0.143841; times T^2 = 4: 0.575364
    half = torch.tensor([[0.5]]).log()
    loss = sparse_kd_loss(torch.zeros(1, 4), torch.tensor([[2]]), half, half[:, 0], temperature=2.0)
    assert loss.item() == pytest.approx(4 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3)))
    assert loss.item() == pytest.approx(0.575364, abs=1e-6)


def test_sparse_kd_gradient_by_hand():
    # kept: T (s - t) = 2 (1/4 - 1/2) = -1/2; each other: T s (1 - t_R / s_R) = 2/4 (1 - 2/3) = 1/6
    half = torch.tensor([[0.5]]).log()

    def loss(x: Tensor) -> Tensor:
        return sparse_kd_loss(x, torch.tensor([[2]]), half, half[:, 0], temperature=2.0)

    _, gradient = graded(loss, torch.zeros(1, 4))
    assert gradient[0].tolist() == pytest.approx([1 / 6, 1 / 6, -1 / 2, 1 / 6])


def test_sampled_kd_by_hand():
    # T = 1, equal logits of 4 classes: ln softmax = -ln 4; weights 3/4 and 1/4, entropy 0.6
    loss = sampled_kd_loss(
        torch.zeros(1, 4),
        torch.tensor([[0, 3]]),
        torch.tensor([[0.75, 0.25]]),
        torch.tensor([0.6]),
        temperature=1.0,
    )
    assert loss.item() == pytest.approx(math.log(4) - 0.6)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(6, 40), (2, 3, 40)])
def test_all_classes_are_kd(
    loss: Callable[..., Tensor], temperature: float, shape: tuple[int, ...]
):
    student, teacher = logits(1, shape=shape), logits(2, shape=shape)
    value, gradient = graded(lambda x: loss(x, teacher, 40, temperature), student)
    expected, dense = graded(
        lambda x: kd_loss(x.flatten(0, -2), teacher.flatten(0, -2), temperature=temperature),
        student,
    )
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, dense, rtol=1e-5, atol=1e-5)


def test_a_bucket_for_the_rest_is_a_lower_bound():
    student, teacher = logits(1), logits(2)
    values = [of_top(student, teacher, k, 2.0).item() for k in (1, 4, 16, 40)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(kd_loss(student, teacher, temperature=2.0).item(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_draws_have_no_bias(k: int):
    student, teacher = logits(1), logits(2)
    expected, dense = graded(lambda x: kd_loss(x, teacher, temperature=2.0), student)
    count = 2000  # evenly spread starts: the mean over them is the expectation
    found = [
        graded(lambda x, n=n: of_draw(x, teacher, k, 2.0, u=(n + 0.5) / count), student)
        for n in range(count)
    ]
    value = torch.stack([v for v, _ in found]).mean()
    gradient = torch.stack([g for _, g in found]).mean(0)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradient, dense, rtol=0, atol=3e-3 * float(dense.abs().max()))


@BOTH
def test_gradient_matches_finite_differences(loss: Callable[..., Tensor]):
    teacher = logits(2, shape=(3, 7))
    student = logits(1, shape=(3, 7)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: 3 * loss(x, teacher, 4, 2.0), (student,))


def test_a_student_sure_of_a_kept_class_has_a_finite_gradient():
    student = torch.zeros(1, 40)
    student[0, 0] = 300.0
    value, gradient = graded(lambda x: of_top(x, logits(2, shape=(1, 40)), 4, 1.0), student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] > 0.5  # it is pulled down


@BOTH
def test_half_precision_logits_are_computed_in_float32(loss: Callable[..., Tensor]):
    student = logits(1).bfloat16()
    assert loss(student, logits(2), 8, 1.0) == loss(student.float(), logits(2), 8, 1.0)


def test_terms_read_what_a_cache_keeps():
    names = ("teacher.logits.index", "teacher.logits.log_p", "teacher.logits.rest")
    term = Term(sparse_kd_loss, "student.logits", *names, temperature=2.0)
    assert term.sample_mean
    index, log_p, rest = likeliest(logits(2), 4, 2.0)
    teacher = {"logits.index": index, "logits.log_p": log_p, "logits.rest": rest}
    found = term({"student": {"logits": logits(1)}, "teacher": teacher}, {})
    assert found == of_top(logits(1), logits(2), 4, 2.0)


@pytest.mark.parametrize("loss", [sparse_kd_loss, sampled_kd_loss])
def test_values_out_of_range(loss: Callable[..., Tensor]):
    with pytest.raises(BadSetting, match="temperature must be > 0"):
        Term(loss, "student.logits", "a.index", "a.log_p", "a.rest", temperature=0.0)


def test_kd_of_all_classes_is_the_same_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch):
    student, teacher = logits(1), logits(2)
    whole = graded(lambda x: of_all(x, teacher, 40, 2.0), student)
    monkeypatch.setattr("stillhouse.objectives.sparse.BLOCK", 80)  # two rows
    for one, other in zip(
        graded(lambda x: of_all(x, teacher, 40, 2.0), student), whole, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_class_that_the_teacher_excludes_adds_nothing() -> None:
    """0 ln 0 is 0: torch's kl_div of logarithms gives NaN there, though its gradient is right."""
    teacher = torch.tensor([[0.0, -torch.inf, 0.0], [1.0, 2.0, 3.0]])
    student = torch.tensor([[0.5, 3.0, -0.5], [0.1, 0.2, 0.3]], requires_grad=True)
    loss = fused_kd_loss(student, teacher, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    t, log_s = teacher.softmax(1), student.log_softmax(1)
    first = (0.5 * (math.log(0.5) - log_s[0, [0, 2]])).sum()
    second = (t[1] * (t[1].log() - log_s[1])).sum()
    assert loss.item() == pytest.approx(((first + second) / 2).item(), abs=1e-6)
    torch.testing.assert_close(gradient, (student.softmax(1) - t).detach() / 2)
