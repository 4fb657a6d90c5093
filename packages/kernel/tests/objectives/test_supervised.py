"""Cross-entropy: a number by hand, label smoothing, messages."""

import math

import pytest
import torch

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term


def test_cross_entropy_by_hand():
    # softmax([ln 3, 0]) = [3/4, 1/4]: -ln 3/4 for label 0, -ln 1/4 for label 1; mean of the two
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    loss = cross_entropy_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_label_smoothing_by_hand():
    # s = 0.2, C = 2: target [0.9, 0.1]
    loss = cross_entropy_loss(
        torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]), label_smoothing=0.2
    )
    assert loss.item() == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_term_reads_the_named_role_output_and_column():
    logits = torch.randn(3, 4)
    labels = torch.tensor([0, 3, 1], dtype=torch.int32)
    term = Term(cross_entropy_loss, "small.scores", "batch.classes")
    loss = term({"small": {"scores": logits}}, {"classes": labels})
    assert loss == cross_entropy_loss(logits, labels)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_label_smoothing_out_of_range(value: float):
    with pytest.raises(
        BadSetting, match=r"label_smoothing must be (a finite number )?>= 0 and < 1 \(got"
    ):
        Term(cross_entropy_loss, "student.logits", "batch.labels", label_smoothing=value)


def test_missing_role_output_and_column_name_what_is_there():
    outputs, batch = {"student": {"logits": torch.zeros(1, 2)}}, {"labels": torch.tensor([0])}
    with pytest.raises(UnknownName, match=r"unknown role 'studnet'. Did you mean 'student'"):
        Term(cross_entropy_loss, "studnet.logits", "batch.labels")(outputs, batch)
    with pytest.raises(UnknownName, match=r"role 'student': unknown output 'logit'. Did you mean"):
        Term(cross_entropy_loss, "student.logit", "batch.labels")(outputs, batch)
    with pytest.raises(UnknownName, match=r"batch: unknown column 'label'. Did you mean 'labels'"):
        Term(cross_entropy_loss, "student.logits", "batch.label")(outputs, batch)
