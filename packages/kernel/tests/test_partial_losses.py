"""Partial losses: subnets of one supernet, back-propagated one after the other before one step."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.engine import fit
from stillhouse.errors import ContractError
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse.training import mix

from .toys import same, toy_context, toy_data, toy_models, toy_phase, toy_setup, weights

WIDTHS = (4, 3, 2, 1)


def subnet_loss(models: Models, batch: Tensors, width: int) -> Tensor:
    """Cross-entropy of the student's first `width` channels alone."""
    student = models["student"]
    hidden = student.norm(student.conv(batch["images"])).relu().mean((2, 3))
    kept = hidden * (torch.arange(hidden.shape[1]) < width)
    return nn.functional.cross_entropy(student.head(kept), batch["labels"])


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """The widest, the narrowest and two between; `at_once`: in one graph."""

    phase: Phase
    at_once: bool = False
    none: bool = False

    @property
    def phases(self) -> Mapping[str, Phase]:
        return {"main": self.phase}

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors | Iterator[Tensors]:
        widths = () if self.none else WIDTHS
        if self.at_once:
            return {f"ce_{width}": subnet_loss(models, batch, width) for width in widths}
        return ({f"ce_{width}": subnet_loss(models, batch, width)} for width in widths)


def trained(folder: Path, objective: Sandwich, **changes: int) -> tuple[dict[str, nn.Module], list]:
    models, ctx = toy_models(), toy_context(folder)
    fitted = fit(objective, models, toy_data(), setup=toy_setup(**changes), ctx=ctx)
    return models, list(fitted.curves)


def test_partial_losses_give_the_bits_of_a_plain_loop(tmp_path: Path) -> None:
    models, curves = trained(tmp_path, Sandwich(phase=toy_phase(clip_norm=0.5)), steps=6)
    plain, data, setup = toy_models(), toy_data(), toy_setup(steps=6)
    optimizer = torch.optim.SGD(
        plain["student"].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    plain["student"].train()
    batches = data.batches(setup.batch, rng=Generator().manual_seed(mix(setup.seed, 1, 0, 0)))
    for batch, _ in zip(batches, range(6), strict=False):
        optimizer.zero_grad()
        for width in WIDTHS:
            subnet_loss(plain, batch, width).backward()
        nn.utils.clip_grad_norm_(plain["student"].parameters(), 0.5)
        optimizer.step()
    plain["student"].eval()
    assert same(weights(models), weights(plain))
    row = curves[-1]
    assert set(row) == {"step", "loss", *(f"ce_{width}" for width in WIDTHS)}
    assert row["loss"] == pytest.approx(sum(row[f"ce_{width}"] for width in WIDTHS))


def test_they_are_the_gradients_of_the_sum(tmp_path: Path) -> None:
    apart, _ = trained(tmp_path / "apart", Sandwich(phase=toy_phase()), steps=3)
    whole, _ = trained(tmp_path / "whole", Sandwich(phase=toy_phase(), at_once=True), steps=3)
    for name, value in weights(apart).items():
        torch.testing.assert_close(value, weights(whole)[name])


def test_accumulation_takes_partial_losses_of_each_micro_batch(tmp_path: Path) -> None:
    # BatchNorm sees micro-batches: only a network without it gives the same
    def run(folder: Path, accumulate: int) -> dict[str, Tensor]:
        models = toy_models()
        models["student"].norm = nn.Identity()
        objective = Sandwich(phase=toy_phase(accumulate=accumulate))
        fit(objective, models, toy_data(), setup=toy_setup(steps=3), ctx=toy_context(folder))
        return weights(models)

    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def most_alive(folder: Path, objective: Sandwich) -> int:
    """The most bytes that graphs keep for backward passes at a time."""
    alive = {"now": 0, "most": 0}

    def pack(value: Tensor) -> Saved:
        saved = Saved(value)
        alive["now"] += value.nbytes
        alive["most"] = max(alive.values())
        weakref.finalize(saved, lambda size: alive.update(now=alive["now"] - size), value.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        trained(folder, objective, steps=2)
    return alive["most"]


def test_one_graph_is_in_memory_at_a_time(tmp_path: Path) -> None:
    apart = most_alive(tmp_path / "apart", Sandwich(phase=toy_phase()))
    whole = most_alive(tmp_path / "whole", Sandwich(phase=toy_phase(), at_once=True))
    assert whole > 3.5 * apart


def test_no_partial_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="stage 'toy': phase 'main' gave no partial loss"):
        trained(tmp_path, Sandwich(phase=toy_phase(), none=True))
