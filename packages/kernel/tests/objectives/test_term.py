"""Terms: what they read, what they refuse when they are made, and what follows from them."""

import copy
import dataclasses
import inspect
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import stillhouse.objectives
from stillhouse.digest import digest
from stillhouse.errors import (
    BadRecipe,
    BadSetting,
    ContractError,
    StillhouseError,
    UnknownName,
)
from stillhouse.objectives import (
    Composed,
    Count,
    Optimizer,
    Phase,
    Positive,
    Range,
    SampleMean,
    Term,
    Weighted,
    at_stages_loss,
    contrastive,
    cross_entropy_loss,
    declared,
    dkd_loss,
    features,
    hint_loss,
    info_nce_loss,
    kd_loss,
    logits,
    relations,
    rkd_distance_loss,
    role_loss,
    statistics,
    supervised,
)
from stillhouse.objectives.inputs import fraction, not_negative, positive

LOGITS = ("student.logits", "teacher.logits")
PHASE = Phase(trains=("student",), optimizer=Optimizer(lr=0.1))


def rows(seed: int, *shape: int) -> Tensor:
    rng = Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def scaled_loss(*parts: Tensor, weight: float) -> Tensor:
    return weight * torch.stack([part.mean() for part in parts]).sum()


def test_a_loss_of_ones_own_is_a_term_and_reads_as_many_tensors_as_it_likes():
    term = Term(scaled_loss, "student.a", "student.b.0", "batch.x", weight=2.0)
    given = {"student": {"a": rows(1, 3), "b.0": rows(2, 3)}}
    expected = 2 * (rows(1, 3).mean() + rows(2, 3).mean() + rows(3, 3).mean())
    assert term(given, {"x": rows(3, 3)}).item() == pytest.approx(expected.item())
    assert term.names == ("student.a", "student.b.0", "batch.x")
    assert not term.sample_mean  # it does not say that it is one
    assert Term(F.mse_loss, *LOGITS, reduction="sum").hyperparameters == {"reduction": "sum"}


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: Term(kd_loss, *LOGITS), BadRecipe, "term kd_loss: missing a required.*'temperature'"),
    (lambda: Term(kd_loss, LOGITS[0], temperature=4.0), BadRecipe, "missing.*'teacher_logits'"),
    (lambda: Term(kd_loss, *LOGITS, "batch.labels", temperature=4.0), BadRecipe, "too many pos"),
    (lambda: Term(kd_loss, *LOGITS, temprature=4.0), UnknownName,
     r"term kd_loss: unknown hyperparameter 'temprature'. Did you mean 'temperature'\?"),
    (lambda: Term(kd_loss, *LOGITS, temperature=0), BadSetting, r"temperature must be > 0 \(got 0\)"),
    (lambda: Term(kd_loss, *LOGITS, temperature="4"), BadSetting, "must be a finite number > 0 .got '4'"),
    (lambda: Term(kd_loss, "logits", "teacher.logits", temperature=4.0), BadRecipe,
     "reads 'logits'; say of what, as in 'student.logits' or 'batch.labels'"),
    (lambda: Term(at_stages_loss, ("student.a",), ()), BadRecipe, "pair up one to one .got 1 and 0"),
    (lambda: Term(nn.MSELoss(), *LOGITS), BadRecipe, "must be a module-level function .got MSELoss"),
    (lambda: Term(lambda x: x, LOGITS[0]), BadRecipe, "term <lambda>: a lambda or a function defined"),
    (lambda: Term(nested(), LOGITS[0]), BadRecipe, "term inner: .* move the loss to a module"),
    (lambda: Term(torch.dot, *LOGITS), BadRecipe, "dot: a function of C, whose parameters cannot"),
])  # fmt: skip
def test_what_a_loss_does_not_take_is_refused_when_the_term_is_made(
    make: Callable[[], Term], error: type[StillhouseError], message: str
):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def nested() -> Callable[..., Tensor]:
    def inner(x: Tensor) -> Tensor:
        return x

    return inner


def ranged_loss(
    x: Tensor,
    *,
    width: Positive = 1.0,
    order: Count = 1,
    levels: Annotated[tuple[int, ...], Range(least=1)] = (1,),
    floor: Positive | None = None,
    start: Annotated[float | None, Range(least=0, below=1)] = None,
    kind: Literal["a", "b"] | None = "a",
    margin: float = 0.0,
    steps: Count | Literal["all"] = 1,
) -> Tensor:
    return x


