"""PointDistiller's loss: by hand, against the edges written out in full, and chunk by chunk."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse_pointcloud.encoders import EdgeEncoder
from stillhouse_pointcloud.graphs import chosen_items, nearest
from stillhouse_pointcloud.objectives import OFFICIAL_PLAIN, LocalGraphDistillation

CT, CS, D = 6, 4, 5


def loss(**settings: Any) -> LocalGraphDistillation:  # Any: the settings under test
    torch.manual_seed(3)
    given = {"k": 4, "num": 7, "tau": 2.0, **settings}
    return LocalGraphDistillation(CT, CS, D, **given).double()


def clouds(*counts: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Teacher, student and importance (distinct counts, so that the choice has no ties)."""
    rng = torch.Generator().manual_seed(5)
    draw = [(n, torch.randn(n, CT + CS, generator=rng, dtype=torch.float64)) for n in counts]
    teacher = [x[:, :CT] for _, x in draw]
    student = [x[:, CT:].clone().requires_grad_() for _, x in draw]
    return teacher, student, [torch.randperm(n, generator=rng).double() + 1 for n, _ in draw]


def slow(
    module: LocalGraphDistillation,
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    importance: Sequence[Tensor],
    subtract: bool = False,
) -> Tensor:
    """The specification's equations with every edge in memory: per-sample, un-chunked."""
    edges: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    scores: list[Tensor] = []
    for t, s, counts in zip(teacher, student, importance, strict=True):
        score = t.max(dim=1).values if module.importance == "max" else counts
        items = sorted(range(len(t)), key=lambda i, score=score: -float(score[i]))[: module.num]
        scores.append(score[items])
        near = [
            sorted(range(len(t)), key=lambda j, i=i, t=t: float((t[i] - t[j]).square().sum()))
            for i in items
        ]
        for name, z in (("teacher", t), ("student", s)):
            rows = []
            for i, order in zip(items, near, strict=True):
                for j in order[: module.k] if module.local else [i]:
                    first = z[i] - z[j] if subtract else z[j]
                    rows.append(torch.cat([first, z[i]]) if module.local else z[i])
            edges[name].append(torch.stack(rows).view(len(items), -1, len(rows[0])))
    g = {name: encode(getattr(module, name), edges[name], module.pooled) for name in edges}
    parts, numbers = [], sum(x.numel() for x in g["teacher"])
    for t, s, score in zip(g["teacher"], g["student"], scores, strict=True):
        if module.importance == "max":
            score = t.amax(dim=(1, 2)).detach()
        phi = torch.exp(score / module.tau) / torch.exp(score / module.tau).sum()
        distances = (t - s).square().flatten(1).sum(dim=1)
        if module.compat == "paper":
            phi = phi if module.reweight else torch.full_like(phi, 1 / len(phi))
            parts.append((phi * distances).sum() / len(teacher))
        elif not module.reweight:
            parts.append(distances.sum())
        elif module.importance == "max":
            parts.append(module.factor * distances.sum() / numbers)
        else:
            parts.append(module.factor * (len(phi) * phi * distances).sum() / numbers)
    total = torch.stack(parts).sum()
    if module.compat == "official" and not module.reweight:
        return 5e-4 * total.sqrt()
    return total


def encode(encoder: EdgeEncoder, edges: Sequence[Tensor], pooled: bool) -> list[Tensor]:
    """torch's own convolution and BatchNorm2d of every edge of every cloud."""
    flat = torch.cat([x.flatten(0, 1) for x in edges])
    gamma = nn.Sequential(encoder.conv, encoder.norm, nn.ReLU())
    parts = gamma(flat.T[None, :, :, None])[0, :, :, 0].T.split([x[..., 0].numel() for x in edges])
    shaped = [p.view(len(x), -1, D) for p, x in zip(parts, edges, strict=True)]
    return [x.amax(dim=1, keepdim=True) if pooled else x for x in shaped]


def gradients(module: nn.Module, value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, [*inputs, *module.parameters()]))


ROWS: list[dict[str, Any]] = [
    {},
    {"pool": "max"},
    {"edge": "subtract"},
    {"importance": "given"},
    {"importance": "max"},
    {"importance": "max", "pool": "max"},
    {"reweight": False},
    {"local": False},
    {"local": False, "reweight": False},
    {"compat": "official"},
    {"compat": "official", "importance": "max"},
    {"compat": "official", "importance": "max", "pool": "max", "factor": 1.0},
    {"compat": "official", "reweight": False},
    {"k": 50, "num": 50},  # more than there is
]


@pytest.mark.parametrize("settings", ROWS, ids=str)
def test_agrees_with_all_edges_written_out(settings: dict[str, Any]) -> None:
    teacher, student, importance = clouds(11, 9)
    ours, plain = loss(chunk=3, **settings), loss(**settings)
    value = ours(teacher, student, importance)
    expected = slow(plain, teacher, student, importance, settings.get("edge") == "subtract")
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    both = zip(gradients(ours, value, student), gradients(plain, expected, student), strict=True)
    for found, wanted in both:
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)
    for name, wanted in plain.state_dict().items():  # running statistics too
        torch.testing.assert_close(ours.state_dict()[name], wanted, msg=name)


