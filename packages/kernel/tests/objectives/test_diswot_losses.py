"""DisWOT's M_s and M_r as losses, in the code's form and the paper's."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.relations import (
    diswot_relation_loss,
    diswot_semantic_loss,
    ickd_loss,
    sp_loss,
)
from stillhouse.objectives.term import Term

FORMS = pytest.mark.parametrize("form", ["code", "paper"])


def maps(seed: int, size: int = 3, channels: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(3, channels, size, size, generator=rng, dtype=torch.float64)


def channels(*values: float) -> Tensor:
    """One sample of one pixel."""
    return torch.tensor(values)[None, :, None, None]


def test_semantic_by_hand():
    # student (1, 1): F F^T all 1, of 2-norm 2; teacher (2, 0): [4, 0], [0, 0], of 2-norm 4
    student, teacher = channels(1.0, 1.0), channels(2.0, 0.0)
    # paper: halves against [1, 0], [0, 0]: 2-norm 1, over C^2 = 4
    paper = diswot_semantic_loss(student, teacher, form="paper")
    assert paper.item() == pytest.approx(1 / 4)
    # code: unit rows (h, h) and (h, h), h = 1 / sqrt 2, against (1, 0) and (0, 0)
    # squares (1 - h)^2 + h^2 = 2 - sqrt 2, and 1; over C = 2
    code = diswot_semantic_loss(student, teacher, form="code")
    assert code.item() == pytest.approx((3 - math.sqrt(2)) / 2)


def test_relation_by_hand():
    # two samples of one number. student 1, 1: A A^T all 1; teacher 3, 0: [9, 0], [0, 0]
    student, teacher = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [0.0]])
    paper = diswot_relation_loss(student, teacher, form="paper")
    assert paper.item() == pytest.approx(1 / 4)
    code = diswot_relation_loss(student, teacher, form="code")
    assert code.item() == pytest.approx((3 - math.sqrt(2)) / 4)


def test_the_code_has_losses_of_other_papers():
    student, teacher = maps(0, size=2), maps(1)
    assert torch.equal(diswot_semantic_loss(student, teacher), ickd_loss(student, teacher))
    assert torch.equal(diswot_relation_loss(student, teacher), sp_loss(student, teacher))


def test_semantic_of_the_paper_against_a_loop():
    student, teacher = maps(0, size=2), maps(1)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        grams = [f.flatten(1) @ f.flatten(1).mT for f in (s, t)]
        s_gram, t_gram = (g / math.sqrt(sum(float(v) ** 2 for v in g.flatten())) for g in grams)
        gap = math.sqrt(sum(float(v) ** 2 for v in (s_gram - t_gram).flatten()))
        total += gap / 4**2
    loss = diswot_semantic_loss(student, teacher, form="paper")
    assert loss.item() == pytest.approx(total / 3)


@FORMS
@pytest.mark.parametrize("loss", [diswot_semantic_loss, diswot_relation_loss])
def test_zero_when_equal_and_blind_to_scale(loss: Any, form: str):
    x, y = maps(0), maps(1)
    assert loss(x, x, form=form).item() == pytest.approx(0, abs=1e-12)
    assert loss(3 * x, y, form=form).item() == pytest.approx(loss(x, y, form=form).item())
    assert loss(x, y, form=form) > 0


@FORMS
@pytest.mark.parametrize("loss", [diswot_semantic_loss, diswot_relation_loss])
def test_only_the_student_learns_and_its_gradient_is_finite(loss: Any, form: str):
    student, teacher = maps(0).requires_grad_(), maps(1).requires_grad_()
    loss(student, teacher, form=form).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0
    # equal maps, where a 2-norm has no slope, and a dead map, which has no direction
    for x in (maps(1), torch.zeros(3, 4, 3, 3, dtype=torch.float64)):
        student = x.requires_grad_()
        loss(student, teacher, form=form).backward()
        assert bool(student.grad.isfinite().all())


@FORMS
def test_terms_read_their_roles(form: Any):
    outputs = {
        "student": {"hint3": maps(0)},
        "projector": {"hint3": maps(2)},
        "teacher": {"hint3": maps(1)},
    }
    semantic = Term(diswot_semantic_loss, "projector.hint3", "teacher.hint3", form=form)
    semantic = semantic(outputs, {})
    assert torch.equal(semantic, diswot_semantic_loss(maps(2), maps(1), form=form))
    relation = Term(diswot_relation_loss, "student.hint3", "teacher.hint3", form=form)
    relation = relation(outputs, {})
    assert torch.equal(relation, diswot_relation_loss(maps(0), maps(1), form=form))


def test_another_form_is_refused():
    unchecked: Any = inspect.unwrap(diswot_relation_loss)  # the types' own check comes first
    with pytest.raises(BadSetting, match=r"form must be one of code, paper \(got 'papers'\)"):
        unchecked(maps(0), maps(1), form="papers")
    with pytest.raises(BadSetting, match=r"form must be one of code, paper \(got 'papers'\)"):
        Term(diswot_semantic_loss, "student.hint3", "teacher.hint3", form="papers")