@pytest.mark.parametrize(("name", "value"), [
    ("width", 2), ("width", np.float32(0.5)), ("width", np.int64(2)), ("order", np.int64(2)),
    ("levels", (4, 2)), ("levels", [1]), ("floor", None), ("floor", 0.1), ("start", None), ("start", 0),
    ("kind", None), ("kind", "b"), ("margin", -3), ("steps", "all"), ("steps", 2),
])  # fmt: skip
def test_what_an_annotation_allows(name: str, value: object):
    term = Term(ranged_loss, "student.x", **{name: value})
    assert term.hyperparameters[name] == value
    assert digest(term)  # a number of NumPy is kept as one of Python


@pytest.mark.parametrize(("name", "value", "message"), [
    ("width", True, "width must be a finite number > 0 (got True)"),
    ("width", math.inf, "width must be a finite number > 0 (got inf)"),
    ("width", None, "width must be a finite number > 0 (got None)"),
    ("width", (1.0,), "width must be a finite number > 0 (got (1.0,))"),
    ("width", {}, "width must be a finite number > 0 (got {})"),
    ("width", np.float32(-1), "width must be > 0 (got -1.0)"),
    ("order", 2.0, "order must be a whole number >= 1 (got 2.0)"),
    ("order", True, "order must be a whole number >= 1 (got True)"),
    ("order", 0, "order must be >= 1 (got 0)"),
    ("levels", (2, 1.5), "levels must be one or more whole numbers >= 1 (got (2, 1.5))"),
    ("levels", (2, 0), "levels must be one or more numbers >= 1 (got (2, 0))"),
    ("levels", 2, "levels must be one or more numbers >= 1 (got 2)"),
    ("floor", 0.0, "floor must be > 0 or None (got 0.0)"),
    ("start", 1, "start must be >= 0 and < 1 or None (got 1)"),
    ("kind", "c", "kind must be one of a, b or None (got 'c')"),
    ("margin", math.nan, "margin must be a finite number (got nan)"),
    ("margin", False, "margin must be a finite number (got False)"),
    ("steps", "some", "steps must be a whole number >= 1 or all (got 'some')"),
])  # fmt: skip
def test_what_an_annotation_refuses(name: str, value: object, message: str):
    for _ in range(2):  # what was refused once is refused again
        with pytest.raises(BadSetting) as caught:
            Term(ranged_loss, "student.x", **{name: value})
        assert str(caught.value) == message


@pytest.mark.parametrize("check", [positive, not_negative, fraction])
@pytest.mark.parametrize("value", [True, math.inf, math.nan])
def test_what_is_no_finite_number_is_in_no_range(check: Callable[..., None], value: object):
    with pytest.raises(BadSetting, match=rf"weight must be a finite number .* \(got {value}\)"):
        check("weight", value)


def test_a_range_is_told_by_the_signature_alone():
    for name, value, wrong in (("temperature", 4.0, -1.0), ("alpha", 0.0, -0.1)):
        numbers = {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}
        Term(dkd_loss, *LOGITS, "batch.labels", **{**numbers, name: value})
        with pytest.raises(BadSetting, match=f"{name} must be >=? 0"):
            Term(dkd_loss, *LOGITS, "batch.labels", **{**numbers, name: wrong})


def test_a_term_is_hashed_by_its_loss_reads_and_hyperparameters():
    term = Term(kd_loss, *LOGITS, temperature=4.0)
    assert term == Term(kd_loss, *LOGITS, temperature=4.0)
    others = [
        Term(kd_loss, *LOGITS, temperature=2.0),
        Term(kd_loss, *reversed(LOGITS), temperature=4.0),
        Term(F.mse_loss, *LOGITS),
    ]
    assert len({digest(each) for each in (term, *others)}) == 4


class Net(nn.Module):
    """Doubles what it is fed, or the batch."""

    def __init__(self, source: str = "x") -> None:
        super().__init__()
        self.source, self.seen = source, set[str]()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen = set(given)
        return {"y": self.weight * given[self.source], "z": given[self.source]}


def composed(**changes: object) -> Composed:
    losses = {
        "own": Weighted(term=Term(F.mse_loss, "student.y", "batch.x")),
        "taught": Weighted(term=Term(F.mse_loss, "projector.y", "teacher.y"), weight=0.5),
    }
    phase = Phase(trains=("student", "projector"), optimizer=Optimizer(lr=0.1))
    feeds = {"projector": ("student.y",)}
    return Composed(**{"phases": {"main": phase}, "losses": losses, "feeds": feeds, **changes})


