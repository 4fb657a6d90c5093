import math

import pytest
import torch
from torch import nn

from stillhouse.errors import BadSetting
from stillhouse_contracts.objectives import (
    BatchStatistics,
    adversarial_loss,
    balance_loss,
    binary_kd_loss,
    label_loss,
    one_hot_loss,
    pseudo_label_loss,
    student_terms,
)

ZERO, LOG3 = torch.zeros(1, 1), torch.full((1, 1), math.log(3))
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of shares 3/4 and 1/2


def test_binary_kd_by_hand() -> None:
    assert float(binary_kd_loss(ZERO, LOG3, temperature=1)) == pytest.approx(KL)
    # at temperature 2 twice the logit has the same share, and the square is 4
    assert float(binary_kd_loss(ZERO, 2 * LOG3, temperature=2)) == pytest.approx(4 * KL)
    assert float(binary_kd_loss(LOG3, LOG3)) == pytest.approx(0, abs=1e-7)
    with pytest.raises(BadSetting, match="temperature"):
        binary_kd_loss(ZERO, LOG3, temperature=0)


def test_binary_kd_reaches_the_student_alone() -> None:
    student, teacher = ZERO.clone().requires_grad_(), LOG3.clone().requires_grad_()
    binary_kd_loss(student, teacher, temperature=1).backward()
    assert student.grad is not None
    assert float(student.grad) == pytest.approx(0.5 - 0.75)
    assert teacher.grad is None


def test_functions_with_a_type_weigh_as_much_as_is_said() -> None:
    yes, no = torch.ones(1, 1), torch.zeros(1, 1)
    assert float(label_loss(LOG3, yes, positive=5)) == pytest.approx(-5 * math.log(0.75))
    assert float(label_loss(LOG3, no, positive=5)) == pytest.approx(-math.log(0.25))
    with pytest.raises(BadSetting, match="positive"):
        label_loss(LOG3, yes, positive=0)


def test_terms_of_labels_by_hand() -> None:
    assert float(label_loss(ZERO, torch.ones(1, 1))) == pytest.approx(math.log(2))
    assert float(pseudo_label_loss(LOG3, LOG3)) == pytest.approx(-math.log(0.75))
    assert float(pseudo_label_loss(LOG3, -LOG3)) == pytest.approx(-math.log(0.25))
    assert float(one_hot_loss(LOG3)) == float(one_hot_loss(-LOG3)) == pytest.approx(0.2876821)


def test_balance_by_hand() -> None:
    # a mean share of 3/4, from a target of 1/2
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(balance_loss(LOG3.repeat(4, 1))) == pytest.approx(expected)
    assert float(balance_loss(torch.cat([LOG3, -LOG3]))) == pytest.approx(0, abs=1e-7)
    assert math.isfinite(float(balance_loss(torch.full((2, 1), 500.0))))


def test_adversarial_is_the_distillation_loss_turned_round_with_both_gradients() -> None:
    student, teacher = ZERO.clone().requires_grad_(), LOG3.clone().requires_grad_()
    loss = adversarial_loss(student, teacher)
    assert float(loss.detach()) == pytest.approx(-KL)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is not None
    # d KL / d t = p (1 - p) (t - s)
    assert float(teacher.grad) == pytest.approx(-0.75 * 0.25 * math.log(3))


def test_batch_statistics_by_hand() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2)).eval()
    x = torch.tensor([[[1.0], [0.0]], [[3.0], [0.0]]], requires_grad=True)
    with BatchStatistics(network=network) as statistics:
        network(x)
    # means 2 and 0 against 0, variances 1 and 0 against 1: 4 + 0 + 0 + 1
    assert float(statistics.loss.detach()) == 5
    statistics.loss.backward()
    assert x.grad is not None
    network(x)
    assert float(statistics.loss.detach()) == 5, "it hears nothing behind its end"


def test_a_network_without_such_layers_has_no_statistics() -> None:
    network = nn.Linear(1, 1)
    with BatchStatistics(network=network) as statistics:
        network(ZERO)
    assert float(statistics.loss) == 0


def test_the_students_terms_are_weighted() -> None:
    terms = student_terms(ZERO, LOG3, alpha=0.7, temperature=1)
    assert float(terms["kd"]) == pytest.approx(0.7 * KL)
    assert float(terms["label"]) == pytest.approx(0.3 * math.log(2))
