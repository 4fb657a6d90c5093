"""Losses of hidden states and a head, by chunks of tokens: exact, whatever the chunk."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.objectives.chunked import Head, chunked
from stillhouse.objectives.declared import SampleMean
from stillhouse.objectives.language import (
    lm_cross_entropy_loss,
    lm_kd_loss,
    lm_sampled_kd_loss,
    lm_sparse_kd_loss,
)
from stillhouse.objectives.logits import dist_loss, kd_loss
from stillhouse.objectives.sparse import sparse_kd_loss
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.sparse import drawn, likeliest

TOKENS, CLASSES = (2, 5), 11
KD = partial(kd_loss, temperature=2.0)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parts(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias of a student."""
    shapes = ((*TOKENS, 4), (CLASSES, 4), (CLASSES,))
    return tuple(normal(n, *s, dtype=dtype).requires_grad_() for n, s in enumerate(shapes))  # pyright: ignore[reportReturnType]


TEACHER = Head(hidden=normal(7, *TOKENS, 3), weight=normal(8, CLASSES, 3), softcap=2.0)
LABELS = torch.randint(CLASSES, TOKENS, generator=torch.Generator().manual_seed(9))
MASK = torch.tensor([[True, False, True, True, False], [False, True, True, True, True]])


def student(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **more: float) -> Head:
    return Head(hidden=hidden, weight=weight, bias=bias, **more)


