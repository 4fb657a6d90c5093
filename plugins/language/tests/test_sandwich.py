"""The sandwich rule, its gradients, the search score, and choices of a search."""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Built, Model
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse.recipe import Context
from stillhouse.search import Exhaustive
from stillhouse.stages import Search
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_language import Architecture, extract, relation_loss, subnet
from stillhouse_language.choosing import Choose
from stillhouse_language.encoder import PROJECTIONS, Encoder
from stillhouse_language.lookup import looked_up
from stillhouse_language.proxy import RelationScore
from stillhouse_language.sandwich import Linear, Sandwich, sampled
from stillhouse_language.spaces import Spaces, SubSpace, encoding_of

FULL = Architecture(
    layers=4, width=16, inner=64, heads=4, head_width=4, vocabulary=40, positions=12, full_heads=4
)
SPACE = SubSpace(full=FULL, layers=(2, 3), widths=(8, 12), ratios=(2.0, 3.0), heads=(2, 3))
PHASE = Phase(
    trains=("student",),
    optimizer=Optimizer(build=torch.optim.AdamW, lr=3e-3),
    schedule=Linear(),
    clip_norm=1.0,
)


def encoder(seed: int, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(seed)
    model = Encoder(FULL.record(), dropout=dropout)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def rows(count: int = 24, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    mask = torch.ones(count, 8, dtype=torch.int64)
    mask[::2, 5:] = 0
    return {"tokens": torch.randint(0, 40, (count, 8)), "mask": mask, "id": torch.arange(count)}


def test_each_step_has_both_ends_and_two_others_by_a_generator_of_its_own() -> None:
    largest, smallest = SPACE.largest, SPACE.smallest
    seen = set[Architecture]()
    for step in range(40):
        state = torch.get_rng_state()
        found = sampled(SPACE, draws=2, seed=7, step=step)
        assert found == sampled(SPACE, draws=2, seed=7, step=step)
        assert torch.equal(torch.get_rng_state(), state)
        assert found[:2] == (largest, smallest)
        assert len(set(found)) == 4
        seen |= set(found)
    assert seen == set(SPACE.architectures)
    assert sampled(SPACE, draws=2, seed=8, step=0) != sampled(SPACE, draws=2, seed=7, step=0)


def test_python_and_torch_draw_on_as_if_no_subnet_had_been_drawn() -> None:
    """The released code seeds Python's global generator each step, and so the order of the data."""
    import random

    random.seed(3)
    expected = Random(3).random()
    sampled(SPACE, draws=2, seed=0, step=0)
    assert random.random() == expected


def test_gradients_are_the_sum_of_those_of_the_four_subnets_and_the_teacher_runs_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, student, batch = encoder(0), encoder(1), rows()
    objective = Sandwich(space=SPACE, phase=PHASE, heads=4)
    passes, once = list[int](), teacher.projections

    def counted(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        passes.append(len(given["mask"]))
        return once(given)

    monkeypatch.setattr(teacher, "projections", counted)
    names = list[str]()
    for terms in objective.terms(
        "superlm",
        {"teacher": teacher, "student": student},
        batch,
        step=3,
        steps=9,
        rng=torch.Generator(),
    ):
        ((name, loss),) = terms.items()
        names.append(name)
        loss.backward()
    assert names == ["largest", "smallest", "random", "random"]
    assert passes == [24]
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    with torch.no_grad():
        targets = once(batch)
    losses = [
        relation_loss(targets[name], subnet(student, a).projections(batch)[name], batch["mask"],
                      heads=4)
        for a in sampled(SPACE, draws=2, seed=0, step=3)
        for name in PROJECTIONS
    ]  # fmt: skip
    torch.stack(losses).sum().backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
    assert set(found) == {n for n, p in student.named_parameters() if p.grad is not None}


def test_a_lookup_adds_the_gradient_that_an_embedding_has() -> None:
    torch.manual_seed(0)
    one = torch.randn(30, 6, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    for width in (6, 4):
        ids, weight = torch.randint(0, 30, (3, 5)), torch.randn(3, 5, width)
        (looked_up(one, ids, width) * weight).sum().backward()
        (torch.nn.functional.embedding(ids, two[:, :width]) * weight).sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


def context(folder: Path) -> Context:
    return Context(
        stage="superlm", out=folder, checkpoints=folder / "checkpoints", caches=folder / "caches"
    )


def test_training_brings_every_subnet_nearer_to_the_teacher(tmp_path: Path) -> None:
    teacher, begun = encoder(0), encoder(0)
    data = TensorData(rows(64))
    score = RelationScore(rows=24, heads=4)
    prepared = score.prepared(teacher, {"superlm-x": begun}, TensorData(rows(24, 5)), work=Work())
    before = [prepared.loss(begun, a) for a in SPACE.architectures]
    models: dict[str, torch.nn.Module] = {"teacher": teacher, "student": begun}
    objective = Sandwich(space=SPACE, phase=PHASE, heads=4)
    fit(objective, models, data, setup=Setup(steps=60, batch=16), ctx=context(tmp_path))
    after = [prepared.loss(begun, a) for a in SPACE.architectures]
    assert all(b < a for a, b in zip(before, after, strict=True))


def spaces() -> Spaces:
    other = SubSpace(full=FULL, layers=(4,), widths=(16,), ratios=(2.0,), heads=(3, 4))
    return Spaces(spaces={"low": SPACE, "high": other}, tokens=8)


def inputs() -> dict[str, Any]:
    def built(seed: int) -> Built:
        model = encoder(seed)
        kwargs = {"architecture": FULL.record()}
        return Built(spec=Model(build=Encoder, kwargs=kwargs), module=model)

    return {
        "data": TensorData(rows()),
        "teacher": built(0),
        "superlm-low": built(1),
        "superlm-high": built(2),
    }


def test_a_candidate_scores_minus_the_relation_loss_of_its_own_superlm() -> None:
    given, space = inputs(), spaces()
    score = RelationScore(rows=20, heads=4, batch=7).prepare(space, given, work=Work())
    batch = {name: value[:20] for name, value in rows().items()}
    for name, superlm in (("low", "superlm-low"), ("high", "superlm-high")):
        a = space.spaces[name].architectures[-1]
        with torch.no_grad():
            targets = given["teacher"].module.projections(batch)
            found = extract(given[superlm].module, a).projections(batch)
        expected = sum(
            float(relation_loss(targets[p], found[p], batch["mask"], heads=4)) for p in PROJECTIONS
        )
        candidate = space.model(encoding_of(name, a))
        assert score(candidate, given, work=Work()) == pytest.approx(-expected, rel=1e-4)


def test_too_little_held_out_text_is_one_line() -> None:
    score = RelationScore(rows=25, heads=4)
    with pytest.raises(BadData, match="25 held-out rows are wanted, and there are 24"):
        score.prepare(spaces(), inputs(), work=Work())


def searched(tmp_path: Path, budget: Mapping[str, float]) -> Any:  # Any: data
    from stillhouse.artifact import save_model
    from stillhouse.data.shards import save_data

    given = inputs()
    artifacts = {
        port: save_data(tmp_path / port, value.columns)
        if isinstance(value, TensorData)
        else save_model(tmp_path / port, value)
        for port, value in given.items()
    }
    search = Search(
        name="search",
        space=spaces(),
        score=RelationScore(rows=20, heads=4),
        budget=budget,
        trials=len(spaces()),
        inputs=dict.fromkeys(given, "file:x"),
        strategy=Exhaustive(),
    )
    (tmp_path / "out").mkdir()
    result = search.run(artifacts, context(tmp_path / "out"))
    return result.outputs["trials"].open()


def test_a_search_scores_what_fits_the_budget_and_choices_follow_their_rules(
    tmp_path: Path,
) -> None:
    space = spaces()
    costs = sorted(space.cost(space.at(i))["macs"] for i in range(len(space)))
    budget = costs[len(costs) // 2]
    trials = searched(tmp_path, {"macs": budget})
    found = [json.loads(text) for text in trials.columns["encoding"]]
    assert len(found) == sum(cost <= budget for cost in costs)

    def chosen(rule: Any, number: int = 0) -> str:
        choose = Choose(spaces=space, rule=rule, cost="macs", number=number)
        return json.dumps(choose.encoding(trials, Work.seeded(0)), sort_keys=True)

    best = trials.columns["encoding"][int(trials.columns["score"].argmax())]
    assert chosen("best") == best
    assert space.cost(json.loads(chosen("largest")))["macs"] == max(
        space.cost(each)["macs"] for each in found
    )
    drawn = {chosen("random", number) for number in range(5)}
    assert len(drawn) == 5
    assert best not in drawn


def test_settings_of_the_sandwich_that_cannot_work_are_one_line() -> None:
    narrow = SubSpace(full=FULL, layers=(2,), widths=(8,), ratios=(2.0,), heads=(1,))
    with pytest.raises(
        BadSetting, match="4 channels of the narrowest subnet cannot be split over 12"
    ):
        Sandwich(space=narrow, phase=PHASE, heads=12)
    with pytest.raises(BadSetting, match="draws >= 0"):
        Sandwich(space=SPACE, phase=PHASE, heads=4, draws=-1)
