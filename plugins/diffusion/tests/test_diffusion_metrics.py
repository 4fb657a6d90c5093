from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_diffusion import metrics
from stillhouse_diffusion.distances import frechet_distance, kernel_distance, precision_recall
from stillhouse_diffusion.features import Embed, SmallClassifier, copy_in_order, embedded
from stillhouse_diffusion.figures import COLOURS, PlaneGrid, SampleGrid
from stillhouse_diffusion.metrics import (
    FLOOR,
    Cost,
    Fidelity,
    PartFidelity,
    PlaneDistance,
    Samples,
    Swap,
    floors,
    quality,
)
from stillhouse_diffusion.sampling import OneStepStudent, RoutedStudents


class Drawer(nn.Module):
    """A denoiser that draws its label: a bright row, and what noise leaves of the rest."""

    def __init__(self, *, spread: float) -> None:
        super().__init__()
        self.spread, self.calls = spread, 0
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        return {"denoised": drawn(batch["labels"], batch["images"] / 10, self.spread)}


def drawn(labels: Tensor, noise: Tensor, spread: float) -> Tensor:
    images = spread * noise - 0.5
    images[torch.arange(len(labels)), 0, labels] += 1
    return images


def routed(spread: float) -> RoutedStudents:
    students = [OneStepStudent(Drawer(spread=spread), sigma=10.0) for _ in range(2)]
    return RoutedStudents(students, owner=[0, 0, 1, 1], training_steps=30)


def real(count: int, seed: int) -> dict[str, Tensor]:
    labels = torch.arange(count) % 4
    noise = torch.randn(count, 1, 4, 4, generator=Generator().manual_seed(seed))
    return {"images": drawn(labels, noise, 0.3), "labels": labels}


def classifier() -> SmallClassifier:
    """One that is right about `drawn`: its four filters see a row each."""
    network = SmallClassifier(channels=1, size=4, classes=4, widths=(4,)).eval()
    rows = nn.Conv2d(1, 4, (4, 4), bias=False)
    network.body = nn.Sequential(rows)
    with torch.no_grad():
        rows.weight.zero_()
        for row in range(4):
            rows.weight[row, 0, row] = 1
        network.head.weight.copy_(torch.eye(4))
        network.head.bias.zero_()
    return network


def evaluated(spread: float) -> tuple[dict[str, nn.Module], TensorData, Work]:
    models: dict[str, nn.Module] = {"student": routed(spread), "features": classifier()}
    noise = torch.randn(200, 1, 4, 4, generator=Generator().manual_seed(2))
    asked = TensorData({"noise": noise, "labels": torch.arange(200) % 4})
    sets = {
        port: {**embedded(models["features"], TensorData(rows), Work()), "labels": rows["labels"]}
        for port, rows in (("reference", real(600, 0)), ("held", real(200, 1)))
    }
    data = {port: TensorData(columns) for port, columns in sets.items()}
    return models, asked, Work(data=data)


def test_images_of_the_real_distribution_score_as_real_ones_do() -> None:
    models, asked, work = evaluated(0.3)
    found = Fidelity()(models, asked, work=work)
    assert found["class_accuracy"] == found[FLOOR + "class_accuracy"] == 1
    # 200 samples of one distribution: nothing but chance parts them
    assert found["frechet_error"] < 5 * found[FLOOR + "frechet_error"] < 0.5
    assert {*found} >= {score.name for score in floors()}
    assert {score.name for score in Fidelity().scores()} == {*found}


def test_images_without_spread_lose_recall_and_are_far() -> None:
    models, asked, work = evaluated(0.0)
    found = Fidelity()(models, asked, work=work)
    assert found["recall"] < 0.05 < found[FLOOR + "recall"]
    assert found["frechet_error"] > 5 * found[FLOOR + "frechet_error"]


def test_scores_of_each_row_to_each_go_by_so_many_rows_of_either_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, fake = (
        torch.randn(count, 2, generator=Generator().manual_seed(count)) for count in (12, 10)
    )
    sets = [
        {"embedding": rows, "predicted": torch.zeros(len(rows)), "labels": torch.zeros(len(rows))}
        for rows in (real, fake)
    ]
    monkeypatch.setattr(metrics, "MOST", 5)
    found = quality(*sets)
    some = real[[0, 2, 4, 7, 9]], fake[::2]
    assert found["kernel_error"] == kernel_distance(*some)
    assert (found["precision"], found["recall"]) == precision_recall(*some)
    assert found["frechet_error"] == frechet_distance(real, fake)


