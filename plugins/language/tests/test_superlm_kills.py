"""SuperLM trainings that die in the middle go on to the same bits, their teacher cached or not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.cache import Cache
from stillhouse.data.shards import save_data
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse.recipe import Context, Event, Observer
from stillhouse.stages import Train
from stillhouse.testing.killing import KilledError, die_at_checkpoint
from stillhouse_language import Architecture
from stillhouse_language.encoder import PROJECTIONS, Encoder
from stillhouse_language.sandwich import Linear, Sandwich
from stillhouse_language.spaces import SubSpace

FULL = Architecture(
    layers=4, width=16, inner=64, heads=4, head_width=4, vocabulary=40, positions=12, full_heads=4
)
SPACE = SubSpace(full=FULL, layers=(2, 3), widths=(8, 12), ratios=(2.0, 3.0), heads=(2, 3))
KINDS = ("cached", "computed")


def stage(kind: str) -> Train:
    """A SuperLM's training with dropout, whose draws must be the same behind a kill."""
    phase = Phase(
        trains=("student",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=3e-3),
        schedule=Linear(),
        clip_norm=1.0,
    )
    return Train(
        name="superlm",
        objective=Sandwich(space=SPACE, phase=phase, heads=4),
        inputs=dict.fromkeys(("data", "teacher", "student"), "file:x"),
        steps=10,
        batch=8,
        views=1,
        cache={"teacher": Cache(outputs=PROJECTIONS)} if kind == "cached" else {},
    )


def inputs(folder: Path) -> dict[str, Artifact]:
    """Data and roles as artifacts, each time to the same bytes."""
    torch.manual_seed(3)
    mask = torch.ones(24, 8, dtype=torch.int64)
    mask[::2, 5:] = 0
    rows = {"tokens": torch.randint(0, 40, (24, 8)), "mask": mask}
    found = {"data": save_data(folder / "data", rows)}
    for role, architecture in (("teacher", FULL), ("student", SPACE.stored)):
        spec = Model(build=Encoder, kwargs={"architecture": architecture.record()})
        found[role] = save_model(folder / role, Built(spec=spec, module=spec.new()))
    return found


def run(kind: str, folder: Path, observe: Observer | None = None) -> dict[str, Tensor]:
    number = len([*folder.glob("out-*")])
    given = inputs(folder / f"inputs-{number}")
    ctx = Context(
        stage="superlm",
        out=folder / f"out-{number}",
        checkpoints=folder / "checkpoints",
        caches=folder / "caches",
        checkpoint_steps=4,
        digests={port: artifact.digest for port, artifact in given.items()},
    )
    ctx.out.mkdir()
    made = stage(kind).run(given, replace(ctx, observe=observe) if observe else ctx)
    return dict(made.outputs["student"].open().module.state_dict())


def check_resumed(kind: str, folder: Path, whole: dict[str, Tensor]) -> None:
    events: list[Event] = []
    again = run(kind, folder, events.append)
    assert "resumed at step 4" in [event.text for event in events]
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_one_killed_at_a_checkpoint_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = run(kind, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(kind, tmp_path / "killed", die_at_checkpoint)
    check_resumed(kind, tmp_path / "killed", whole)


def test_a_cached_teacher_gives_the_bits_of_one_that_runs(tmp_path: Path) -> None:
    """The projections are kept in fp32, computed in batches of the training's own size."""
    one, other = (run(kind, tmp_path / kind) for kind in KINDS)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-7)


def sigkill_at_checkpoint(event: Event) -> None:
    if event.text == "checkpoint":
        os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(kind: str, folder: str) -> None:
    torch.set_num_threads(1)  # as conftest.py has it: sums in one order
    run(kind, Path(folder), sigkill_at_checkpoint)


@pytest.mark.slow
def test_one_ended_by_sigkill_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run("cached", tmp_path / "whole")
    code = "import sys, test_superlm_kills as here; here.train_and_die(*sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", code, "cached", str(tmp_path / "killed")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    check_resumed("cached", tmp_path / "killed", whole)
