"""The losses of VLM-OOD against numbers worked by hand and slow versions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.objectives.term import Term
from stillhouse_clip.objectives import (
    caption_loss,
    classification_loss,
    contrastive_imitation_loss,
    imitation_loss,
    proximity_loss,
)

EYE = torch.eye(2)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / a.norm() / b.norm())


def softmax(values: list[float]) -> list[float]:
    top = [math.exp(v - max(values)) for v in values]
    return [v / sum(top) for v in top]


def test_classification_by_hand() -> None:
    """Cosines 0.6 and 0.8 at temperature 0.5: 1.2 and 1.6; label 0: log(1 + e^0.4)."""
    student, text = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    found = classification_loss(student, text, torch.tensor([0]), temperature=0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(0.4)), rel=1e-6)


def test_imitation_by_hand() -> None:
    """A right angle and none: squared distances 2 and 0. As they are: |(3, -4)|^2 = 25 and 4."""
    student = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert float(imitation_loss(student, teacher)) == pytest.approx(1.0)
    found = imitation_loss(student, teacher, normalized=False)
    assert float(found) == pytest.approx(math.log(1 + (25 + 4) / 2 / 10), rel=1e-6)


def test_contrastive_imitation_by_hand() -> None:
    """s0 = t0, s1 at 45 degrees between both: logits [[1, 0], [r, r]] / 0.5 with r = sqrt(1/2)."""
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    r = math.sqrt(0.5)
    single = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    back = (math.log(1 + math.exp(2 * r - 2)) + math.log(1 + math.exp(-2 * r))) / 2
    found = contrastive_imitation_loss(student, EYE, temperature=0.5, mode="single")
    assert float(found) == pytest.approx(single, rel=1e-6)
    found = contrastive_imitation_loss(student, EYE, temperature=0.5)
    assert float(found) == pytest.approx((single + back) / 2, rel=1e-6)


@pytest.mark.parametrize("mode", ["bidirectional", "single"])
def test_the_written_distance_is_the_cosine_at_half_the_temperature(mode: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    written = contrastive_imitation_loss(
        student, teacher, temperature=0.4, mode=mode, distance="sqeuclid"
    )
    cos = contrastive_imitation_loss(student, teacher, temperature=0.2, mode=mode)
    assert float(written) == pytest.approx(float(cos), rel=1e-5)
    # and by its own formula
    s, t = F.normalize(student), F.normalize(teacher)
    logits = -torch.cdist(s, t).square() / 0.4
    slow = -logits.log_softmax(1).diagonal().mean()
    if mode == "bidirectional":
        slow = (slow - logits.mT.log_softmax(1).diagonal().mean()) / 2
    assert float(written) == pytest.approx(float(slow), rel=1e-4)


def slow_proximity(
    student: Tensor, teacher: Tensor, text: Tensor, labels: Tensor, k: int, t: float, keep: bool
) -> float:
    found = list[float]()
    for s, u, label in zip(student, teacher, labels.tolist(), strict=True):
        taught = [cosine(u, w) / t for w in text]
        order = sorted(range(len(text)), key=lambda c: -taught[c])
        if not keep and order[0] != label:
            continue
        order = order[:k]
        p = softmax([taught[c] for c in order])
        q = softmax([cosine(s, text[c]) / t for c in order])
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("k", [1, 3, 6, 256])
@pytest.mark.parametrize("filtered", [True, False])
def test_proximity_agrees_with_a_slow_version(k: int, filtered: bool) -> None:
    torch.manual_seed(1)
    student, teacher, text = torch.randn(12, 4), torch.randn(12, 4), torch.randn(6, 4)
    labels = torch.randint(6, (12,))
    found = proximity_loss(student, teacher, text, labels, k=k, temperature=0.3, filtered=filtered)
    slow = slow_proximity(student, teacher, text, labels, k, 0.3, not filtered)
    assert float(found) == pytest.approx(slow, rel=1e-4, abs=1e-6)
    assert slow > 0 or k == 1


def test_proximity_divides_by_what_is_kept() -> None:
    """One of two images is kept: the mean is over that one alone, not over both."""
    student = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1])  # the teacher says 0 of both
    found = proximity_loss(student, teacher, EYE, labels, k=2, temperature=1.0)
    p = softmax([1.0, 0.0])
    alone = p[0] * math.log(p[0] / 0.5) + p[1] * math.log(p[1] / 0.5)
    assert float(found) == pytest.approx(alone, rel=1e-6)


def test_proximity_of_a_teacher_that_is_always_wrong_is_nothing() -> None:
    student = torch.randn(3, 2, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    found = proximity_loss(student, teacher, EYE, torch.ones(3).long(), k=2, temperature=0.07)
    found.backward()
    assert float(found.detach()) == 0
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_captions_by_hand() -> None:
    """Three images, two of one class: the caption of the other of its class is no negative."""
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    found = caption_loss(student, captions, torch.tensor([5, 5, 7]))
    pair = math.log(1 + math.exp(-1))
    assert float(found) == pytest.approx((2 * pair + math.log(1 + 2 * math.exp(-1))) / 3, rel=1e-5)


def test_only_the_student_and_the_texts_learn() -> None:
    student, teacher, text = (torch.randn(4, 3, requires_grad=True) for _ in range(3))
    labels = torch.arange(4)
    total = classification_loss(student, text, labels, temperature=0.07)
    total = total + imitation_loss(student, teacher)
    total = total + contrastive_imitation_loss(student, teacher, temperature=0.07)
    total = total + proximity_loss(
        student, teacher, text, labels, k=2, temperature=0.07, filtered=False
    )
    (total + caption_loss(student, teacher, labels)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert text.grad is not None


def test_scale_of_an_embedding_says_nothing() -> None:
    torch.manual_seed(2)
    student, teacher, text, labels = (
        torch.randn(4, 3),
        torch.randn(4, 3),
        EYE.repeat(2, 2)[:, :3],
        torch.arange(4),
    )
    for loss in (
        lambda s, t: classification_loss(s, text, labels, temperature=0.1),
        imitation_loss,
        lambda s, t: contrastive_imitation_loss(s, t, temperature=0.1),
        lambda s, t: proximity_loss(s, t, text, labels, k=3, temperature=0.1, filtered=False),
        lambda s, t: caption_loss(s, t, labels),
    ):
        assert float(loss(5 * student, 3 * teacher)) == pytest.approx(
            float(loss(student, teacher)), rel=1e-4
        )


def test_wrong_input_is_one_line() -> None:
    x, text = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(BadData, match=r"labels 0 to 4, but the class texts have 4 rows"):
        classification_loss(x, text, torch.tensor([0, 4]), temperature=0.1)
    with pytest.raises(BadData, match=r"labels -1 to 2"):
        proximity_loss(x, x, text, torch.tensor([-1, 2]), k=2, temperature=0.1)
    with pytest.raises(BadSetting, match="temperature must be"):
        classification_loss(x, text, torch.tensor([0, 1]), temperature=0.0)
    with pytest.raises(BadSetting, match="mode must be"):
        Term(contrastive_imitation_loss, "s.a", "t.a", mode="both")
    with pytest.raises(BadSetting, match="k must be"):
        Term(proximity_loss, "s.a", "t.a", "b.c", "batch.labels", k=0)
    with pytest.raises(BadRecipe):
        Term(classification_loss, "s.a", "b.c")
