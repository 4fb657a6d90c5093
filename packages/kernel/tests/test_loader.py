"""Data in shards: rows, batches by worker processes, the same bits with and without them."""

import json
import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from stillhouse.cache import Cache, Source, cached
from stillhouse.data.data import Ragged, RowData, TensorData, in_memory
from stillhouse.data.encoded import Encoded
from stillhouse.data.loader import batches_of, one_thread, workers
from stillhouse.data.notes import noted
from stillhouse.data.sampling import Mix
from stillhouse.data.shards import load_data, save_data
from stillhouse.data.stored import StoredData
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting, CorruptArtifact, StaleInput
from stillhouse.recipe import WORKERS
from stillhouse.trusted import covered

from .toys import (
    SITE,
    Shift,
    Unzip,
    same,
    toy_context,
    toy_data,
    toy_models,
    toy_objective,
    toy_setup,
    weights,
)

ROWS = 50


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", 100)  # so that each part is a shard


def zipped(images: Tensor) -> Encoded:
    return Encoded(values=[zlib.compress(i.numpy().tobytes()) for i in images], decoder=Unzip())


def parts(size: int = 20) -> Iterator[Mapping[str, Tensor | Encoded | Ragged | list[str]]]:
    data = toy_data(ROWS)
    images, labels = data.columns["images"], data.columns["labels"]
    assert isinstance(images, Tensor)
    assert isinstance(labels, Tensor)
    for first in range(0, ROWS, size):
        rows = slice(first, min(first + size, ROWS))
        count = rows.stop - first
        yield {
            "images": zipped(images[rows]),
            "labels": labels[rows],
            "half": images[rows, 0, 0].bfloat16(),
            "seen": labels[rows] > 2,
            "points": Ragged(
                values=torch.arange(first * 2, rows.stop * 2).float().reshape(-1, 2),
                offsets=torch.arange(count + 1),
            ),
            "name": [f"row {row}" for row in range(first, rows.stop)],
        }


@pytest.fixture
def stored(tmp_path: Path) -> RowData:
    data = load_data(save_data(tmp_path / "data", parts()).path)
    assert isinstance(data, StoredData)
    return data


