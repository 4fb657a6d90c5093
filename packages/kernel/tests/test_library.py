"""`stillhouse.distill`: networks, datasets and loaders of a program that knows no recipe."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import stillhouse
from stillhouse import Distilled, ImagePaths, Optimizer, Term, Weighted, distill
from stillhouse.errors import BadData, BadSetting, ContractError, UnknownName
from stillhouse.objectives import cross_entropy_loss, kd_loss, pkt_loss

SGD = Optimizer(lr=0.5)


def points(count: int = 256, *, seed: int = 0) -> TensorDataset:
    """Two classes on rings."""
    rng = torch.Generator().manual_seed(seed)
    angle, labels = torch.rand(count, generator=rng) * 6.3, torch.arange(count) % 2
    radius = 1 + labels + 0.1 * torch.randn(count, generator=rng)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels)


def network(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def trained(student: nn.Module, teacher: nn.Module | None, data: Any, **more: Any) -> Distilled:
    given: dict[str, Any] = {"steps": 60, "optimizer": SGD, "observe": lambda event: None, **more}
    return distill(student, teacher, data, **given)


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def test_a_student_learns_from_a_teacher_and_is_scored() -> None:
    teacher = trained(network(64), None, points(), steps=150).student
    before = weights(teacher)
    student = network(8, seed=1)
    found = trained(student, teacher, points(), test=points(seed=1), steps=150)
    assert found.student is student
    assert not student.training
    assert found.scores["student"]["accuracy"] > 0.9
    assert found.scores["teacher"]["accuracy"] > 0.9
    assert set(found.curves[-1]) >= {"step", "loss", "ce", "kd"}
    assert same(weights(teacher), before)


def test_the_step_is_that_of_a_plain_loop() -> None:
    """One step of SGD on the whole set, by hand: 0.1 CE + 0.9 T^2 KL."""
    data, teacher, student = points(64), network(16), network(4, seed=1)
    other = copy.deepcopy(student)
    trained(student, teacher, data, steps=1, batch=64, schedule=stillhouse.Constant())
    x, y = data.tensors
    logits, target = other(x), teacher(x).detach()
    kl = F.kl_div(
        F.log_softmax(logits / 4, 1),
        F.log_softmax(target / 4, 1),
        reduction="batchmean",
        log_target=True,
    )
    (0.1 * F.cross_entropy(logits, y) + 0.9 * 16 * kl).backward()
    with torch.no_grad():
        for value in other.parameters():
            value -= 0.5 * value.grad
    for a, b in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_terms_read_layers_by_name() -> None:
    student, teacher = network(8, seed=1), network(8)
    terms = {
        "ce": Term(cross_entropy_loss, "student.logits", "batch.labels"),
        "kd": Weighted(
            term=Term(kd_loss, "student.logits", "teacher.logits", temperature=2.0), weight=0.5
        ),
        "mid": Weighted(term=Term(pkt_loss, "student.mid", "teacher.mid"), weight=100.0),
    }
    layers = {"student.mid": "1", "teacher.mid": "1"}
    found = trained(student, teacher, points(), losses=terms, layers=layers, steps=80)
    assert set(found.curves[-1]) >= {"ce", "kd", "mid"}
    assert found.curves[-1]["mid"] < found.curves[0]["mid"]
    assert all(not module._forward_hooks for net in (student, teacher) for module in net.modules())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_as_its_dataset(workers: int) -> None:
    loader = DataLoader(points(), batch_size=32, shuffle=True, num_workers=workers)
    one, two = network(8, seed=1), network(8, seed=1)
    trained(one, network(16), loader, steps=20)
    trained(two, network(16), points(), steps=20, batch=32)
    assert same(weights(one), weights(two))


def test_a_sampler_of_ones_own_is_used() -> None:
    data = points(64)
    sampler = WeightedRandomSampler((data.tensors[1] == 0).double(), 64)  # one class only
    student = network(8, seed=1)
    trained(student, None, DataLoader(data, batch_size=16, sampler=sampler), steps=40)
    assert (student(data.tensors[0]).argmax(1) == 0).all()


class Columns(Dataset[dict[str, Tensor]]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        return {"place": x, "label": y, "other": x}


class Named(nn.Module):
    """Its forward takes a column by name and gives a mapping, as transformers' models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = network(width)

    def forward(self, place: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        assert labels is None
        return {"logits": self.body(place), "attentions": None}


def test_columns_by_name_and_mappings_of_outputs() -> None:
    found = trained(Named(8), None, Columns(points()), test=Columns(points()), steps=150)
    assert found.scores["student"]["accuracy"] > 0.8


def test_what_needs_no_gradient_stays(tmp_path: Path) -> None:
    student = network(8, seed=1)
    student[0].requires_grad_(False)
    first = student[0].weight.clone()
    trained(student, network(16), points(), steps=10)
    assert torch.equal(student[0].weight, first)
    assert [value.requires_grad for value in student.parameters()] == [False, False, True, True]


class Stopped(Exception):
    pass


def test_a_stopped_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = network(8, seed=1)
    trained(whole, network(16), points(), steps=40)
    monkeypatch.setattr("stillhouse.library.CHECKPOINT_SECONDS", 0.0)

    def stop(event: Any) -> None:
        if event.text == "checkpoint" and event.done >= 20:
            raise Stopped

    student = network(8, seed=1)
    with pytest.raises(Stopped):
        trained(student, network(16), points(), steps=40, folder=tmp_path, observe=stop)
    with pytest.raises(BadSetting, match="checkpoint"):
        trained(network(8, seed=1), network(16), points(), steps=40, seed=9, folder=tmp_path)
    again = network(8, seed=1)
    found = trained(again, network(16), points(), steps=40, folder=tmp_path)
    assert found.resumed_at == 20
    assert same(weights(again), weights(whole))
    assert not (tmp_path / "checkpoints").exists()


def test_images_by_their_paths(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rows = []
    for i in range(40):
        name, shade = ("dark", 40) if i % 2 else ("light", 200)
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.full((8, 8, 3), shade + i, np.uint8)).save(path)
        rows.append((path, name))

    def flat(image: Any) -> Tensor:
        return torch.tensor(np.asarray(image), dtype=torch.float32).flatten() / 255

    data = ImagePaths(rows, flat)
    assert data.classes == ["dark", "light"]
    found = trained(nn.Linear(192, 2), nn.Linear(192, 2), data, losses="kd", test=data, batch=20)
    assert found.scores["student"]["accuracy"] > 0.9
    table = type("Frame", (dict,), {"columns": ["path", "label"]})(
        path=[p for p, _ in rows], label=[int(n == "light") for _, n in rows]
    )
    assert [y for _, y in ImagePaths(table, flat)] == data.labels
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"0.png: no image that can be read"):
        data[0]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(2), 0


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"teacher": nn.Linear(2, 3)}, ContractError, "student gives 2 logits a sample, the teacher 3"),
    ({"student": Pair()}, BadSetting, "no parameter that requires a gradient"),
    ({"teacher": Pair()}, ContractError, "teacher: its forward gives a tuple; it must give a tensor"),
    ({"data": Endless()}, BadData, "a Endless has no length"),
    ({"data": DataLoader(Endless(), batch_size=2)}, BadData, "the DataLoader's Endless has no length"),
    ({"data": TensorDataset(torch.zeros(4, 2))}, UnknownName, "batch: unknown column 'labels'"),
    ({"data": TensorDataset(*[torch.zeros(4, 2)] * 3)}, BadData, "a batch is a list; a sample must be"),
    ({"data": Columns(points())}, ContractError, "its forward takes input, and a batch has"),
    ({"losses": "kdd"}, UnknownName, "Did you mean 'kd'"),
    ({"losses": "reviewkd"}, BadSetting, "trains projectors between layers"),
    ({"losses": "pkt"}, UnknownName, "unknown output 'embedding'"),
    ({"layers": {"student.mid": "3"}}, UnknownName, "student: unknown layer '3'"),
    ({"layers": {"mid": "1"}}, BadSetting, "'mid' names no output"),
    ({"layers": {"student.mid": "1"}, "precision": "fast"}, BadSetting, "other forms of a network"),
    ({"device": "cuda:7"}, BadSetting, "torch sees no CUDA device here"),
    ({"teacher": None, "losses": {"kd": Term(kd_loss, "student.logits", "guide.logits", temperature=2.0)}}, None, ""),
    ({"losses": {"kd": Term(kd_loss, "student.logits", "guide.logits", temperature=2.0)}}, BadSetting, "a term reads 'guide'"),
])  # fmt: skip
def test_what_does_not_fit_is_said_before_training(change: Any, error: Any, message: str) -> None:
    given: Any = {"student": network(8, seed=1), "teacher": network(16), "data": points(), **change}
    if error is None:  # without a teacher the labels alone
        trained(given.pop("student"), given.pop("teacher"), given.pop("data"), steps=1, **given)
        return
    with pytest.raises(error, match=message) as caught:
        trained(given.pop("student"), given.pop("teacher"), given.pop("data"), steps=1, **given)
    assert len(str(caught.value).splitlines()) == 1


def test_progress_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    distill(network(4), network(8), points(), steps=3)
    assert capsys.readouterr().err.splitlines()[-1].startswith("distill: step 3/3 loss ")