def test_roles_and_what_is_read_of_them_follow_from_terms():
    objective = composed()
    # a frozen role first, so that it runs while no graph is held; each behind what feeds it
    assert objective.roles == ("teacher", "student", "projector")
    assert objective.outputs_of("student") == ("y",)
    assert objective.outputs_of("teacher") == ("y",)
    assert objective.outputs_of("batch") == ("x",)
    assert objective.outputs_of("nobody") == ()
    models = {"teacher": Net(), "student": Net(), "projector": Net("student.y")}
    found = objective.terms(
        "main", models, {"x": torch.ones(3)}, step=0, steps=1, rng=Generator().manual_seed(0)
    )
    assert found["own"].item() == 1  # (2 - 1)^2
    assert found["taught"].item() == 2  # half of (4 - 2)^2
    assert models["projector"].seen == {"x", "student.y", "seed"}
    sum(found.values(), torch.zeros(())).backward()
    assert models["teacher"].weight.grad is None
    assert models["student"].weight.grad is not None


def run_once(objective: Composed, models: dict[str, nn.Module]) -> None:
    rng = Generator().manual_seed(0)
    objective.terms("main", models, {"x": torch.ones(3)}, step=0, steps=1, rng=rng)


def three() -> dict[str, nn.Module]:
    return {"teacher": Net(), "student": Net(), "projector": Net("student.y")}


def test_what_an_objective_works_out_once_is_no_part_of_it():
    fresh, used = composed(), composed()
    run_once(used, three())
    assert used == fresh
    assert repr(used) == repr(fresh)
    assert digest(used) == digest(fresh)
    for again in (copy.copy(used), copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
        assert again == fresh
        assert digest(again) == digest(fresh)
        run_once(again, three())
    # another objective made of it works out its own
    alone = Phase(trains=("student",), optimizer=Optimizer(lr=0.1))
    losses = {"own": used.losses["own"]}
    other = dataclasses.replace(used, losses=losses, feeds={}, phases={"main": alone})
    assert other.roles == ("student",)


class Bare(nn.Module):
    """A network as it comes: a tensor, or a tuple of them."""

    def __init__(self, *, several: bool) -> None:
        super().__init__()
        self.several = several

    def forward(self, given: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        return (given["x"], given["x"]) if self.several else given["x"]


@pytest.mark.parametrize(("several", "kind"), [(False, "Tensor"), (True, "tuple")])
def test_a_role_that_returns_a_bare_tensor_is_told_the_contract(several: bool, kind: str):
    with pytest.raises(ContractError) as caught:
        run_once(composed(), {**three(), "teacher": Bare(several=several)})
    assert str(caught.value) == (
        f"role 'teacher': its forward returned a {kind}; a role maps a batch of named tensors to "
        "named tensors: wrap it in a module whose forward(batch) returns "
        '{"y": self.network(batch["image"])}'
    )


def test_what_a_role_does_not_give_is_named_with_what_it_gives():
    losses = {"own": Weighted(term=Term(F.mse_loss, "student.logits", "batch.labels"))}
    objective = Composed(phases={"main": PHASE}, losses=losses)
    with pytest.raises(UnknownName, match=r"role 'student': unknown output 'logits'. Valid: y, z"):
        run_once(objective, three())
    losses = {"own": Weighted(term=Term(F.mse_loss, "student.y", "batch.labels"))}
    objective = Composed(phases={"main": PHASE}, losses=losses)
    with pytest.raises(UnknownName, match=r"batch: unknown column 'labels'. Valid: x"):
        run_once(objective, three())


@pytest.mark.parametrize(("changes", "message"), [
    ({"feeds": {}, "losses": {"own": Weighted(term=Term(F.mse_loss, "student.y", "batch.x"))}},
     "phase 'main' trains 'projector', which no term reads; they read student"),
    ({"feeds": {"projector": ("batch.x",)}},
     "feeds: 'projector': 'batch.x' need not be fed: a role gets every column .* read 'x' there"),
    ({"feeds": {"projector": ("student",)}}, "feeds: 'projector': reads 'student'; say of what"),
    ({"feeds": {"memory": ("student.y",)}}, "feeds give to 'memory', which no term reads"),
    ({"feeds": {"projector": ("student.y",), "student": ("projector.z",)}},
     "feeds: 'student' is fed by itself .student <- projector <- student"),
])  # fmt: skip
def test_roles_that_lead_nowhere_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(BadRecipe, match=message):
        composed(**changes)


def test_a_batch_may_go_in_micro_batches_where_every_term_is_a_mean_over_samples():
    ce = Weighted(term=Term(cross_entropy_loss, LOGITS[0], "batch.labels"))
    kd = Weighted(term=Term(kd_loss, *LOGITS, temperature=4.0))
    pairs = ("student.embedding", "teacher.embedding")
    for loss, numbers in ((rkd_distance_loss, {}), (info_nce_loss, {"temperature": 1.0})):
        other = Weighted(term=Term(loss, *pairs, **numbers))
        assert not Composed(phases={"m": PHASE}, losses={"ce": ce, "x": other}).sample_mean
    assert Composed(phases={"m": PHASE}, losses={"ce": ce, "kd": kd}).sample_mean
    assert not Term(role_loss, "student.loss").sample_mean
    assert Term(hint_loss, "student.a", "teacher.a").sample_mean


MODULES = (contrastive, features, logits, relations, statistics, supervised)
LOSSES = {
    name: loss
    for module in MODULES
    for name, loss in inspect.getmembers(module, inspect.isfunction)
    if name.endswith("_loss") and loss.__module__ == module.__name__
}
SETTINGS = {
    "kd_loss": {"temperature": 2.0},
    "dkd_loss": {"temperature": 2.0, "alpha": 1.0, "beta": 2.0},
    "dist_loss": {"temperature": 2.0, "beta": 1.0, "gamma": 1.0},
    "info_nce_loss": {"temperature": 0.5},
}
# of what a role computed from the whole batch or a memory that moves: no batch to cut
OTHER = {"crd_loss", "crd_sides_loss", "role_loss"}


def arguments(name: str) -> list[Tensor | Sequence[Tensor]]:
    """Tensors of 8 samples for a loss."""
    labels = torch.arange(8) % 5
    maps = [rows(1, 8, 4, 6, 6), rows(2, 8, 4, 6, 6)]
    match name:
        case "cross_entropy_loss":
            return [rows(1, 8, 5), labels]
        case "kd_loss" | "dist_loss":
            return [rows(1, 8, 5), rows(2, 8, 5)]
        case "dkd_loss":
            return [rows(1, 8, 5), rows(2, 8, 5), labels]
        case "at_stages_loss" | "reviewkd_loss" | "kdsvd_loss":
            return [maps, [rows(3, 8, 4, 6, 6), rows(4, 8, 4, 6, 6)]]
        case "ofd_loss":
            return [*maps, torch.full((4,), -0.5, dtype=torch.float64)]
        case "ofd_stages_loss":
            return [maps[:1], maps[1:], [torch.full((4,), -0.5, dtype=torch.float64)]]
        case "rkd_distance_loss" | "rkd_angle_loss" | "cc_loss" | "pkt_loss" | "info_nce_loss":
            return [rows(1, 8, 6), rows(2, 8, 6)]
        case _:
            return [*maps]


def cut(value: Tensor | Sequence[Tensor], half: int) -> Tensor | Sequence[Tensor]:
    if not isinstance(value, Tensor):
        return [cut(each, half) for each in value]
    return value if len(value) != 8 else value.chunk(2)[half]


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - OTHER))
def test_what_declares_a_mean_over_samples_is_one_and_nothing_else(name: str):
    loss, given, numbers = LOSSES[name], arguments(name), SETTINGS.get(name, {})
    whole = loss(*given, **numbers)
    halves = [loss(*(cut(value, half) for value in given), **numbers) for half in (0, 1)]
    mean = torch.stack(halves).mean().item()
    assert declared.is_sample_mean(loss) == (whole.item() == pytest.approx(mean, rel=1e-9))


