"""Checkpoints that must not be used: of another training, of other conditions, damaged."""

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.checkpoint import last_checkpoint
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Objective
from stillhouse.recipe import Context, Event
from stillhouse.testing.killing import KilledError, die_at_checkpoint

from .toys import (
    Net,
    Shift,
    same,
    toy_context,
    toy_data,
    toy_models,
    toy_objective,
    toy_setup,
    weights,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    ctx: Context,
    *,
    objective: Objective | None = None,
    data: TensorData | None = None,
    models: MutableMapping[str, nn.Module] | None = None,
    **setup: Any,
) -> tuple[dict[str, torch.Tensor], int | None]:
    """The weights after a training, and where it went on."""
    models, data = models or toy_models(), data or toy_data()
    found = fit(objective or toy_objective(), models, data, setup=toy_setup(**setup), ctx=ctx)
    return weights(models), found.resumed_at


@pytest.fixture
def killed(tmp_path: Path) -> Context:
    """The context of a training that died at step 10 of 20."""
    ctx = toy_context(tmp_path / "killed", observe=die_at_checkpoint, checkpoint_steps=10)
    with pytest.raises(KilledError):
        train(ctx)
    return toy_context(tmp_path / "killed")


def other_teacher() -> dict[str, nn.Module]:
    models = toy_models()
    with torch.no_grad():
        models["teacher"].head.bias += 1
    return models


@pytest.mark.parametrize(("changed", "different"), [
    ({"objective": toy_objective(clip_norm=0.5)}, "objective"),
    ({"data": toy_data(seed=1)}, "data"),
    ({"models": other_teacher()}, "role 'teacher'"),
    ({"augment": Shift()}, "augmentation"),
    ({"seed": 4, "steps": 30}, r"steps 20 \(now 30\), seed 3 \(now 4\)"),
    ({"batch": 16}, r"batch 8 \(now 16\)"),
], ids=["objective", "data", "teacher", "augmentation", "seed-steps", "batch"])  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(
    killed: Context, changed: dict[str, Any], different: str
) -> None:
    with pytest.raises(
        BadSetting,
        match=rf"stage 'toy': the checkpoint in .*checkpoints is of another training; different: "
        rf"{different}\. Give another folder, or delete this one",
    ):
        train(killed, **changed)
    # what it belongs to goes on
    assert train(killed)[1] == 10


def test_rows_of_data_are_told_apart(tmp_path: Path) -> None:
    ctx = toy_context(tmp_path, observe=die_at_checkpoint, checkpoint_steps=10)
    with pytest.raises(KilledError):
        train(ctx)
    changed = toy_data()
    images = changed.columns["images"]
    assert isinstance(images, torch.Tensor)
    images[49, 2, 7, 7] += 1
    with pytest.raises(BadSetting, match="different: data"):
        train(toy_context(tmp_path), data=changed)


@pytest.mark.parametrize(("threads", "pieces", "said"), [
    (2, 1, "threads 1 (now 2)"),
    (1, 2, "micro-batches 1 (now 2)"),
], ids=["threads", "micro-batches"])  # fmt: skip
def test_other_conditions_begin_anew_and_the_same_go_on(
    tmp_path: Path, killed: Context, threads: int, pieces: int, said: str
) -> None:
    whole, _ = train(toy_context(tmp_path / "whole"))
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        die_at_checkpoint(event)

    torch.set_num_threads(threads)
    with pytest.raises(KilledError):
        train(replace(killed, micro_batches=pieces, observe=observe, checkpoint_steps=5))
    torch.set_num_threads(1)
    assert events[0].text == (
        f"the checkpoint at 10 was made with {said}: it is kept, and this run begins anew"
    )
    assert events[-1].done == 5
    again, resumed_at = train(killed)
    assert same(again, whole)
    assert resumed_at == 10


@pytest.mark.parametrize("text", ["[]", "7", '"step"', "{}", '{"digest": {}, "record": 3}', ""])
def test_a_checkpoint_of_another_json_type_is_none(
    tmp_path: Path, killed: Context, text: str
) -> None:
    (file,) = killed.checkpoints.glob("step-*/state.json")
    file.write_text(text)
    again, resumed_at = train(killed)
    assert same(again, train(toy_context(tmp_path / "whole"))[0])
    assert resumed_at is None


def test_a_changed_number_in_a_checkpoint_is_found(killed: Context) -> None:
    (file,) = killed.checkpoints.glob("step-*/state.json")
    record = json.loads(file.read_text())
    changed = record["record"].replace('"step": 10', '"step": 9')
    assert changed != record["record"]
    file.write_text(json.dumps(record | {"record": changed}))
    assert last_checkpoint(killed.checkpoints) is None


def test_a_checkpoint_of_another_network_is_refused(killed: Context) -> None:
    for width in (6, 2):
        models = toy_models()
        models["student"] = Net(width)
        with pytest.raises(
            BadSetting,
            match="is of another network: 7 of its tensors differ, as 'student/conv.bias'",
        ):
            train(killed, models=models)
    models = toy_models()
    models["student"].add_module("more", nn.Linear(2, 2))
    with pytest.raises(BadSetting, match="2 of its tensors differ, as 'student/more.bias'"):
        train(killed, models=models)
    assert train(killed)[1] == 10


def test_a_checkpoint_with_another_role_or_view_is_refused(tmp_path: Path) -> None:
    def die(folder: str, **setup: Any) -> Context:
        ctx = toy_context(tmp_path / folder, observe=die_at_checkpoint, checkpoint_steps=10)
        with pytest.raises(KilledError):
            train(ctx, models=toy_models() | {"critic": Net(2)}, **setup)
        return toy_context(tmp_path / folder)

    ctx = die("role")
    with pytest.raises(BadSetting, match=r"different: role 'critic'\. Give"):
        train(ctx)
    ctx = die("plain", plain=True)
    with pytest.raises(BadSetting, match=r"different: plain True \(now None\)"):
        train(ctx, models=toy_models() | {"critic": Net(2)})


def test_data_of_any_dtype_can_be_told_apart(tmp_path: Path) -> None:
    def data(value: float) -> TensorData:
        halves = torch.full((50, 4), value, dtype=torch.bfloat16)
        return TensorData({**toy_data().columns, "embedding": halves})

    ctx = toy_context(tmp_path, observe=die_at_checkpoint, checkpoint_steps=10)
    with pytest.raises(KilledError):
        train(ctx, data=data(1.0))
    with pytest.raises(BadSetting, match="different: data"):
        train(toy_context(tmp_path), data=data(1.5))
    assert train(toy_context(tmp_path), data=data(1.0))[1] == 10
