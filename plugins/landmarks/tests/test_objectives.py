"""Every region of the losses, by hand, and their gradients across the borders.

By hand: truth 0.5, teacher 0.7, so t = 0.2; with beta 0.4 the ramp ends at d = 0.08.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stillhouse.digest import digest
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.objective import Composed, Optimizer, Phase
from stillhouse.objectives.term import Term
from stillhouse_landmarks.objectives import (
    COLUMN,
    NOBODY,
    PAPER,
    RELEASED,
    Assistance,
    assistive_loss,
    known_variant,
    l1_loss,
    l2_loss,
    paper_main_loss,
    released_main_loss,
)

G, A, T = 0.5, 0.7, 0.2  # truth, teacher, their distance
PLUS, MINUS, BETA = 0.9, -0.45, 0.4


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def two_teacher(
    prediction: Tensor, truth: Tensor, tough: Tensor, tolerant: Tensor, *, variant: str
) -> dict[str, Tensor]:
    """The weighted terms that a recipe trains with, of these tensors, and "total", their sum."""
    roles = {"student": prediction, "tough": tough, "tolerant": tolerant}
    outputs = {role: {COLUMN: points} for role, points in roles.items()}
    chosen = PAPER if variant == "paper" else RELEASED
    terms = {
        name: part.weight * part.term(outputs, {COLUMN: truth})
        for name, part in chosen.losses().items()
    }
    return {**terms, "total": torch.stack(list(terms.values())).sum()}


def slope(loss: Callable[[Tensor], Tensor], at: float) -> float:
    x = one(at).requires_grad_()
    loss(x).backward()
    assert x.grad is not None
    return x.grad.item()


def assist(x: Tensor, *, ramp: bool = True, teacher: float = A, beta: float = BETA) -> Tensor:
    return assistive_loss(
        x, one(G), one(teacher), positive=PLUS, negative=MINUS, beta=beta, ramp=ramp
    )


@pytest.mark.parametrize("side", [1, -1], ids=["teacher's side", "other side"])
@pytest.mark.parametrize("teacher", [A, 0.3], ids=["above", "below"])
@pytest.mark.parametrize(
    ("d", "value", "gradient"),
    [
        # R_P, d > t: 0.9 (d - t), rising with 0.9
        (0.3, 0.9 * 0.1, 0.9),
        # R_N: -0.45 (t - d), rising with 0.45: towards the truth, away from the teacher
        (0.15, -0.45 * 0.05, 0.45),
        (0.1, -0.45 * 0.1, 0.45),
        # R_L: -0.45 d / 0.08 (0.2 - d), with the ramp differentiated: -0.45 / 0.08 (0.2 - 2 d)
        (0.05, -0.45 * 0.625 * 0.15, -5.625 * 0.1),
        (0.02, -0.45 * 0.25 * 0.18, -5.625 * 0.16),
    ],
)
def test_each_region_of_the_ramped_loss(
    side: int, teacher: float, d: float, value: float, gradient: float
) -> None:
    def loss(x: Tensor) -> Tensor:
        return assist(x, teacher=teacher)

    assert loss(one(G + side * d)).item() == pytest.approx(value, abs=1e-12)
    assert slope(loss, G + side * d) == pytest.approx(side * gradient, abs=1e-9)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("d", "value", "gradient"),
    [(0.3, 0.09, 0.9), (0.15, -0.0225, 0.45), (0.05, 0.0, 0.0), (0.0, 0.0, 0.0)],
)
def test_each_region_without_the_ramp(side: int, d: float, value: float, gradient: float) -> None:
    def loss(x: Tensor) -> Tensor:
        return assist(x, ramp=False)

    assert loss(one(G + side * d)).item() == pytest.approx(value, abs=1e-12)
    assert slope(loss, G + side * d) == pytest.approx(side * gradient, abs=1e-9)


def test_at_the_truth_and_where_the_teacher_is_exact() -> None:
    assert assist(one(G)).item() == 0
    assert slope(assist, G) == 0
    # right beside it the ramp falls with |negative| / beta, the slope of the inequality
    assert slope(assist, G + 1e-7) == pytest.approx(MINUS / BETA, abs=1e-4)
    for ramp in (True, False):
        exact = one(0.53).requires_grad_()  # t = 0: only the pull to the teacher, who is the truth
        loss = assist(exact, ramp=ramp, teacher=G)
        loss.backward()
        assert loss.item() == pytest.approx(0.9 * 0.03)
        assert exact.grad is not None
        assert exact.grad.item() == pytest.approx(0.9)
        assert slope(lambda x, ramp=ramp: assist(x, ramp=ramp, teacher=G), G) == 0


def test_gradient_is_finite_for_any_distance_of_the_teacher() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        truth = torch.full((1, 6), 0.5, dtype=torch.float64)
        away = torch.tensor([[0.0, 1e-45, 1e-38, 1e-8, 0.1, 9.0]], dtype=torch.float64)
        for d in (0.0, 1e-40, 1e-9, 0.3, 10.0):
            x = (truth * 0 + d).to(dtype).requires_grad_()
            loss = assistive_loss(
                x,
                truth.to(dtype) * 0,
                away.to(dtype),
                positive=1,
                negative=-0.5,
                beta=0.4,
                ramp=True,
            )
            loss.backward()
            assert loss.isfinite()
            assert x.grad is not None
            assert x.grad.isfinite().all()


def total(variant: str) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        terms = two_teacher(x, one(G), one(A), one(0.46), variant=variant)
        return terms["total"]

    return loss


# distances from the truth at which a formula changes: t and beta t of both teachers, both knees
BORDERS = {
    "paper": [0.0, 0.04, 0.2, 0.4 * 0.04, 0.4 * 0.2, 0.5],
    "released": [0.0, 0.04, 0.2, 0.15 * 0.04, 0.15 * 0.2],
}


def many(variant: str, x: Tensor) -> Tensor:
    """The total of each coordinate on its own: the mean of x.numel() of them, times that number."""
    rows = [torch.full_like(x, value) for value in (G, A, 0.46)]
    return two_teacher(x, *rows, variant=variant)["total"] * x.numel()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_gradient_is_the_finite_difference_across_the_regions(variant: str) -> None:
    step = 1e-6
    every = torch.linspace(-0.3, 1.3, 4001, dtype=torch.float64)
    borders = torch.tensor(BORDERS[variant], dtype=torch.float64)
    inside = ((every - G).abs()[:, None] - borders).abs().amin(1) > 2 * step
    assert 3980 < inside.sum() < 4001  # only the borders themselves are left out
    x = every[inside][None].requires_grad_()
    many(variant, x).backward()
    loss = total(variant)
    difference = [
        (loss(one(value + step)) - loss(one(value - step))).item() / (2 * step)
        for value in x[0, ::8].tolist()
    ]
    assert x.grad is not None
    assert x.grad[0, ::8].tolist() == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("border", BORDERS["paper"])
def test_the_paper_form_is_continuous_and_its_gradient_one_sided(border: float, side: int) -> None:
    loss, step = total("paper"), 1e-7
    at = loss(one(G + side * border)).item()
    for away in (step, -step):
        beside = G + side * border + away
        assert loss(one(beside)).item() == pytest.approx(at, abs=1e-5)  # no jump
        one_sided = (loss(one(beside + away / 2)) - loss(one(beside - away / 2))).item() / away
        assert slope(loss, beside) == pytest.approx(one_sided, abs=1e-5)


def test_the_kinks_of_the_paper_form_have_the_worked_gradients() -> None:
    # at d = beta t: the ramp falls with negative (1 - 2 beta) / beta, beyond it rises with |negative|
    d = BETA * T
    assert slope(assist, G + d - 1e-9) == pytest.approx(-0.45 * 0.2 / 0.4, abs=1e-6)
    assert slope(assist, G + d + 1e-9) == pytest.approx(0.45, abs=1e-6)
    assert slope(assist, G + T - 1e-9) == pytest.approx(0.45, abs=1e-6)
    assert slope(assist, G + T + 1e-9) == pytest.approx(0.9, abs=1e-6)


def test_without_the_ramp_the_loss_jumps_at_beta_t() -> None:
    d = BETA * T
    below, above = (assist(one(G + d + e), ramp=False).item() for e in (-1e-9, 1e-9))
    assert below == 0
    assert above == pytest.approx(-0.45 * (1 - BETA) * T, abs=1e-8)


def test_the_assistive_loss_is_never_below_negative_times_t() -> None:
    values = [assist(one(G + d)).item() for d in torch.linspace(0, 1, 501).tolist()]
    assert min(values) == pytest.approx(MINUS * (1 - BETA) * T, abs=1e-3)  # at d = beta t
    assert min(values) > MINUS * T


@pytest.mark.parametrize(
    ("d", "value", "gradient"),
    [(0.2, 0.2, 1.0), (0.5, 0.5, 1.0), (0.6, 0.36 + 0.25, 1.2), (1.0, 1.25, 2.0)],
)
def test_paper_main_loss(d: float, value: float, gradient: float) -> None:
    def loss(x: Tensor) -> Tensor:
        return paper_main_loss(x, one(0.0))

    assert loss(one(-d)).item() == pytest.approx(value)
    assert slope(loss, -d) == pytest.approx(-gradient)


@pytest.mark.parametrize(
    ("d", "value", "gradient"),
    # m = 0.2: 3 d up to it, then d^2 + 0.6 - 0.04
    [(0.1, 0.3, 3.0), (0.19, 0.57, 3.0), (0.3, 0.09 + 0.56, 0.6), (1.0, 1.56, 2.0)],
)
def test_released_main_loss(d: float, value: float, gradient: float) -> None:
    def loss(x: Tensor) -> Tensor:
        return released_main_loss(x, one(G), one(A))

    assert loss(one(G - d)).item() == pytest.approx(value)
    assert slope(loss, G - d) == pytest.approx(-gradient)


def test_both_main_losses_are_continuous_at_their_knees() -> None:
    for below, above in ((0.5, 0.5 + 1e-9), (0.5 - 1e-9, 0.5)):
        a, b = (paper_main_loss(one(d), one(0)).item() for d in (below, above))
        assert a == pytest.approx(b, abs=1e-8)
    a, b = (released_main_loss(one(G + T + e), one(G), one(A)).item() for e in (-1e-9, 1e-9))
    assert a == pytest.approx(b, abs=1e-7)


def test_two_teacher_loss_by_hand() -> None:
    # d = 0.1; tough t = 0.2 (negative assistant); tolerant t = 0.04 (positive assistant)
    paper = two_teacher(one(0.6), one(G), one(A), one(0.46), variant="paper")
    expected = {"main": 2.5 * 0.1, "tough": -0.45 * 0.1, "tolerant": 0.9 * 0.06}
    assert {name: v.item() for name, v in paper.items() if name != "total"} == pytest.approx(
        expected
    )
    assert paper["total"].item() == pytest.approx(0.25 - 0.045 + 0.054)
    released = two_teacher(one(0.6), one(G), one(A), one(0.46), variant="released")
    main = 2 * (0.01 + 3 * 0.04 - 0.0016)
    assert released["main"].item() == pytest.approx(main)
    assert released["total"].item() == pytest.approx(main - 0.45 * 0.1 + 1.8 * 0.06)


def slow_assistive(
    p: float, g: float, a: float, part: Assistance, beta: float, ramp: bool
) -> float:
    """With the mirrored teacher, as the paper tells it."""
    if p == g:
        return 0.0
    mirrored = g + (1 if p > g else -1) * abs(a - g)
    if abs(p - g) > abs(mirrored - g):
        weight = part.positive
    elif abs(p - g) >= beta * abs(mirrored - g):
        weight = part.negative
    else:
        weight = part.negative * abs(p - g) / (beta * abs(mirrored - g)) if ramp else 0.0
    return weight * abs(mirrored - p)


@pytest.mark.parametrize("loss", [PAPER, RELEASED], ids=["paper", "released"])
def test_the_mean_over_faces_and_coordinates_of_a_slow_loop(loss: object) -> None:
    assert loss in (PAPER, RELEASED)
    chosen = PAPER if loss == PAPER else RELEASED
    rng = torch.Generator().manual_seed(0)
    p, g, tough, tolerant = (torch.rand(7, 6, generator=rng, dtype=torch.float64) for _ in range(4))
    found = two_teacher(p, g, tough, tolerant, variant=chosen.variant)
    for name, teacher, part in (
        ("tough", tough, chosen.tough),
        ("tolerant", tolerant, chosen.tolerant),
    ):
        rows = zip(p.flatten(), g.flatten(), teacher.flatten(), strict=True)
        values = [
            slow_assistive(x.item(), y.item(), z.item(), part, chosen.beta, chosen.ramp)
            for x, y, z in rows
        ]
        assert found[name].item() == pytest.approx(sum(values) / len(values), abs=1e-12)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_only_the_prediction_gets_a_gradient(variant: str) -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.rand(3, 4, generator=rng).requires_grad_() for _ in range(4)]
    two_teacher(*parts, variant=variant)["total"].backward()
    assert parts[0].grad is not None
    assert [part.grad for part in parts[1:]] == [None] * 3


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_total_is_least_at_the_truth(variant: str) -> None:
    loss = total(variant)
    grid = torch.linspace(-0.4, 1.4, 362, dtype=torch.float64).tolist()
    assert loss(one(G)).item() == 0
    assert min(loss(one(x)).item() for x in grid if abs(x - G) > 1e-9) > 0


def test_the_released_total_can_be_least_off_the_truth_where_the_tolerant_teacher_is_exact() -> (
    None
):
    # its main loss is then d^2, without a slope; the tough teacher pulls beyond beta t
    terms = two_teacher(one(G + 0.05), one(G), one(G + 0.3), one(G), variant="released")
    assert terms["total"].item() == pytest.approx(2 * 0.0025 - 0.45 * 0.25 + 1.8 * 0.05)
    assert terms["total"].item() < 0


def test_the_truth_must_stay_a_minimum() -> None:
    # 0.45 / 0.4 * 2 = 2.25
    assert replace(PAPER, main_weight=2.25).main_weight == 2.25
    message = (
        "two-teacher loss: the main loss rises with 2.24 at the truth, the teachers fall with 2.25 "
        r"(sum of weight * |negative| / beta), so the truth is no minimum; raise main_weight or "
        "beta, or bring negative nearer to 0"
    )
    with pytest.raises(BadSetting) as caught:
        replace(PAPER, main_weight=2.24)
    assert str(caught.value) == message
    with pytest.raises(
        BadSetting, match=r"rises with 6 at the truth, the teachers fall with 6.071"
    ):
        replace(RELEASED, beta=0.14)
    assert replace(PAPER, tolerant=NOBODY, main_weight=1.2).tolerant.weight == 0


def test_beside_a_main_loss_too_flat_the_truth_is_indeed_no_minimum() -> None:
    flat = 2.0 * paper_main_loss(one(G + 0.005), one(G)) + 2 * assist(one(G + 0.005))
    steep = 2.5 * paper_main_loss(one(G + 0.005), one(G)) + 2 * assist(one(G + 0.005))
    assert flat.item() < 0 < steep.item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": -0.1}, r"positive must be >= 0 \(got -0.1\)"),
        ({"negative": 0.1}, r"negative must be <= 0 \(got 0.1\)"),
        ({"beta": 0.0}, r"beta must be > 0 and < 1 \(got 0.0\)"),
        ({"beta": 1.0}, r"beta must be > 0 and < 1 \(got 1.0\)"),
        ({"negative": float("nan")}, r"negative must be a finite number <= 0 \(got nan\)"),
    ],
)
def test_weights_out_of_range(change: dict[str, float], message: str) -> None:
    numbers = {"positive": 0.9, "negative": -0.45, "beta": 0.4} | change
    with pytest.raises(BadSetting, match=message):
        assistive_loss(one(0.5), one(0.5), one(0.7), ramp=True, **numbers)
    with pytest.raises(BadSetting, match=message):
        Term(assistive_loss, *READS, ramp=True, **numbers)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(BadSetting, match=r"variant must be one of paper, released \(got 'final'\)"):
        known_variant("final")


def test_l1_and_l2_by_hand() -> None:
    p, g = torch.tensor([[0.1, 0.4], [0.3, 0.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.1]])
    assert l1_loss(p, g).item() == pytest.approx((0.2 + 0.3 + 0.1) / 4)
    assert l2_loss(p, g).item() == pytest.approx((0.04 + 0.09 + 0.01) / 4)


class Points(torch.nn.Module):
    """As many free coordinates as a batch needs: what a student could at best do."""

    def __init__(self, value: float, count: int = 4) -> None:
        super().__init__()
        self.points = torch.nn.Parameter(torch.full((1, count), value))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"landmarks": self.points.expand(len(batch["landmarks"]), -1)}


READS = ("student.landmarks", "batch.landmarks", "tough.landmarks")


def composed(losses: object) -> Composed:
    phase = Phase(trains=("student",), optimizer=Optimizer(lr=0.01))
    return Composed(phases={"main": phase}, losses=losses)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [PAPER, RELEASED], ids=["paper", "released"])
def test_the_terms_of_a_composed_objective_sum_to_the_loss(loss: object) -> None:
    chosen = PAPER if loss == PAPER else RELEASED
    models = {"student": Points(0.6), "tough": Points(0.7), "tolerant": Points(0.46)}
    batch = {"landmarks": torch.full((2, 4), 0.5)}
    terms = composed(chosen.losses()).terms(
        "main", models, batch, step=0, steps=1, rng=torch.Generator()
    )
    full = two_teacher(
        *(models[role](batch)["landmarks"].detach() if role else batch["landmarks"]
          for role in ("student", "", "tough", "tolerant")),
        variant=chosen.variant,
    )  # fmt: skip
    assert set(terms) == {"main", "tough", "tolerant"}
    together = torch.stack(list(terms.values())).sum()
    assert together.item() == pytest.approx(full["total"].item())
    together.backward()
    assert models["tough"].points.grad is None
    assert models["student"].points.grad is not None


def test_a_teacher_without_weight_is_not_asked_for() -> None:
    alone = replace(PAPER, tolerant=NOBODY).losses()
    assert set(alone) == {"main", "tough"}
    outputs = {"student": {"landmarks": one(0.6)}, "tough": {"landmarks": one(0.7)}}
    batch = {"landmarks": one(0.5)}
    values = [part.term(outputs, batch).item() for part in alone.values()]
    assert values == pytest.approx([0.1, -0.045])


def test_control_terms() -> None:
    outputs = {"student": {"landmarks": one(0.6)}, "tough": {"landmarks": one(0.9)}}
    batch = {"landmarks": one(0.5), "soft": one(0.55)}
    found = "student.landmarks"
    expected = [
        (Term(l1_loss, found, "batch.landmarks"), 0.1),
        (Term(l2_loss, found, "batch.landmarks"), 0.01),
        (Term(l2_loss, found, "batch.soft"), 0.0025),
        (Term(l1_loss, found, "tough.landmarks"), 0.3),
    ]
    for term, value in expected:
        assert term(outputs, batch).item() == pytest.approx(value)
    with pytest.raises(UnknownName, match="batch: unknown column 'softs'. Did you mean 'soft'?"):
        Term(l1_loss, found, "batch.softs")(outputs, batch)


def test_terms_can_be_hashed() -> None:
    assert digest(PAPER) != digest(RELEASED)
    assert digest(PAPER.losses()) != digest(RELEASED.losses())
