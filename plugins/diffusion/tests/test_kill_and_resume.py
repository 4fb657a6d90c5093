"""Trainings and sampling that die in the middle of each phase go on to the same bits."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, recorded
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.objectives.objective import Objective, Optimizer, Phase
from stillhouse.recipe import Context, Event
from stillhouse.testing.killing import KilledError, die_at_checkpoint
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_diffusion.denoisers import Discriminator, edm_mlp
from stillhouse_diffusion.making import TeacherPairs
from stillhouse_diffusion.phases import DenoiseImages, MatchDistribution, MatchScores, Noise
from stillhouse_diffusion.sampling import heun_sampler

NOISE = Noise(high=10.0)
SPEC = Model(build=edm_mlp, kwargs={"channels": 2, "classes": 4, "width": 8, "layers": 2})


PAIRS = TeacherPairs(rows=10, classes=4, shape=(2, 1, 1), size=4)


def phase(*roles: str, **more: Any) -> Phase:
    return Phase(trains=roles, optimizer=Optimizer(build=torch.optim.AdamW, lr=1e-3), **more)


OBJECTIVES: Mapping[str, Objective] = {
    "teacher": DenoiseImages(
        phases={"teacher": phase("teacher", ema={"teacher": 0.9})}, noise=NOISE
    ),
    "tsm": MatchScores(phases={"student": phase("student")}, noise=NOISE),
    "dm": MatchDistribution(
        phases={"student": phase("student", every=3), "fake": phase("fake")}, noise=NOISE
    ),
    "adm": MatchDistribution(
        phases={"student": phase("student", every=2), "fake": phase("fake", "discriminator")},
        noise=NOISE,
        adversarial=3e-3,
    ),
}


def roles() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {role: SPEC.new() for role in ("student", "teacher", "fake")}
    return {**made, "discriminator": Discriminator(features=8, side=1)}


def data() -> TensorData:
    points = 0.5 * torch.randn(24, 2, 1, 1, generator=Generator().manual_seed(4))
    return TensorData({"images": points, "labels": torch.arange(24) % 4})


def run(objective: Objective, ctx: Context) -> dict[str, Tensor]:
    models = roles()
    fit(objective, models, data(), setup=Setup(steps=8, batch=8), ctx=ctx)
    return {
        f"{role}.{name}": value
        for role, module in models.items()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("step", [3, 5])
def test_a_training_killed_goes_on_to_the_same_bits(name: str, step: int, tmp_path: Path) -> None:
    ctx = Context(stage=name, out=tmp_path, checkpoints=tmp_path / "a", caches=tmp_path / "b")
    whole = run(OBJECTIVES[name], ctx)
    dying = replace(
        ctx, checkpoints=tmp_path / "c", checkpoint_steps=step, observe=die_at_checkpoint
    )
    with pytest.raises(KilledError):
        run(OBJECTIVES[name], dying)
    events: list[Event] = []
    again = run(OBJECTIVES[name], replace(dying, observe=events.append))
    assert f"resumed at step {step}" in [event.text for event in events]
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def killed(*words: str) -> None:
    """Have a process of its own run a function of this module; it must end by SIGKILL."""
    # one thread, as conftest.py has it: sums in one order
    code = (
        "import sys, torch, test_kill_and_resume as here; torch.set_num_threads(1); "
        "getattr(here, sys.argv[1])(*sys.argv[2:])"
    )
    here = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, cwd=here,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sigkill_at_checkpoint(event: Event) -> None:
    if event.text == "checkpoint":
        end()


def train_and_die(name: str, folder: str) -> None:
    run(OBJECTIVES[name], replace(context(name, Path(folder)), observe=sigkill_at_checkpoint))


def make_pairs_and_die(folder: str) -> None:
    parts = PAIRS({"teacher": sampler()}, work=Work.seeded(3, kept=Path(folder)))["train"]
    next(parts)
    end()


def context(name: str, folder: Path) -> Context:
    return Context(
        stage=name,
        out=folder,
        checkpoints=folder / "checkpoints",
        caches=folder / "caches",
        checkpoint_steps=5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_ended_by_sigkill_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    folders = {each: tmp_path / each for each in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    whole = run(OBJECTIVES[name], context(name, folders["whole"]))
    killed("train_and_die", name, str(folders["killed"]))
    events: list[Event] = []
    ctx = context(name, folders["killed"])
    again = run(OBJECTIVES[name], replace(ctx, observe=events.append))
    assert "resumed at step 5" in [event.text for event in events]
    assert all(torch.equal(again[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_pairs_ended_by_sigkill_go_on_behind_the_last_part(tmp_path: Path) -> None:
    whole = list(PAIRS({"teacher": sampler()}, work=Work.seeded(3))["train"])
    killed("make_pairs_and_die", str(tmp_path))
    teacher, calls = sampler(), list[int]()
    teacher.module.register_forward_hook(lambda module, given, found: calls.append(1))
    again = list(PAIRS({"teacher": teacher}, work=Work.seeded(3, kept=tmp_path))["train"])
    assert len(calls) == 2
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(one[column], other[column]) for column in one)


def sampler() -> Built:
    kwargs: dict[str, Any] = {
        "denoiser": recorded(SPEC), "steps": 4, "low": 0.002, "high": 10.0, "rho": 7.0,
        "shape": [2, 1, 1],
    }  # fmt: skip
    torch.manual_seed(0)
    spec = Model(build=heun_sampler, kwargs=kwargs)
    return Built(spec=spec, module=spec.new().eval())


def test_pairs_killed_in_the_middle_are_the_same_and_not_made_twice(tmp_path: Path) -> None:
    teacher = sampler()
    whole = list(PAIRS({"teacher": teacher}, work=Work.seeded(3))["train"])
    work = Work.seeded(3, kept=tmp_path)
    parts = PAIRS({"teacher": teacher}, work=work)["train"]
    next(parts)
    parts.close()  # dies behind its first part
    calls: list[int] = []
    teacher.module.register_forward_hook(lambda module, given, found: calls.append(1))
    again = list(PAIRS({"teacher": teacher}, work=work)["train"])
    assert len(calls) == 2
    for one, other in zip(whole, again, strict=True):
        for column in ("noise", "labels", "images"):
            assert torch.equal(one[column], other[column])


def test_pairs_are_what_the_sampler_makes_of_their_own_noise() -> None:
    teacher = sampler()
    (part,) = TeacherPairs(rows=6, classes=4, shape=(2, 1, 1))(
        {"teacher": teacher}, work=Work.seeded(0)
    )["train"]
    with torch.no_grad():
        expected = teacher.module({"noise": part["noise"], "labels": part["labels"]})["images"]
    assert torch.equal(part["images"], expected)
    assert part["labels"].tolist() == [0, 1, 2, 3, 0, 1]
