"""Several processes on unequal shares of rows are one process on all of them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stillhouse.engine import fit
from stillhouse.errors import BadData
from stillhouse.parallel import share

from .toys import toy_context, toy_data, toy_models, toy_objective, toy_setup, weights

WORKER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
torch.set_num_threads(1)
from stillhouse import parallel
from stillhouse.engine import fit
from tests.toys import toy_context, toy_data, toy_models, toy_objective, toy_setup, weights
folder, rows, pieces = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rank, nproc = parallel.world()
models = toy_models()
models["student"].norm = nn.Identity()  # in train mode it would see this process's rows only
ctx = toy_context(folder / str(rank), rank=rank, nproc=nproc, micro_batches=pieces)
found = fit(toy_objective(), models, toy_data(rows), setup=toy_setup(), ctx=ctx)
save_file(weights(models), folder / f"{rank}.safetensors")
(folder / f"{rank}.json").write_text(json.dumps(found.curves))
parallel.leave()
"""


def train(folder: Path, *, rows: int, nproc: int, pieces: int = 1) -> None:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kernel = Path(__file__).parents[1]
    path = os.pathsep.join([str(kernel), os.environ.get("PYTHONPATH", "")])
    group = {"WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rows), str(pieces)],
            env={**os.environ, **group, "RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(nproc)
    ]
    ended = [(worker.communicate(timeout=300)[1], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0] * nproc, ended


def alone(
    folder: Path, rows: int
) -> tuple[Mapping[str, torch.Tensor], Sequence[Mapping[str, float]]]:
    """The weights and curves of one process on all rows."""
    models = toy_models()
    models["student"].norm = nn.Identity()
    ctx = toy_context(folder)
    fitted = fit(toy_objective(), models, toy_data(rows), setup=toy_setup(), ctx=ctx)
    return weights(models), fitted.curves


@pytest.mark.slow
def test_unequal_rows_give_the_means_of_one_process(tmp_path: Path) -> None:
    expected, wanted = alone(tmp_path / "one", rows=7)
    # batches of 7 rows: 4 for one process and 3 for the other
    for pieces in (1, 2):
        folder = tmp_path / str(pieces)
        train(folder, rows=7, nproc=2, pieces=pieces)
        for rank in (0, 1):
            found = load_file(folder / f"{rank}.safetensors")
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)
            curves = json.loads((folder / f"{rank}.json").read_text())
            for row, means in zip(curves, wanted, strict=True):
                assert row == pytest.approx(means, rel=1e-6, abs=1e-6)


def test_fewer_samples_than_processes_is_one_line(tmp_path: Path) -> None:
    ctx = toy_context(tmp_path, nproc=4)
    with pytest.raises(
        BadData,
        match=r"^stage 'toy': 3 samples cannot be split over 4 processes; use --nproc 3 or fewer$",
    ):
        fit(toy_objective(), toy_models(), toy_data(3), setup=toy_setup(), ctx=ctx)


def test_shares_sum_to_one() -> None:
    assert [share(7, rank=rank, nproc=3) for rank in range(3)] == [3 / 7, 2 / 7, 2 / 7]
    assert share(5, rank=0, nproc=1) == 1.0