def rows(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.flatten(0, 1) if mask is None else x[mask]


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("more", [{}, {"scale": 0.5, "softcap": 3.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("target", [LABELS, TEACHER, TEACHER.logits()], ids=["labels", "head", "logits"])  # fmt: skip
def test_it_is_the_dense_loss(chunk: int, mask: Tensor | None, more: dict, target: Any):
    loss = cross_entropy_loss if target is LABELS else KD
    whole = target.logits() if isinstance(target, Head) else target
    given = parts()
    found = chunked(loss, student(*given, **more), target, mask=mask, chunk=chunk)
    dense = loss(rows(student(*given, **more).logits(), mask), rows(whole, mask))
    torch.testing.assert_close(found, dense)
    for one, other in zip(
        torch.autograd.grad(3 * found, given), torch.autograd.grad(3 * dense, given), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_gradients_match_finite_differences():
    def loss(*given: Tensor) -> Tensor:
        return 3 * chunked(KD, student(*given, softcap=3.0), TEACHER, mask=MASK, chunk=3)

    assert torch.autograd.gradcheck(loss, parts())


def test_float32_of_many_classes():
    hidden = normal(1, 200, 16, dtype=torch.float32).requires_grad_()
    weight = normal(2, 3000, 16, dtype=torch.float32).requires_grad_()
    teacher = normal(3, 200, 3000, dtype=torch.float32) * 3
    kept = likeliest(teacher, 3000, 2.0)
    found = lm_sparse_kd_loss(hidden, weight, *kept, temperature=2.0, chunk=64)
    dense = kd_loss(hidden @ weight.T, teacher, temperature=2.0)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight)),
        torch.autograd.grad(dense, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _mean_of_rows(logits: Tensor, seen: Tensor) -> SampleMean:
    sizes.append(len(logits))
    return (logits[:, 0] * seen).mean()


sizes: list[int] = []


def test_no_more_rows_than_a_chunk_are_there_at_a_time_and_none_that_do_not_count():
    sizes.clear()
    chunked(_mean_of_rows, student(*parts()), torch.ones(TOKENS), mask=MASK, chunk=3)
    assert sizes == [3, 3, 1]


def test_nothing_that_counts_is_zero():
    given = parts()
    loss = chunked(KD, student(*given), TEACHER, mask=torch.zeros(TOKENS, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all(not x.grad.any() for x in given)


def test_what_is_frozen_gets_no_gradient_and_evaluation_computes_none():
    hidden, weight, bias = parts()
    loss = chunked(KD, student(hidden, weight.detach(), bias.detach()), TEACHER, chunk=3)
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not chunked(KD, student(hidden, weight, bias), TEACHER).requires_grad


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_products_have_float32_losses(autocast: bool):
    hidden, weight, _ = parts(torch.float32)
    labels = LABELS.flatten()
    if not autocast:
        hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = chunked(cross_entropy_loss, student(hidden, weight), LABELS, chunk=4)
        dense = cross_entropy_loss(F.linear(hidden, weight).flatten(0, 1), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight)),
        torch.autograd.grad(dense, (hidden, weight)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


def test_a_step_of_an_optimizer_is_that_of_the_dense_loss():
    ends = []
    for by_chunks in (True, False):
        torch.manual_seed(0)
        head = nn.Linear(4, CLASSES)
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)
        for n in range(5):
            one = student(normal(n, *TOKENS, 4, dtype=torch.float32), head.weight, head.bias)
            loss = (
                chunked(cross_entropy_loss, one, LABELS, chunk=3)
                if by_chunks
                else cross_entropy_loss(one.logits().flatten(0, 1), LABELS.flatten())
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(head.weight.detach())
    torch.testing.assert_close(*ends)


def test_terms_of_language_models():
    hidden, weight, _ = parts(torch.float32)
    teacher = replace(TEACHER, hidden=TEACHER.hidden.float(), weight=TEACHER.weight.float())
    whole = teacher.logits()
    u = torch.full(TOKENS, 0.5)
    index, log_weight, entropy = drawn(whole, CLASSES, 2.0, u)
    outputs = {
        "student": {"hidden": hidden, "head": weight},
        "teacher": {"hidden": teacher.hidden, "head": teacher.weight},
        "kept": dict(zip(("index", "log_p", "rest"), likeliest(whole, CLASSES, 2.0), strict=True)),
        "drawn": {"index": index, "weight": log_weight.exp(), "entropy": entropy},
    }
    batch = {"mask": MASK, "labels": torch.where(MASK, LABELS, -100)}
    head, few = ("student.hidden", "student.head"), {"temperature": 2.0, "chunk": 3}
    dense = rows(hidden @ weight.T, MASK)
    kd = kd_loss(dense, rows(whole, MASK), temperature=2.0)
    ce = F.cross_entropy(dense, LABELS[MASK])
    for term, expected in (
        (Term(lm_cross_entropy_loss, *head, "batch.labels", chunk=3), ce),
        (Term(lm_kd_loss, *head, "teacher.hidden", "teacher.head", "batch.mask", teacher_softcap=2.0, **few), kd),
        (Term(lm_sparse_kd_loss, *head, "kept.index", "kept.log_p", "kept.rest", "batch.mask", **few), kd),
        (Term(lm_sampled_kd_loss, *head, "drawn.index", "drawn.weight", "drawn.entropy", "batch.mask", **few), kd),
    ):  # fmt: skip
        assert not term.sample_mean  # micro-batches may have other numbers of tokens that count
        torch.testing.assert_close(term(outputs, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s: chunked(partial(dist_loss, beta=1.0), s, TEACHER),
            BadRecipe,
            "declares no SampleMean",
        ),
        (lambda s: chunked(KD, s, TEACHER, chunk=0), BadSetting, r"chunk must be >= 1 token \(got 0\)"),
        (
            lambda s: chunked(KD, s, TEACHER.logits()[0]),
            BadData,
            r"target 1 is of \[5, 11\], hidden states of tokens \[2, 5\]",
        ),
        (
            lambda s: chunked(KD, s, TEACHER, mask=MASK[:1]),
            BadData,
            r"mask is of \[1, 5\], hidden states of tokens \[2, 5\]",
        ),
        (
            lambda s: lm_kd_loss(s.hidden, s.weight, s.hidden, s.weight, temperature=1.0, softcap=0.0),
            BadSetting,
            "softcap must be > 0",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call: Callable[[Head], Tensor], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call(student(*parts()))


def test_a_sparse_target_of_part_of_the_classes():
    hidden, weight, bias = parts()
    kept = likeliest(TEACHER.logits(), 3, 1.0)
    loss = partial(sparse_kd_loss, temperature=1.0)
    found = chunked(loss, student(hidden, weight, bias), *kept, chunk=4)
    dense = sparse_kd_loss(student(hidden, weight, bias).logits(), *kept, temperature=1.0)
    torch.testing.assert_close(found, dense)
    assert math.isfinite(found.item())
