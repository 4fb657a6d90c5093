"""Batches that fit the memory: their sizes by hand, and the same scores whatever they are."""

import itertools
import logging

import pytest
import torch
from torch import Tensor, nn

from stillhouse.batching import BOUND, each_batch, fitting, peak_bytes
from stillhouse.data.data import Ragged, TensorData
from stillhouse.errors import BadData, BadSetting, OutOfMemory
from stillhouse.metrics import Classification, Latencies, Latency, Memory
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work

WIDE, ROW = 1024, 4096  # floats of a row, and their bytes
CPU = "cpu"


def rows(count: int) -> TensorData:
    return TensorData({"x": torch.arange(count * WIDE).reshape(count, WIDE).float()})


def batch(count: int) -> Tensors:
    return next(iter(rows(count).batches(count, rng=None)))


class Twice:
    """Sums of 2 x + 1, with two tensors as large as x at once; keeps how many rows it was given."""

    def __init__(self, limit: int | None = None) -> None:
        self.counts: list[int] = []
        self.limit = limit

    def __call__(self, given: Tensors) -> Tensor:
        self.counts.append(len(given["id"]))
        if self.limit is not None and len(given["id"]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (given["x"] * 2 + 1).sum(1)


class Convolved(nn.Module):
    """Logits of images [B, 3, 32, 32] by two convolutions of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, stride=2)
        self.head = nn.Linear(64, 10)
        self.counts: list[int] = []

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        self.counts.append(len(given["images"]))
        maps = self.second(torch.relu(self.first(given["images"])))
        return {"logits": self.head(torch.relu(maps).mean((2, 3)))}


def images(count: int) -> TensorData:
    rng = torch.Generator().manual_seed(1)
    return TensorData(
        {
            "images": torch.randn(count, 3, 32, 32, generator=rng),
            "labels": torch.randint(10, (count,), generator=rng),
        }
    )


def network() -> Convolved:
    torch.manual_seed(0)
    return Convolved().eval()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_peak_bytes_are_those_of_two_tensors_at_once(count: int) -> None:
    assert peak_bytes(Twice(), batch(count)) == 2 * count * ROW


def test_views_and_what_was_there_before_take_no_bytes() -> None:
    weight = torch.ones(WIDE, WIDE)
    assert peak_bytes(lambda given: given["x"].T[:3].unbind(), batch(2)) == 0
    assert peak_bytes(lambda given: given["x"] @ weight.T, batch(2)) == 2 * ROW
    assert peak_bytes(lambda given: given["x"].add_(1), batch(2)) == 0


def test_a_batch_is_as_large_as_the_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOUND, "1")
    first = batch(1)
    assert fitting(Twice(), first, 1000) == 2**20 // (2 * ROW) == 128
    assert fitting(Twice(), first, 100) == 100
    fixed = torch.ones(3 * 2**20 // 16)  # 768 KiB whatever the rows are

    def dearer(given: Tensors) -> Tensor:
        held = fixed * 2
        return (given["x"] * 2 + 1).sum(1) + held[0]

    assert fitting(dearer, first, 1000) == 2**18 // (2 * ROW) == 32
    monkeypatch.setenv(BOUND, "2")
    assert fitting(Twice(), first, 1000) == 256


def test_at_least_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOUND, "1")
    large = {"id": torch.arange(1), "x": torch.ones(1, 2**20)}
    assert fitting(Twice(), large, 8) == 1


def test_where_memory_suffices_batches_are_those_asked_for() -> None:
    twice = Twice()
    found = torch.cat(list(each_batch(rows(10), twice, most=4, device=CPU)))
    assert twice.counts == [1, 2, 4, 4, 2]  # two looks, then the data
    assert torch.equal(found, Twice()(batch(10)))


def test_rows_come_once_each_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOUND, "1")
    twice = Twice()
    found = torch.cat(list(each_batch(rows(300), twice, most=250, device=CPU)))
    assert twice.counts == [1, 2, 128, 128, 44]
    assert torch.equal(found, Twice()(batch(300)))


def test_data_without_rows_give_no_batch() -> None:
    assert list(each_batch(rows(0), Twice(), most=4, device=CPU)) == []
    empty = TensorData({"images": torch.zeros(0, 3, 32, 32), "labels": torch.zeros(0).long()})
    with pytest.raises(BadData, match="the evaluation data hold no sample"):
        Classification()({"student": Convolved()}, empty, work=Work())


def test_no_gradient_and_the_same_random_numbers() -> None:
    weight = torch.ones(WIDE, requires_grad=True)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fitting(lambda given: torch.rand(5) + given["x"].sum(), batch(1), 8)
    assert torch.equal(torch.rand(1), expected)
    for found in each_batch(rows(3), lambda given: given["x"] @ weight, most=2, device=CPU):
        assert not found.requires_grad
        assert torch.is_grad_enabled()  # of whoever asks


def test_ragged_rows_go_along() -> None:
    points = Ragged(values=torch.arange(6), offsets=torch.tensor([0, 1, 3, 6]))
    data = TensorData({"points": points})

    def sums(given: Tensors) -> list[int]:
        ends = given["points_offsets"].tolist()
        return [int(given["points"][a:b].sum()) for a, b in itertools.pairwise(ends)]

    found = list(each_batch(data, sums, most=2, device=CPU))
    assert found == [[0, 3], [12]]


def test_a_batch_that_the_gpu_has_no_room_for_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    twice = Twice(limit=3)
    with caplog.at_level(logging.WARNING):
        found = torch.cat(list(each_batch(rows(18), twice, most=8, device="cuda")))
    assert twice.counts == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2]  # and stays as small
    assert torch.equal(found, Twice()(batch(18)))
    assert caplog.messages == [
        "evaluation: 8 rows do not fit the memory of cuda; half of them at a time",
        "evaluation: 4 rows do not fit the memory of cuda; half of them at a time",
    ]


def test_the_cpus_allocator_counts_too() -> None:
    def refused(given: Tensors) -> Tensor:
        if len(given["id"]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return given["id"]

    found = torch.cat(list(each_batch(rows(5), refused, most=4, device=CPU)))
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_other_errors_are_not_about_memory() -> None:
    def wrong(given: Tensors) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(each_batch(rows(5), wrong, most=4, device="cuda"))


def test_a_row_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(OutOfMemory, match=r"one row does not fit the memory of cuda; use another"):
        list(each_batch(rows(5), Twice(limit=0), most=4, device="cuda"))


@pytest.mark.parametrize("text", ["0", "-1", "much", "1.5", ""])
def test_the_bound_is_a_whole_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOUND, text)
    with pytest.raises(BadSetting, match=rf"{BOUND}={text}: expected a whole number of MiB >= 1"):
        fitting(Twice(), batch(1), 8)


def test_scores_are_the_same_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data, student, teacher = images(70), network(), network()
    metric = Classification(teacher="teacher")
    models = {"student": student, "teacher": teacher}
    whole = metric(models, data, work=Work())
    assert student.counts[2:] == [70]
    student.counts.clear()
    monkeypatch.setenv(BOUND, "1")
    small = metric(models, data, work=Work())
    assert 1 <= max(student.counts[2:]) <= 3
    # a convolution of fewer images may add in another order: the last bits of its floats
    assert small == pytest.approx(whole, rel=1e-6, abs=1e-7)
    assert small["accuracy"] == whole["accuracy"]


def test_latency_of_samples_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(BOUND, "1")
    net = network()
    with caplog.at_level(logging.WARNING):
        found = Latency(batches=(1, 8), runs=1)({"student": net}, images(8), work=Work())
    assert set(found) == {"latency_b1_ms", "latency_b8_ms"}
    eight = net.counts[6:]  # behind six forwards of one sample
    size = max(eight[2:])
    assert size < 8
    assert sum(eight[2:]) == 6 * 8  # each of six times all samples
    assert caplog.messages == [f"latency_b8_ms: 8 samples do not fit the memory; {size} at a time"]
    metric = Latencies(lines={"a": "student"}, batches=(8,), runs=1)
    assert metric({"student": net}, images(8), work=Work())["a", "latency_b8_ms"] > 0


def test_memory_is_the_same_where_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = network(), images(8)
    run = Memory(batch=32)({"student": net}, data, work=Work())
    assert max(net.counts) == 32
    net.counts.clear()
    monkeypatch.setenv(BOUND, "1")
    assert Memory(batch=32)({"student": net}, data, work=Work()) == run
    assert max(net.counts) == 2
    weights = sum(p.nbytes for p in net.parameters())
    # the first convolution's maps and their ReLU
    assert run["peak_memory_mib"] == (weights + 32 * 2 * 64 * 30 * 30 * 4) / 2**20