def test_every_loss_is_exported_and_made_when_it_is_asked_for():
    assert set(LOSSES) <= set(stillhouse.objectives.__all__)
    for name in stillhouse.objectives.__all__:
        assert getattr(stillhouse.objectives, name) is not None
    assert stillhouse.objectives.SampleMean is SampleMean is declared.SampleMean
    with pytest.raises(AttributeError, match="no attribute 'kdd_loss'"):
        _ = stillhouse.objectives.kdd_loss


PLAIN_PYTHON = """
from stillhouse.errors import StillhouseError
from stillhouse.objectives import Composed, Term, hint_loss
from stillhouse.objectives.inputs import positive

for make in (
    lambda: Term(hint_loss, "student.a", 3),
    lambda: Term(hint_loss, "student.a", (None,)),
    lambda: Composed(phases={}, losses={}, feeds={"projector": "student.y"}),
    lambda: positive("weight", "1"),
):
    try:
        make()
    except StillhouseError as error:
        print(error)
"""


def test_what_type_checks_would_find_is_refused_where_none_are_made():
    """In a process of its own: in this one every call's types are checked."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_PYTHON], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "term hint_loss: reads 3; say of what, as in 'student.logits' or 'batch.labels'",
        "term hint_loss: reads None; say of what, as in 'student.logits' or 'batch.labels'",
        "feeds: 'projector': give a tuple of names, as in ('student.hint2',) (got 'student.y')",
        "weight must be a finite number > 0 (got 1)",
    ]
