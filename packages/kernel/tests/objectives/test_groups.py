"""Parameter groups by rule: decay, a rate a layer, a rate a role; resumed to the same bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stillhouse.engine import fit
from stillhouse.errors import BadSetting, ContractError
from stillhouse.objectives.groups import Group, Grouping, LayerDecay, NoDecay, one_group
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse.phase_state import PhaseState

from ..toys import toy_context, toy_data, toy_models, toy_objective, toy_setup  # noqa: TID252


def block() -> nn.Module:
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "layers": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
            "norm": nn.LayerNorm(4),
        }
    )


def layer(name: str) -> int:
    """embed: 0; layers.0: 1; layers.1 and what comes after: 2."""
    return 0 if name.startswith("embed") else 1 if name.startswith("layers.0") else 2


def phase_state(grouping: Grouping, *, lr_scale: float = 1.0, **kwargs: float) -> PhaseState:
    phase = Phase(
        trains=("student",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=0.1, kwargs={"weight_decay": 0.5}),
        lr_scale={"student": lr_scale},
        grouping=grouping,
    )
    return PhaseState("student", phase, {"student": block()})


def groups(made: PhaseState) -> list[tuple[int, float, float]]:
    """Of each group: its parameters, learning rate and decay."""
    return [
        (len(g["params"]), pytest.approx(g["lr"]), g["weight_decay"])
        for g in made.optimizer.param_groups
    ]


def test_without_a_rule_a_role_is_one_group():
    assert groups(phase_state(one_group)) == [(7, 0.1, 0.5)]


def test_biases_and_norms_do_not_decay():
    assert groups(phase_state(NoDecay())) == [(3, 0.1, 0.5), (4, 0.1, 0.0)]
    assert groups(phase_state(NoDecay(also=("embed.weight",)))) == [(2, 0.1, 0.5), (5, 0.1, 0.0)]


def test_a_layer_learns_by_its_distance_from_the_output():
    rule = LayerDecay(decay=0.5, layers=3, layer_of=layer)
    assert groups(phase_state(rule)) == [(1, 0.025, 0.5), (2, 0.05, 0.5), (4, 0.1, 0.5)]
    # both rules, and a role at half the rate
    both = LayerDecay(decay=0.5, layers=3, layer_of=layer, then=NoDecay())
    assert groups(phase_state(both, lr_scale=0.5)) == [
        (1, 0.0125, 0.5), (1, 0.025, 0.5), (1, 0.05, 0.5), (1, 0.025, 0.0), (3, 0.05, 0.0),
    ]  # fmt: skip


def test_a_parameter_that_does_not_decay_stays_where_no_gradient_moves_it():
    made = phase_state(NoDecay())
    before = [p.detach().clone() for g in made.optimizer.param_groups for p in g["params"]]
    for parameter in made.parameters:
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.step()
    after = [p for g in made.optimizer.param_groups for p in g["params"]]
    # AdamW: p - lr * weight_decay * p
    for old, new in zip(before[:3], after[:3], strict=True):
        torch.testing.assert_close(new, 0.95 * old)
    assert all(torch.equal(old, new) for old, new in zip(before[3:], after[3:], strict=True))


def test_the_schedule_moves_every_group():
    made = phase_state(LayerDecay(decay=0.5, layers=3, layer_of=layer))
    assert made.base == pytest.approx([0.025, 0.05, 0.1])


@dataclass(frozen=True, kw_only=True)
class Forgets:
    twice: bool = False

    def __call__(self, module: nn.Module) -> Sequence[Group]:
        names = [name for name, _ in module.named_parameters()]
        first = Group(names=tuple(names))
        return (
            [first, Group(names=("norm.bias",))] if self.twice else [Group(names=tuple(names[1:]))]
        )


def test_a_parameter_in_no_group_or_in_two_is_named():
    with pytest.raises(ContractError, match="role 'student': Forgets puts 'embed.weight' into 0"):
        phase_state(Forgets())
    with pytest.raises(ContractError, match="puts 'norm.bias' into 2 groups"):
        phase_state(Forgets(twice=True))
    with pytest.raises(ContractError, match="'layers.1.weight' is of layer 2, not of 0 ... 1"):
        phase_state(LayerDecay(decay=0.5, layers=2, layer_of=layer))
    with pytest.raises(BadSetting, match=r"0 < decay <= 1 and layers >= 1 \(got 0.0 and 3\)"):
        LayerDecay(decay=0.0, layers=3, layer_of=layer)


def test_a_training_with_groups_goes_on_to_the_same_bits(tmp_path: Path):
    objective = toy_objective(grouping=NoDecay())

    def trained(folder: Path, *, dies: bool = False) -> dict[str, torch.Tensor]:
        models, setup = toy_models(), toy_setup()
        ctx = replace(toy_context(folder), checkpoint_steps=max(1, setup.steps // 2))
        if dies:
            with pytest.raises(KeyboardInterrupt):
                fit(objective, models, toy_data(), setup=setup, ctx=replace(ctx, observe=_die))
            models = toy_models()
        fit(objective, models, toy_data(), setup=setup, ctx=ctx)
        return models["student"].state_dict()

    whole, again = trained(tmp_path / "whole"), trained(tmp_path / "again", dies=True)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def _die(event: object) -> None:
    if getattr(event, "text", "") == "checkpoint":
        raise KeyboardInterrupt
