"""The relation loss by numbers worked by hand, and against slow versions."""

import math

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse_language import relation_loss
from stillhouse_language.relations import Kind

KINDS: tuple[Kind, ...] = ("mse_softmax", "mse_scores", "kl")


def slow(teacher: Tensor, student: Tensor, mask: Tensor, heads: int, kind: Kind) -> float:
    """By loops, sample by sample, head by head, query by query."""
    total, rows = 0.0, 0
    samples: list[float] = []
    for b in range(len(mask)):
        keys = [j for j in range(mask.shape[1]) if mask[b, j]]
        found: list[float] = []
        for h in range(heads):
            for i in range(mask.shape[1]):
                scores = [
                    [
                        float(x[b, i, h * k : h * k + k] @ x[b, j, h * k : h * k + k]) / k**0.5
                        for j in keys
                    ]
                    for x, k in ((teacher, teacher.shape[2] // heads),
                                 (student, student.shape[2] // heads))
                ]  # fmt: skip
                if kind != "mse_scores":
                    scores = [[math.exp(s) / sum(map(math.exp, each)) for s in each]
                              for each in scores]  # fmt: skip
                t, s = scores
                if kind == "kl":
                    if mask[b, i]:
                        found.append(sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)))
                else:
                    total += sum((p - q) ** 2 for p, q in zip(t, s, strict=True))
                    rows += mask.shape[1]
        samples.append(sum(found) / max(1, len(found)))
    return sum(samples) / len(samples) if kind == "kl" else total / rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [12, 14, 9])
def test_it_is_the_slow_version(kind: Kind, channels: int) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(3, 5, 8), torch.randn(3, 5, channels)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = relation_loss(teacher, student, mask, heads=4, kind=kind)
    assert float(found) == pytest.approx(slow(teacher, student, mask, 4, kind), rel=1e-5)


def test_two_tokens_by_hand() -> None:
    # one channel a head, d_k = 1: teacher (1, 0), student (2, 0); scores of query 0: (1, 0), (4, 0)
    teacher, student = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[2.0], [0.0]]])
    mask = torch.ones(1, 2, dtype=torch.int64)
    scores = relation_loss(teacher, student, mask, heads=1, kind="mse_scores")
    assert float(scores) == pytest.approx((4 - 1) ** 2 / 4)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-4))
    softmax = relation_loss(teacher, student, mask, heads=1)
    assert float(softmax) == pytest.approx(2 * (p - q) ** 2 / 4, rel=1e-5)
    kl = relation_loss(teacher, student, mask, heads=1, kind="kl")
    # the second query is even in both
    by_hand = (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    assert float(kl) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_networks_have_none_and_padding_changes_nothing_but_the_mean(kind: Kind) -> None:
    torch.manual_seed(1)
    both = torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert float(relation_loss(both, both.clone(), mask, heads=3, kind=kind)) < 1e-10
    # what stands at masked keys does not count: neither as a key nor, in kl, as a query
    student = torch.randn(2, 4, 6)
    changed = student.clone()
    changed[1, 2:] += 5 * (kind == "kl")
    one = relation_loss(both, student, mask, heads=3, kind=kind)
    assert float(relation_loss(both, changed, mask, heads=3, kind=kind)) == pytest.approx(
        float(one), rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_finite_under_padding_and_of_the_student_alone(kind: Kind) -> None:
    """`F.kl_div(log_target=True)` is NaN where the teacher's log-probability is -inf, as it is at
    masked keys; here every value is finite.
    """
    torch.manual_seed(2)
    teacher, student = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = relation_loss(teacher, student, mask, heads=2, kind=kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0


def test_a_mean_over_samples_may_go_in_micro_batches() -> None:
    torch.manual_seed(3)
    teacher, student = torch.randn(4, 5, 8), torch.randn(4, 5, 6)
    mask = (torch.rand(4, 5) < 0.7).long()
    mask[:, 0] = 1
    for kind in KINDS:
        whole = relation_loss(teacher, student, mask, heads=2, kind=kind)
        parts = [
            relation_loss(
                teacher[i : i + 1], student[i : i + 1], mask[i : i + 1], heads=2, kind=kind
            )
            for i in range(4)
        ]
        assert float(torch.stack(parts).mean()) == pytest.approx(float(whole), rel=1e-5)


def test_more_heads_than_channels_are_refused() -> None:
    with pytest.raises(BadSetting, match="4 channels cannot be split over 12 heads"):
        relation_loss(
            torch.zeros(1, 2, 24), torch.zeros(1, 2, 4), torch.ones(1, 2).long(), heads=12
        )


def test_half_precision_scores_do_not_drown_in_the_mask() -> None:
    """A mask of -10000 added to scores leaves fp16 steps of 8; left out, differences stay."""
    teacher = torch.tensor([[[1.0], [0.5], [9.0]]], dtype=torch.float16)
    student = torch.tensor([[[1.1], [0.5], [7.0]]], dtype=torch.float16)
    mask = torch.tensor([[1, 1, 0]])
    found = relation_loss(teacher, student, mask, heads=1, kind="mse_scores")
    full = relation_loss(teacher.float(), student.float(), mask, heads=1, kind="mse_scores")
    assert float(found) == pytest.approx(float(full), rel=2e-2)
