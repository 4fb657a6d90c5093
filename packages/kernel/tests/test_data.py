"""Data in memory and on disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stillhouse.data import Ragged, Rows, TensorData, load_data, save_data
from stillhouse.data.data import rows_of
from stillhouse.errors import BadData, CorruptArtifact


def points() -> Ragged:
    # three samples of 2, 0 and 3 points
    return Ragged(values=torch.arange(10.0).view(5, 2), offsets=torch.tensor([0, 2, 2, 5]))


def columns() -> dict:
    return {"labels": torch.tensor([7, 8, 9]), "points": points(), "name": ["a", "b", "c"]}


def test_a_ragged_column_is_packed_with_offsets() -> None:
    batch = TensorData(columns()).rows(torch.tensor([2, 0]))
    assert batch["points_offsets"].tolist() == [0, 3, 5]
    assert batch["points"].tolist() == [[4, 5], [6, 7], [8, 9], [0, 1], [2, 3]]
    assert batch["id"].tolist() == [2, 0]
    part = rows_of(batch, torch.tensor([1]))
    assert part["points"].tolist() == [[0, 1], [2, 3]]
    assert part["points_offsets"].tolist() == [0, 2]
    assert "name" not in batch


@pytest.mark.parametrize("shard", [65536, 2])
def test_what_is_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr("stillhouse.data.shards.SHARD_ROWS", shard)
    artifact = save_data(tmp_path / "d", columns())
    data = load_data(artifact.path)
    assert data.columns["labels"].tolist() == [7, 8, 9]
    assert data.columns["points"].offsets.tolist() == [0, 2, 2, 5]
    assert data.columns["points"].values.tolist() == points().values.tolist()
    assert data.table().to_pydict() == {"name": ["a", "b", "c"]}
    suffix = "safetensors" if shard > 3 else "arrow"
    assert len(list((tmp_path / "d").glob(f"*.{suffix}"))) == (1 if shard > 3 else 2)
    assert save_data(tmp_path / "again", columns()).digest == artifact.digest


@pytest.mark.parametrize(("size", "files"), [(1 << 20, "1 safetensors"), (10, "2 arrow")])
def test_a_stream_of_parts_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, files: str
) -> None:
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", size)
    parts = iter(
        [
            {"x": torch.zeros(2), "t": ["a", "b"], "r": ragged(1, 0)},
            {"x": torch.ones(3), "t": ["c", "d", "e"], "r": ragged(0, 2, 1)},
        ]
    )
    data = load_data(save_data(tmp_path / "d", parts).path)
    assert data.columns["id"].tolist() == [0, 1, 2, 3, 4]
    assert data.columns["x"].tolist() == [0, 0, 1, 1, 1]
    assert data.columns["t"] == ["a", "b", "c", "d", "e"]
    assert data.columns["r"].offsets.tolist() == [0, 1, 1, 1, 3, 4]
    count, suffix = files.split()
    assert len(list((tmp_path / "d").glob(f"*.{suffix}"))) == int(count)


def ragged(*lengths: int) -> Ragged:
    return Ragged(values=torch.arange(sum(lengths)), offsets=torch.tensor([0, *lengths]).cumsum(0))


def test_a_pass_has_every_row_once_and_the_seed_decides_the_order() -> None:
    data = TensorData({"x": torch.arange(10)})
    order = [b["id"].tolist() for b in data.batches(4, rng=torch.Generator().manual_seed(3))]
    assert [len(b) for b in order] == [4, 4, 2]
    assert sorted(i for ids in order for i in ids) == list(range(10))
    assert order == [
        b["id"].tolist() for b in data.batches(4, rng=torch.Generator().manual_seed(3))
    ]
    assert [b["id"].tolist() for b in data.batches(5, rng=None)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]
    some = Rows(data, torch.tensor([9, 3]))
    assert [b["id"].tolist() for b in some.batches(5, rng=None)] == [[9, 3]]


def test_bad_data_is_refused_before_training(tmp_path: Path) -> None:
    nan = float("nan")
    columns = [
        torch.tensor([[0.0], [nan]]),
        torch.tensor([0.0, nan, nan]),
        Ragged(values=torch.tensor([0.0, 1.0, nan]), offsets=torch.tensor([0, 2, 3])),
        Ragged(values=torch.tensor([[0.0], [1.0], [nan]]), offsets=torch.tensor([0, 1, 3])),
    ]
    for number, column in enumerate(columns):
        with pytest.raises(
            BadData, match="'a': column 'x' holds a value that is not finite .first in row 1."
        ):
            save_data(tmp_path / str(number) / "a", {"x": column})
    with pytest.raises(BadData, match="'b': columns differ in length: {'x': 2, 'y': 3}"):
        save_data(tmp_path / "b", {"x": torch.zeros(2), "y": torch.zeros(3)})
    with pytest.raises(BadData, match="'c': no rows to write"):
        save_data(tmp_path / "c", {"x": torch.zeros(0)})


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    save_data(tmp_path / "d", columns())
    file = tmp_path / "d" / "00000.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(
        CorruptArtifact, match=r"d: cannot be read as data .* run the stage that made it again"
    ):
        load_data(tmp_path / "d")


def test_opening_shards_does_not_import_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's `to_numpy` would, for most of a second in every process that reads data."""
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", 10)
    part = {"x": torch.ones(2, 3), "n": torch.arange(2), "r": ragged(2, 1), "e": ragged(0, 0)}
    save_data(tmp_path / "data", iter([part, part]))
    assert len(list((tmp_path / "data").glob("*.arrow"))) == 2
    code = (
        "import sys; from pathlib import Path\n"
        "from stillhouse.data.shards import load_data\n"
        f"data = load_data(Path({str(tmp_path / 'data')!r}))\n"
        "batch = next(iter(data.batches(4, rng=None)))\n"
        "print(batch['x'].sum().item(), batch['n'].tolist(), data.columns['r'].values.tolist())\n"
        "print(len(data.columns['e'].values), 'pandas' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "12.0 [0, 1, 0, 1] [0, 1, 2, 0, 1, 2]\n0 False\n", done.stderr
