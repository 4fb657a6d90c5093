"""A federation of a user's own clients: a folder a client."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stillhouse.data import TensorData
from stillhouse.data.shards import load_data
from stillhouse.errors import BadData, BadSetting
from stillhouse.federated.flower.node import node_data
from stillhouse.recipe import Recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make
from stillhouse.work import Work
from stillhouse_vision.own_clients import OwnClients

NAME = "vision/knfu"
CLASSES = ("finch", "owl", "wren")
MIXES = {"east": {"finch": 3}, "north": {"finch": 1, "wren": 2}, "west": {"owl": 4}}


def write(folder: Path, count: int, shade: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (8, 8), shade + number).save(folder / f"{number}.png")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    for place, part in enumerate(("train", "test")):
        for label, name in enumerate(CLASSES):
            write(tmp_path / "public" / part / name, 6, 20 + 80 * label + 20 * place)
    for client, mix in MIXES.items():
        for name, count in mix.items():
            write(tmp_path / "clients" / client / name, count, 40 + 80 * CLASSES.index(name))
    found = {"data": tmp_path / "public", "private": tmp_path / "clients"}
    return {name: f"file:{path}" for name, path in found.items()}


def recipe(sources: dict[str, str], **settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, "tiny", {**sources, **settings}))


def made(recipe: Recipe, tmp_path: Path) -> dict[str, TensorData]:
    read, split = recipe.stage("data"), recipe.stage("split-0")
    assert isinstance(read, Make)
    assert isinstance(split, Make)
    parts = read.make({"source": tmp_path / "public"}, work=Work())
    opened = {
        port: TensorData({name: torch.cat([part[name] for part in columns]) for name in ("images", "labels")})
        for port, columns in ((port, list(parts[port])) for port in parts)
    }  # fmt: skip
    inputs = {**opened, "private": tmp_path / "clients"}
    ports = split.make(inputs, work=Work.seeded(0))
    assert tuple(ports) == split.outputs
    return {port: TensorData(columns) for port, columns in ports.items()}


def test_each_client_has_its_own_folder_and_the_runs_numbers_of_classes(
    sources: dict[str, str], tmp_path: Path
) -> None:
    ports = made(recipe(sources), tmp_path)
    assert set(ports) == {"transfer", "test", "east", "north", "west"}
    labels = {client: ports[client].columns["labels"].tolist() for client in MIXES}
    assert labels == {"east": [0, 0, 0], "north": [0, 2, 2], "west": [1, 1, 1, 1]}
    assert len(ports["transfer"]) == 18  # fewer than transfer=100: all
    weights = ports["test"].columns["weights"]
    seen = (weights > 0).long().T.tolist()
    assert [sorted({label for label, w in zip(ports["test"].columns["labels"].tolist(), row, strict=True) if w})
            for row in seen] == [[0], [1], [0, 2]]  # fmt: skip


def test_clients_are_stages_ports_and_the_first_is_exported(sources: dict[str, str]) -> None:
    whole = recipe(sources)
    assert whole.stage("knfu-0").outputs[:3] == ("east", "west", "north")
    assert whole.stage("export").inputs["student"] == "knfu-0.east"
    assert "each with the images of its own folder" in whole.notes[0]


def test_fedavg_says_where_no_two_clients_have_one_architecture(sources: dict[str, str]) -> None:
    alone = recipe(sources)  # three clients, three architectures
    assert "FedAvg (no two of one architecture)" in alone.rows
    assert any("FedAvg has nobody to average with" in note for note in alone.notes)
    together = recipe(sources, models=["flat2-8"])
    assert "FedAvg (sends weights)" in together.rows
    assert not any("nobody to average" in note for note in together.notes)


def test_what_is_no_class_and_no_client_is_named(sources: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "clients" / "east" / "rook", 1, 0)
    with pytest.raises(BadData, match=r"east/rook: no class of data, which has finch, owl, wren"):
        made(recipe(sources), tmp_path)
    write(tmp_path / "clients" / "the south" / "owl", 1, 0)
    with pytest.raises(BadData, match="the south: a client's name has only letters"):
        recipe(sources)
    with pytest.raises(BadSetting, match="set data to the images that all clients may see"):
        recipe({"private": sources["private"]})


def test_a_supernode_reads_its_own_folder_of_images_once(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    whole, run = recipe(sources), {"key": "0" * 64}
    path = tmp_path / "clients" / "north"
    first = node_data(whole, "split-0.north", path, run)
    assert node_data(whole, "split-0.north", path, run) == first
    data = load_data(first.path)
    assert data.columns["labels"].tolist() == [0, 2, 2]
    split = whole.stage("split-0")
    assert isinstance(split, Make)
    assert isinstance(split.make, OwnClients)
    assert torch.equal(data.rows(torch.arange(3))["images"], split.make.read_client(path)["images"])
    tiny = make_recipe(NAME, make_settings(NAME, "tiny"))
    with pytest.raises(BadSetting, match=r"no data\.json in it; give a folder of shards"):
        node_data(tiny, "split-0.client-0", path, run)
