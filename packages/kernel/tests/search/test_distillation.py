"""Losses of distillation as scores: which outputs each compares, equal networks, messages."""

import copy

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.features import at_loss
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.relations import (
    cc_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from stillhouse.objectives.statistics import kdsvd_loss, nst_loss
from stillhouse.search.proxies import (
    METHODS,
    distillation_score,
    head_gradient,
    seen,
    semantic_distance,
)

from .networks import Small, batch, small


def loss_of(method: str, s: dict[str, Tensor], t: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Each loss from the outputs, spelt out."""
    es, et = s["embedding"], t["embedding"]
    gs, gt = head_gradient(s["logits"], es, labels), head_gradient(t["logits"], et, labels)
    maps = [(s[name], t[name]) for name in ("hint1", "hint2")]
    return {
        "kd": kd_loss(s["logits"], t["logits"], temperature=4.0),
        "fitnet": (es - et).square().mean(),
        "rkd": 25 * rkd_distance_loss(es, et) + 50 * rkd_angle_loss(es, et),
        "pkt": pkt_loss(es, et),
        "cc": cc_loss(es, et, kernel="gaussian"),
        "at": at_loss(*maps[0]) + at_loss(*maps[1]),
        "nst": nst_loss(*maps[0]) + nst_loss(*maps[1]),
        "kdsvd": kdsvd_loss([maps[0][0], maps[1][0]], [maps[0][1], maps[1][1]]),
        "sp": sp_loss(*maps[1]),
        "ickd": semantic_distance(gt, gs),
    }[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_minus_the_loss_of_train_mode(method: str):
    images, labels = batch()
    teacher, student = small(0).eval(), small(1).eval()
    before = copy.deepcopy(student.state_dict())
    found = distillation_score(teacher, student, images, labels, method=method)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not student.training
    outputs = [n.train()({"images": images}) for n in (student, teacher)]
    expected = -loss_of(method, *outputs, labels).item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < -1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_itself_scores_zero(method: str):
    found = distillation_score(small(0), small(0), *batch(), method=method)
    assert found == pytest.approx(0, abs=1e-5)


def test_what_was_seen_serves_every_method():
    given = batch()
    teacher, student = small(0), small(1)
    t, s = (seen(network, *given) for network in (teacher, student))
    for method in METHODS:
        live = distillation_score(teacher, student, *given, method=method)
        assert distillation_score(t, s, *given, method=method) == live
    with pytest.raises(BadSetting, match="at least 2 images"):
        seen(teacher, given[0][:1], given[1][:1])


def test_what_cannot_be_compared_says_so():
    given = (small(0), small(1, (4, 3)), *batch())
    for method in ("kd", "rkd", "pkt", "cc", "at", "nst", "sp", "ickd"):
        assert distillation_score(*given, method=method) < 0
    with pytest.raises(BadSetting, match=r"embeddings of one width \(got 3 and 6\)"):
        distillation_score(*given, method="fitnet")
    with pytest.raises(BadSetting, match=r"equally many \(got 3 and 6\)"):
        distillation_score(*given, method="kdsvd")
    with pytest.raises(UnknownName, match=r"unknown method 'kds'. Did you mean 'kd"):
        distillation_score(*given, method="kds")


class OneMap(Small):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for k, v in super().forward(batch).items() if k != "hint2"}


def test_another_number_of_stages_says_so():
    with pytest.raises(BadSetting, match=r"equally many stages .* \(got 1 and 2\)"):
        distillation_score(small(), OneMap(), *batch(), method="at")
