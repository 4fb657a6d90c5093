"""A teacher of which each process holds a part gives the student of a whole one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.training import alone, sharded

from .toys import Tall, toy_context, toy_data, toy_models, toy_objective, toy_setup

WORKER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
torch.set_num_threads(1)
from stillhouse import parallel
from stillhouse.engine import fit
from tests.toys import Tall, toy_context, toy_data, toy_models, toy_objective, toy_setup
folder, shard = Path(sys.argv[1]), tuple(filter(None, sys.argv[2].split(",")))
rank, nproc = parallel.world()
models = {**toy_models(), "teacher": Tall()}
models["student"].norm = nn.Identity()  # in train mode it would see this process's rows only
ctx = toy_context(folder / str(rank), rank=rank, nproc=nproc, shard=shard)
fitted = fit(toy_objective(), models, toy_data(), setup=toy_setup(), ctx=ctx)
save_file(models["student"].state_dict(), folder / f"{rank}.safetensors")
parts = [getattr(p, "to_local", lambda p=p: p)().numel() for p in models["teacher"].parameters()]
(folder / f"{rank}.json").write_text(json.dumps({"parts": sum(parts), "last": fitted.last}))
parallel.leave()
"""


def train(folder: Path, shard: str) -> list[tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """Of each of two processes: the student, how many numbers of the teacher it held, its losses."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kernel = Path(__file__).parents[1]
    path = os.pathsep.join([str(kernel), os.environ.get("PYTHONPATH", "")])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), shard],
            env={**os.environ, **group, "RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [(worker.communicate(timeout=300)[1], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0, 0], ended
    return [
        (
            load_file(folder / f"{rank}.safetensors"),
            json.loads((folder / f"{rank}.json").read_text()),
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_a_sharded_teacher_gives_the_same_student(tmp_path: Path) -> None:
    models: dict[str, nn.Module] = {**toy_models(), "teacher": Tall()}
    models["student"].norm = nn.Identity()
    setup, ctx = toy_setup(), toy_context(tmp_path / "one")
    wanted = fit(toy_objective(), models, toy_data(), setup=setup, ctx=ctx).last
    expected = models["student"].state_dict()
    size = sum(parameter.numel() for parameter in Tall().parameters())
    for shard in ("teacher", ""):
        found = train(tmp_path / f"two{shard}", shard)
        for student, record in found:
            for name, value in expected.items():
                torch.testing.assert_close(student[name], value, rtol=1e-6, atol=1e-6)
            assert record["last"] == pytest.approx(wanted, rel=1e-5)
        held = [record["parts"] for _, record in found]
        # each block is split by its first axis
        assert held == [size, size] if not shard else (sum(held) == size and max(held) < 0.6 * size)


def test_one_process_shares_nothing(tmp_path: Path) -> None:
    ctx = toy_context(tmp_path, shard=("teacher",))
    with pytest.raises(
        BadSetting,
        match=r"^stage 'toy': role 'teacher' cannot be sharded in one process; use --nproc 2 or more$",
    ):
        fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    # a training inside a stage has no other processes
    assert alone(ctx).shard == ()


def test_what_is_sharded(tmp_path: Path) -> None:
    """Frozen roles with parameters; the others of that name are left as they are."""
    ctx = toy_context(tmp_path, shard=("teacher", "student", "other"), nproc=2)
    models = toy_models()
    assert sharded(toy_objective(), models, 8, ctx) == ["teacher"]
    assert sharded(toy_objective(), {**models, "teacher": nn.Identity()}, 8, ctx) == []
    # 3 and 2 rows in 3 micro-batches: 3 forwards here, 2 there
    with pytest.raises(
        BadSetting,
        match=r"^stage 'toy': role 'teacher' cannot be sharded: 5 rows in 3 micro-batches are more of "
        r"them in one process than in another; choose a batch that 6 divides$",
    ):
        sharded(toy_objective(accumulate=3), models, 5, ctx)
    assert sharded(toy_objective(accumulate=3), models, 6, ctx) == ["teacher"]