@pytest.mark.parametrize("settings", ROWS[:-1], ids=str)
def test_chunked_equals_unchunked_in_float32(settings: dict[str, Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn(300, CT, generator=rng) + 3
    student = torch.randn(300, CS, generator=rng).requires_grad_()
    counts = torch.randint(1, 33, (300,), generator=rng)
    given = {**settings, "k": 16, "num": 100}
    small, whole = loss(**given, chunk=7).float(), loss(**given, chunk=300).float()
    values = [module(teacher, student, counts) for module in (small, whole)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    pair = zip(
        gradients(small, values[0], [student]), gradients(whole, values[1], [student]), strict=True
    )
    for found, wanted in pair:
        scale = float(wanted.abs().max()) + 1e-12
        torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-5)


def by_hand(**settings: Any) -> LocalGraphDistillation:  # Any: the settings under test
    """One channel, W = [1, 1] for the teacher and [1, 0] for the student; BatchNorm as identity."""
    given = {"k": 2, "num": 2, "tau": 1.0, **settings}
    module = LocalGraphDistillation(1, 1, 1, **given)
    for encoder, weight in ((module.teacher, [1.0, 1.0]), (module.student, [1.0, 0.0])):
        encoder.conv.weight.data = torch.tensor(weight).view(1, 2, 1, 1)
        encoder.norm.eps = 0.0
    return module.eval()


# features 0, 1, 3, 7, both sides; counts 1, 3, 2, 1: chosen 1 (graph 1, 0) and 3 (graph 3, 1)
# teacher's edges: 1: 2, 1; 3: 6, 4; student's: 1: 1, 0; 3: 3, 1; squares: 1 + 1 = 2, 9 + 9 = 18
HAND = [
    ({}, (2 * math.e + 18) / (math.e + 1)),
    ({"tau": 1e-2}, 2.0),
    ({"reweight": False}, 10.0),
    ({"pool": "max", "reweight": False}, (1 + 9) / 2),
    ({"compat": "official"}, 2 * (2 * (2 * math.e + 18) / (math.e + 1)) / 4),
    ({"compat": "official", "reweight": False}, 5e-4 * math.sqrt(20)),
]


@pytest.mark.parametrize(("settings", "expected"), HAND, ids=str)
def test_by_hand(settings: dict[str, Any], expected: float) -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    module = by_hand(**settings)
    value = module(x, x, torch.tensor([1, 3, 2, 1]))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert module.chosen[0].items.tolist() == [1, 2]
    assert module.chosen[0].weights.mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("pool", ["none", "max"])
def test_the_official_form_counts_the_clouds_of_maps_alone(pool: str) -> None:
    # chosen 7 (graph 7, 3) and 3 (graph 3, 1); the differences are the centres, 7 and 3
    mean = (49 + 9) / 2
    x = torch.tensor([0.0, 1.0, 3.0, 7.0])
    points, maps = x.expand(2, 1, 4), x.view(2, 2).expand(2, 1, 2, 2)
    module = by_hand(compat="official", importance="max", pool=pool)
    assert module(points, points).item() == pytest.approx(2 * mean)
    assert module([x[:, None]] * 2, [x[:, None]] * 2).item() == pytest.approx(2 * mean)
    assert module(maps, maps).item() == pytest.approx(2 * 2 * mean)


def test_a_frozen_encoder_of_the_teacher_gets_no_gradient() -> None:
    teacher, student, importance = clouds(11)
    module = loss(frozen=True)
    module(teacher, student, importance).backward()
    assert all(p.grad is None for p in module.teacher.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for p in module.student.parameters())
    assert float(student[0].grad.abs().sum()) > 0
    assert module(teacher, student, importance) == loss()(teacher, student, importance)


def test_features_of_another_type_than_the_encoders_are_named() -> None:
    teacher, student, importance = clouds(11)
    with pytest.raises(BadData) as caught:
        loss().float()(teacher, student, importance)
    assert str(caught.value) == (
        "graph distillation: features is float64 and encoder float32; give both as one, as in "
        "encoder.to(features.dtype)"
    )


def test_variance_of_the_teachers_graphs_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    module = by_hand()
    module(x, x, torch.tensor([1, 3, 2, 1]))
    norms = math.sqrt(4 + 1), math.sqrt(36 + 16)
    expected = ((norms[1] - norms[0]) / 2) ** 2
    assert module.teacher_variance.item() == pytest.approx(expected, rel=1e-5)


def test_chosen_by_importance_and_ties_by_index() -> None:
    assert chosen_items(torch.tensor([2.0, 5.0, 5.0, 1.0]), 2).tolist() == [1, 2]
    assert chosen_items(torch.tensor([5.0, 5.0]), 9).tolist() == [0, 1]


def test_the_centre_is_in_its_graph_among_duplicates() -> None:
    near = nearest(torch.ones(20, 3), torch.arange(20), 2, chunk=6)
    assert near[:, 0].tolist() == list(range(20))


def test_neighbours_far_from_the_origin_are_those_of_exact_distances() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) + 500
    found = nearest(x, torch.arange(60), 5, chunk=8).sort(dim=1).values
    exact = (x[:, None].double() - x[None].double()).square().sum(dim=2).argsort(dim=1)
    assert torch.equal(found, exact[:, :5].sort(dim=1).values)


def test_every_form_of_the_input_gives_the_same_loss() -> None:
    teacher, student, importance = clouds(12, 12)
    dense = [torch.stack([x.T for x in side]) for side in (teacher, student)]
    scores = torch.stack(importance)
    value = loss()(teacher, student, importance)
    assert torch.equal(loss()(*dense, scores), value)
    maps = [x.unflatten(2, (3, 4)) for x in dense]
    assert torch.equal(loss()(*maps, scores.view(2, 3, 4)), value)
    one = loss()(teacher[0], student[0], importance[0])
    assert torch.equal(loss()(teacher[:1], student[:1], importance[:1]), one)


def test_concat_is_one_cloud_of_all_items() -> None:
    teacher, student, importance = clouds(11, 9)
    mixed = loss(batch="concat")
    value = mixed(teacher, student, importance)
    one = loss()(torch.cat(teacher), torch.cat(student), torch.cat(importance))
    torch.testing.assert_close(value, one)
    assert [len(x.items) for x in mixed.chosen] == [7]


def test_normalise_is_a_tau_in_fractions_of_the_fullest() -> None:
    teacher, student, importance = clouds(11)
    fullest = float(importance[0].max())
    value = loss(normalise=True, tau=0.5)(teacher, student, importance)
    torch.testing.assert_close(value, loss(tau=0.5 * fullest)(teacher, student, importance))


def test_gradients_reach_student_and_encoders_only() -> None:
    teacher, student, importance = clouds(11)
    teacher[0].requires_grad_()
    importance[0].requires_grad_()
    module = loss(chunk=2)
    module(teacher, student, importance).backward()
    assert teacher[0].grad is None
    assert importance[0].grad is None
    assert float(student[0].grad.abs().sum()) > 0
    for name, parameter in module.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def test_it_can_be_learned() -> None:
    teacher, student, importance = clouds(30)
    module = loss(reweight=False)
    optimizer = torch.optim.Adam([*module.student.parameters(), *student], lr=0.05)
    values: list[float] = []
    for _ in range(60):
        value = module(teacher, student, importance)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_an_empty_cloud_adds_nothing() -> None:
    teacher, student, importance = clouds(11, 0)
    module = loss()
    both = module(teacher, student, importance)
    torch.testing.assert_close(2 * both, loss()(teacher[:1], student[:1], importance[:1]))
    nothing = module(teacher[1:], student[1:], importance[1:])
    assert nothing.item() == 0.0
    assert module.chosen == ()
    nothing.backward()  # has a graph
    assert all(float(p.grad.abs().sum()) == 0 for p in module.parameters())


def test_official_without_reweighting_has_a_gradient_where_both_agree() -> None:
    module = by_hand(compat="official", reweight=False)
    module.student.load_state_dict(module.teacher.state_dict())
    x = torch.tensor([[0.0], [1.0], [3.0]]).requires_grad_()
    value = module(x, x, torch.tensor([1, 3, 2]))
    value.backward()
    assert value.item() < OFFICIAL_PLAIN * 1e-15
    assert bool(x.grad.isfinite().all())


SETTINGS = [
    ({"k": 0}, "k must be > 0 (got 0)"),
    ({"num": 0}, "num must be > 0 (got 0)"),
    ({"tau": 0.0}, "tau must be > 0 (got 0.0)"),
    ({"pool": "mean"}, "pool must be one of none, max (got 'mean')"),
    ({"compat": "code"}, "compat must be one of paper, official (got 'code')"),
    (
        {"importance": "max", "normalise": True},
        "normalise is for importance='count' (got 'max')",
    ),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=str)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        loss(**settings)
    assert str(caught.value) == message


def test_data_that_cannot_be_used() -> None:
    teacher, student, importance = clouds(11, 9)
    broken = teacher[1].clone()
    broken[3, 2] = float("nan")
    cases = [
        ((student, student, importance), "teacher, cloud 0: expected 6 channels, [n, 6] (got [11,"),
        ((teacher[0], student[1], importance[0]), "the same items (got [11] and [9] a cloud)"),
        ((teacher, student, importance[::-1]), "one number an item, [11, 9] a cloud (got [9, 11])"),
        ((teacher, student, None), "importance is missing; only importance='max' needs none"),
        (([teacher[0], broken], student, importance), "teacher, cloud 1: a feature is NaN"),
        (([], [], []), "teacher has no cloud; give at least one"),
        ((teacher[0][0], student[0], importance[0]), "[B, C, H, W] (got [6])"),
    ]
    for given, message in cases:
        with pytest.raises(BadData) as caught:
            loss()(*given)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_edge_is_too_few_for_batch_statistics() -> None:
    teacher, student, importance = clouds(1)
    with pytest.raises(BadData, match=r"BatchNorm needs at least 2 edges .* \(got 1\)"):
        loss()(teacher, student, importance)
    assert bool(loss().eval()(teacher, student, importance).isfinite())