def test_parts_are_those_of_the_router() -> None:
    models, asked, work = evaluated(0.3)
    found = PartFidelity()(models, asked, work=work)
    assert {line for line, _ in found} == {"labels 0, 1", "labels 2, 3"}
    assert found["labels 0, 1", "class_accuracy"] == 1
    assert {name for _, name in found} == {score.name for score in PartFidelity().scores()}


def test_samples_are_made_once_a_stage(tmp_path: Path) -> None:
    models, asked, _ = evaluated(0.3)
    work = Work.seeded(0, kept=tmp_path)
    one = Samples(role="student")(models, asked, work)
    drawers = [student.denoiser for student in models["student"].students]  # type: ignore[union-attr]
    calls = [drawer.calls for drawer in drawers]
    again = Samples(role="student")(models, asked, work)
    assert [drawer.calls for drawer in drawers] == calls
    assert torch.equal(one["images"], again["images"])


def test_costs_are_of_one_network_and_of_all_training() -> None:
    models, asked, work = evaluated(0.3)
    assert Cost()(models, asked, work=work) == {
        "nfe": 1, "training_steps": 30, "used_parameters": 3
    }  # fmt: skip
    before = [p.clone() for p in models["student"].parameters()]
    assert Swap(runs=3)(models, asked, work=work)["swap_ms"] > 0
    assert all(map(torch.equal, before, models["student"].parameters()))


class Plane(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"images": 0.2 * batch["noise"] + self.shift}


@pytest.mark.parametrize(("shift", "far"), [(0.0, False), (0.6, True)])
def test_distance_in_the_plane_beside_its_floor(shift: float, far: bool) -> None:
    def rows(count: int, seed: int) -> dict[str, Tensor]:
        noise = torch.randn(count, 2, 1, 1, generator=Generator().manual_seed(seed))
        return {"noise": noise, "labels": torch.arange(count) % 2}

    pairs = rows(8000, 1)
    pairs["images"] = 0.2 * pairs["noise"]
    work = Work(data={"pairs": TensorData(pairs)})
    models = {"student": Plane(shift)}
    metric = PlaneDistance(bins=10)
    found = metric(models, TensorData(rows(4000, 2)), work=work)
    assert (found["plane_error"] > 1.5) == far
    assert far or found["plane_error"] == pytest.approx(found[FLOOR + "plane_error"], rel=0.5)


def test_embedded_sets_keep_rows_and_labels() -> None:
    network = classifier()
    given = {"features": type("Built", (), {"module": network})()}
    sets: dict[str, Any] = {"train": TensorData(real(40, 0)), "test": TensorData(real(20, 1))}
    made = Embed()({**given, **sets}, work=Work())
    assert {port: len(columns["labels"]) for port, columns in made.items()} == {  # type: ignore[arg-type]
        "train": 40, "test": 20
    }  # fmt: skip
    with torch.no_grad():
        expected = network(real(40, 0))["embedding"]
    torch.testing.assert_close(made["train"]["embedding"], expected)


def test_weights_are_copied_in_order_and_what_does_not_fit_is_named() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    stored = {"a": source.weight, "b": source.bias, "fc": torch.zeros(9)}
    copy_in_order(stored, target, Path("w.pth"))
    assert torch.equal(target.weight, source.weight)
    with pytest.raises(BadData, match=r"w\.pth: 'b' \[2\] is not tf_efficientnet_lite0's 'weight'"):
        copy_in_order({"b": source.bias}, target, Path("w.pth"))


def test_grids_show_a_line_a_model_and_frames_in_the_colour_of_the_part() -> None:
    models, asked, work = evaluated(0.3)
    figure = SampleGrid(lines={"students": "student"}, columns=4)(models, asked, work=work)
    frames = [axis.spines["top"].get_edgecolor() for axis in figure.axes]
    from matplotlib.colors import to_rgba

    assert frames == [to_rgba(COLOURS[part]) for part in (0, 0, 1, 1)]
    points = TensorData({"noise": torch.randn(20, 2, 1, 1), "labels": torch.arange(20) % 2})
    grid = PlaneGrid(lines={"a": "a", "b": "b"})
    drawn = grid({"a": Plane(0.0), "b": Plane(0.1)}, points, work=Work())
    assert len(drawn.axes) == 2
