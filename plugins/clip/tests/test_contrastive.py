"""CLIP's loss of pairs, against numbers worked by hand and a slow version."""

import math

import pytest
import torch

from stillhouse.errors import BadSetting
from stillhouse_clip.objectives import scaled_contrastive_loss, symmetric_contrastive_loss


def test_pairs_worked_by_hand() -> None:
    """Cosines 1 and 0 with their own and other text: each row is log(1 + e^-2)."""
    image, text = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.eye(2)
    found = symmetric_contrastive_loss(image, text, scale=2.0)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    swapped = symmetric_contrastive_loss(image, text.flip(0), scale=2.0)
    assert float(swapped) == pytest.approx(2 + math.log(1 + math.exp(-2)), rel=1e-6)


def test_pairs_of_one_class_are_no_negatives() -> None:
    """Both texts are of the class of both images, and all alike: log 2, which is the least there."""
    image, text = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([4, 4])
    found = symmetric_contrastive_loss(image, text, scale=5.0, labels=labels)
    assert float(found) == pytest.approx(math.log(2), rel=1e-6)


def test_a_slow_version_agrees() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(7, 5), torch.randn(7, 5)
    labels = torch.tensor([0, 1, 0, 2, 3, 3, 3])
    scale, total = 3.7, 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(7):
            scores = [scale * torch.cosine_similarity(a[i], b[j], dim=0) for j in range(7)]
            norm = torch.logsumexp(torch.stack(scores), 0)
            own = [j for j in range(7) if labels[j] == labels[i]]
            total += sum(float(norm - scores[j]) for j in own) / len(own) / 14
    found = scaled_contrastive_loss(image, text, torch.tensor(scale), labels)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_both_sides_and_the_scale_learn() -> None:
    image, text = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    scaled_contrastive_loss(image, text, scale, torch.arange(4)).backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (image, text, scale))
    with pytest.raises(BadSetting, match="scale must be > 0"):
        symmetric_contrastive_loss(image, text, scale=0.0)