def test_rows_in_shards_are_those_in_memory(stored: RowData) -> None:
    memory = toy_data(ROWS)
    index = torch.tensor([49, 0, 19, 20, 20, 3])
    found, wanted = stored.rows(index), memory.rows(index)
    for name, value in wanted.items():
        assert torch.equal(found[name], value)
    assert found["half"].dtype == torch.bfloat16
    assert torch.equal(found["half"].float(), wanted["images"][:, 0, 0].bfloat16().float())
    assert found["seen"].tolist() == (wanted["labels"] > 2).tolist()
    assert found["points"].tolist() == [[2.0 * i, 2.0 * i + 1] for i in index.tolist()]
    assert found["points_offsets"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    names = stored.columns["name"]
    assert isinstance(names, list)
    assert names[49] == "row 49"
    assert "images" not in stored.columns
    with pytest.raises(KeyError):
        stored.columns["image"]


def test_chosen_rows_stay_encoded_and_all_rows_can_be_held(tmp_path: Path, stored: RowData) -> None:
    index = torch.tensor([7, 30])
    chosen = stored.select(index)
    assert isinstance(chosen["images"], Encoded)
    again = load_data(save_data(tmp_path / "chosen", chosen).path)
    assert torch.equal(again.rows(torch.tensor([1]))["images"], stored.rows(index[1:])["images"])
    assert again.columns["name"] == ["row 7", "row 30"]
    held = in_memory(stored)
    assert isinstance(held, TensorData)
    assert torch.equal(held.rows(index)["images"], stored.rows(index)["images"])
    assert torch.equal(held.rows(index)["points"], stored.rows(index)["points"])


def test_the_same_data_have_the_same_digest(tmp_path: Path) -> None:
    first, again = save_data(tmp_path / "a", parts()), save_data(tmp_path / "b", parts())
    assert first.digest == again.digest


def some_batches(data: RowData, count: int, monkeypatch: pytest.MonkeyPatch) -> list[Mapping]:
    monkeypatch.setenv(WORKERS, str(count))
    return list(data.batches(4, rng=torch.Generator().manual_seed(5)))


def test_batches_are_the_same_by_any_number_of_workers(
    stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.get_rng_state()
    alone = some_batches(stored, 0, monkeypatch)
    for count in (1, 3):
        for found, wanted in zip(some_batches(stored, count, monkeypatch), alone, strict=True):
            assert same(found, wanted)
    assert torch.equal(torch.get_rng_state(), state)  # reading draws nothing that training draws


def trained(
    data: RowData, folder: Path, *, stop: int | None = None, **context: int
) -> dict[str, Tensor]:
    models = toy_models()
    ctx = toy_context(folder, checkpoint_steps=7, **context)

    def observe(event: SimpleNamespace) -> None:
        if stop is not None and event.text == "checkpoint" and event.done >= stop:
            raise KeyboardInterrupt

    if stop is not None:
        ctx = toy_context(folder, checkpoint_steps=7, observe=observe, **context)
        with pytest.raises(KeyboardInterrupt):
            fit(toy_objective(), models, data, setup=toy_setup(augment=Shift()), ctx=ctx)
        return {}
    fit(toy_objective(), models, data, setup=toy_setup(augment=Shift()), ctx=ctx)
    return weights(models)


def test_training_is_the_same_in_memory_in_shards_by_workers_and_after_a_stop(
    tmp_path: Path, stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = trained(toy_data(ROWS), tmp_path / "memory")
    monkeypatch.setenv(WORKERS, "0")
    assert same(trained(stored, tmp_path / "none"), wanted)
    monkeypatch.setenv(WORKERS, "2")
    assert same(trained(stored, tmp_path / "two"), wanted)
    trained(stored, tmp_path / "stopped", stop=14)
    assert same(trained(stored, tmp_path / "stopped"), wanted)


def test_a_mix_of_shards_and_memory_is_the_same_by_workers(
    tmp_path: Path, stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("images", "labels")
    given = {name: stored.select(torch.arange(20))[name] for name in names}
    few = load_data(save_data(tmp_path / "few", [given]).path)
    mix = Mix(parts={"one": 1, "other": 2})
    mixed = mix.open({"one": few, "other": TensorData(dict(toy_data(30, seed=4).columns))})
    assert mixed.stored
    alone = some_batches(mixed, 0, monkeypatch)
    assert all(map(same, some_batches(mixed, 2, monkeypatch), alone))


def test_a_teacher_cache_is_filled_alike_from_memory_and_by_workers(
    tmp_path: Path, stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served(data: RowData, name: str) -> Tensor:
        source = Source(
            role="r", data=name, code="c", device="cpu", batch=8, cache=Cache(), augment=Shift()
        )
        ctx = toy_context(tmp_path / name)
        role = cached("teacher", toy_models()["teacher"], data, [0, 1], source, ctx=ctx)
        ids = torch.arange(ROWS)
        return role({"id": ids, "view": ids % 2})["logits"]

    wanted = served(toy_data(ROWS), "memory")
    monkeypatch.setenv(WORKERS, "2")
    assert torch.equal(served(stored, "stored"), wanted)


def test_a_worker_that_is_killed_costs_a_line(
    stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = some_batches(stored, 0, monkeypatch)
    monkeypatch.setenv(WORKERS, "1")
    lines: list[str] = []
    found = []
    with noted(lines.append):
        slow = batches_of(
            stored.read,
            stored.plan(4, rng=torch.Generator().manual_seed(5)),
            stored=True,
        )
        for batch in slow:
            found.append(batch)
            if len(found) == 1:  # the workers start behind the first batch
                wait_for_workers()
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
    assert len(found) == len(wanted)
    assert all(map(same, found, wanted))
    assert len(lines) == 1
    assert lines[0].startswith("reading goes on in one process: DataLoader worker")
    assert "it was to read rows" in lines[0]


def wait_for_workers() -> None:
    import time

    for _ in range(600):
        if multiprocessing.active_children():
            return
        time.sleep(0.05)
    pytest.fail("no worker began")


@pytest.mark.parametrize("count", ["0", "1"])
def test_a_row_that_cannot_be_decoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv(WORKERS, count)
    some = zipped(torch.zeros(30, 3, 8, 8))
    broken = Encoded(values=[*some.values[:29], b"?"], decoder=some.decoder)
    data = load_data(save_data(tmp_path / "broken", [{"images": broken}]).path)
    with pytest.raises(BadData, match=r"broken: row 29, column 'images': cannot be decompressed"):
        list(data.batches(4, rng=None))


def test_another_decoder_or_library_is_refused(tmp_path: Path) -> None:
    path = save_data(tmp_path / "data", parts()).path
    record = json.loads((path / "data.json").read_text())
    other = {**record["decoders"]["images"], "code": "0" * 64}
    (path / "data.json").write_text(json.dumps({**record, "decoders": {"images": other}}))
    with (
        covered("train", (), lambda _: "1" * 64),
        pytest.raises(StaleInput, match=r"decoder stillhouse_toy:Unzip changed; run the stage"),
    ):
        load_data(path)
    assert len(load_data(path)) == ROWS  # no stage, no key that would not see it
    other = {**record["decoders"]["images"], "version": "zlib 0"}
    (path / "data.json").write_text(json.dumps({**record, "decoders": {"images": other}}))
    with pytest.raises(StaleInput, match=r"checked with zlib 0, and zlib [\d.]+ is installed"):
        load_data(path)


def test_a_shard_that_is_cut_is_named(tmp_path: Path) -> None:
    path = save_data(tmp_path / "data", parts()).path
    file = path / "00001.arrow"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CorruptArtifact, match=r"data: cannot be read as data"):
        load_data(path)


def test_parts_must_have_the_same_columns(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"'d': column 'x' of row 2 on is int64 \[\], and float32"):
        save_data(tmp_path / "d", [{"x": torch.zeros(2)}, {"x": torch.zeros(2).long()}])
    both = {"x": torch.zeros(2), "y": torch.zeros(2)}
    with pytest.raises(BadData, match=r"'e': column 'y' of row 2 on is missing, and"):
        save_data(tmp_path / "e", [both, {"x": torch.zeros(2)}])


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "3")
    assert workers() == 3
    monkeypatch.setenv(WORKERS, "many")
    with pytest.raises(BadSetting, match="STILLHOUSE_WORKERS=many: expected a whole number"):
        workers()
    monkeypatch.delenv(WORKERS)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers() == 3
    main = SimpleNamespace(__spec__=None, __file__="/home/me/train.py")
    monkeypatch.setitem(__import__("sys").modules, "__main__", main)
    assert workers() == 0


def test_too_little_shared_memory_means_fewer_workers(
    stored: RowData, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = some_batches(stored, 0, monkeypatch)
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    lines: list[str] = []
    with noted(lines.append):
        found = some_batches(stored, 2, monkeypatch)
    assert all(map(same, found, wanted))
    assert lines[0].startswith("/dev/shm has 0 MiB free and a batch is 0.0 MiB: 0 worker(s)")


def test_reading_uses_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
