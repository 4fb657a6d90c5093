"""A finished training evaluated again on some of its own batches: its terms and their gradients
before its first step and after its last, and what the terms come to where the student may not
learn.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from stillhouse.artifact import Artifact
from stillhouse.objectives.objective import Composed, Composing, Models, Phase, Tensors
from stillhouse.recipe import Context
from stillhouse.stages.ports import open_role
from stillhouse.stages.train import Train, before_training
from stillhouse.training import STEP, PlainView, Position, batches_from, mix

STUDENT = "student"
BATCHES = 4  # that terms are measured on
CONTROL_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A weighted term's mean over the batches, and the mean 2-norm of its gradient with respect to
    the student's weights.
    """

    value: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How a teacher's softmax at a term's temperature spreads, mean over samples: the probability
    beside the largest, and the entropy as a share of that of a flat one.
    """

    term: str
    temperature: float
    beside: float
    entropy: float


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Terms by name. `control`: after `CONTROL_STEPS` in which all but the student was trained;
    empty where the objective is not composed of terms or trains nothing else.
    """

    start: Mapping[str, Measured]
    end: Mapping[str, Measured]
    control: Mapping[str, float] = field(default_factory=dict[str, float])
    answers: tuple[Answers, ...] = ()


def probe(
    stage: Train,
    inputs: Mapping[str, Artifact],
    outputs: Mapping[str, Artifact],
    ctx: Context,
) -> Probed:
    """Measure a training by what its stage read and left. Nothing of either is changed. A student
    that is saved without its base is not supported: its stage's `bases` must be empty.
    """
    data, built = before_training(stage, inputs, ctx)
    modules = {role: b.module.to(ctx.device) for role, b in built.items()}
    modules |= {role: PlainView(modules[role]) for role in stage.plain}
    trained = {
        role: open_role(role, outputs[role], stage=stage.name).module.to(ctx.device)
        for role in stage.outputs
        if not role.endswith("-ema")
    }
    batches = batches_from(Position(), data, stage.setup(), ctx)
    try:
        seen = list(islice(batches, BATCHES))
        return Probed(
            start=_measured(stage, modules, seen, step=0),
            end=_measured(stage, {**modules, **trained}, seen, step=stage.steps - 1),
            control=_control(stage, modules, batches, seen),
            answers=_answers(stage, modules, seen),
        )
    finally:
        batches.close()


def composed_of(stage: Train) -> Composed | None:
    """The terms that a stage's objective is composed of; None for another one."""
    objective = stage.objective
    found = objective.composed if isinstance(objective, Composing) else objective
    return found if isinstance(found, Composed) else None


def _measured(
    stage: Train, modules: Models, batches: Sequence[Tensors], *, step: int
) -> dict[str, Measured]:
    found: dict[str, list[tuple[float, float]]] = {}
    for name, phase in stage.objective.phases.items():
        if STUDENT not in phase.trains:
            continue
        roles = _trainable(modules, phase)
        learning = [p.requires_grad_(True) for p in roles[STUDENT].parameters()]
        for number, batch in enumerate(batches):
            sums: dict[str, tuple[float, float]] = {}
            for terms in _terms(stage, name, roles, batch, step=step, number=number):
                for term, value in terms.items():
                    had = sums.get(term, (0.0, 0.0))
                    sums[term] = had[0] + float(value.detach()), had[1] + _norm(value, learning)
            for term, pair in sums.items():
                found.setdefault(term, []).append(pair)
    return {
        term: Measured(
            value=sum(v for v, _ in pairs) / len(pairs),
            gradient=sum(g for _, g in pairs) / len(pairs),
        )
        for term, pairs in found.items()
    }


def _trainable(modules: Models, phase: Phase) -> dict[str, nn.Module]:
    """Copies of the roles as a phase runs them, none of them learning yet."""
    roles = {role: copy.deepcopy(module) for role, module in modules.items()}
    for role, module in roles.items():
        module.requires_grad_(False).train(role in phase.trains)
    return roles


def _terms(
    stage: Train, phase: str, roles: Models, batch: Tensors, *, step: int, number: int
) -> Iterator[Tensors]:
    rng = torch.Generator().manual_seed(mix(stage.seed, STEP, number, 0))
    with torch.random.fork_rng():
        torch.manual_seed(stage.seed)
        given = stage.objective.terms(phase, roles, batch, step=step, steps=stage.steps, rng=rng)
        if isinstance(given, Mapping):
            yield given
        else:
            yield from given


def _norm(value: Tensor, parameters: Sequence[Tensor]) -> float:
    if not value.requires_grad:
        return 0.0
    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    reached = [g for g in cast("Sequence[Tensor | None]", grads) if g is not None]
    return math.sqrt(sum(float(g.double().square().sum()) for g in reached))


def _control(
    stage: Train, modules: Models, batches: Iterator[Tensors], seen: Sequence[Tensors]
) -> dict[str, float]:
    """The terms on `seen` after other batches have trained everything but the student."""
    composed = composed_of(stage)
    phases = {
        name: replace(
            phase,
            trains=tuple(role for role in phase.trains if role != STUDENT),
            lr_scale={r: s for r, s in phase.lr_scale.items() if r != STUDENT},
            ema={},
        )
        for name, phase in stage.objective.phases.items()
        if STUDENT in phase.trains and len(phase.trains) > 1
    }
    if composed is None or not phases:
        return {}
    frozen = replace(stage, objective=replace(composed, phases=phases), steps=CONTROL_STEPS)
    found: dict[str, float] = {}
    for name, phase in phases.items():
        roles = _trainable(modules, phase)
        roles[STUDENT].train()  # as it was: BatchNorm by the batch
        learning = [p.requires_grad_(True) for r in phase.trains for p in roles[r].parameters()]
        optimizer = phase.optimizer.new([{"params": learning}])
        for number, batch in enumerate(islice(batches, CONTROL_STEPS)):
            for terms in _terms(frozen, name, roles, batch, step=number, number=number):
                loss = torch.stack([value for value in terms.values() if value.requires_grad])
                loss.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for number, batch in enumerate(seen):
            for terms in _terms(frozen, name, roles, batch, step=CONTROL_STEPS - 1, number=number):
                for term, value in terms.items():
                    found[term] = found.get(term, 0.0) + float(value.detach()) / len(seen)
    return found


def _answers(stage: Train, modules: Models, batches: Sequence[Tensors]) -> tuple[Answers, ...]:
    """Of the terms that have a temperature and read logits of a role that no phase trains."""
    composed = composed_of(stage)
    if composed is None:
        return ()
    found: list[Answers] = []
    for name, loss in composed.losses.items():
        temperature = loss.term.hyperparameters.get("temperature")
        reads = [read.partition(".")[0] for read in loss.term.names if read.endswith(".logits")]
        frozen = [role for role in reads if role in modules and role not in stage.outputs]
        if not frozen or not isinstance(temperature, (int, float)):
            continue
        module = copy.deepcopy(modules[frozen[0]]).eval()
        with torch.no_grad():
            logits = torch.cat([module(batch)["logits"].flatten(0, -2) for batch in batches])
        p = torch.softmax(logits.double() / temperature, dim=-1)
        entropy = torch.special.entr(p).sum(-1) / math.log(p.shape[-1])
        found.append(
            Answers(
                term=name,
                temperature=float(temperature),
                beside=float((1 - p.max(-1).values).mean()),
                entropy=float(entropy.mean()),
            )
        )
    return tuple(found)
