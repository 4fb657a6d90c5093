"""Public data sets from a stand-in for their home: real archives in the homes' formats, over HTTP."""

import gc
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from stillhouse.cli import main
from stillhouse.errors import StillhouseError
from stillhouse.homes import data_homes, fetch_data
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.own_data import look_at

RNG = np.random.default_rng(0)
DIGITS = {split: RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8) for split in ("train", "t10k")}
PHOTOS = {split: RNG.integers(0, 256, (20, 3072), dtype=np.uint8) for split in ("train", "test")}
LABELS = np.arange(20) % 10


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing on the terminal of the tests."""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a project of each test's own."""
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL that serves it."""
    folder = tmp_path / "home-of-data"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def put_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST's four IDX files; torchvision expects their MD5 from now on."""
    resources: list[tuple[str, str]] = []
    for split, images in DIGITS.items():
        pixels = struct.pack(">IIII", 0x803, len(images), 28, 28) + images.tobytes()
        labels = struct.pack(">II", 0x801, len(images)) + LABELS.astype(np.uint8).tobytes()
        for name, data in (("images-idx3", pixels), ("labels-idx1", labels)):
            file = folder / f"{split}-{name}-ubyte.gz"
            file.write_bytes(gzip.compress(data))
            resources.append((file.name, md5(file.read_bytes())))
    order = [0, 1, 2, 3]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [resources[i] for i in order])


def put_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's archive of pickled batches."""
    names = [f"class{number}" for number in range(10)]
    batches = {
        "data_batch_1": {"data": PHOTOS["train"], "labels": LABELS.tolist()},
        "test_batch": {"data": PHOTOS["test"], "labels": LABELS.tolist()},
        "batches.meta": {"label_names": names},
    }
    stored = {name: pickle.dumps(batch, protocol=2) for name, batch in batches.items()}
    kind = torchvision.datasets.CIFAR10
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        for name, data in stored.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(kind, "tgz_md5", md5((folder / kind.filename).read_bytes()))
    for part, name in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
        monkeypatch.setattr(kind, part, [[name, md5(stored[name])]])
    meta = {**kind.meta, "md5": md5(stored["batches.meta"])}
    monkeypatch.setattr(kind, "meta", meta)


def read(folder: Path, size: int, channels: int) -> dict[str, np.ndarray]:
    spec = ImageSpec(size=size, mean=(0.5,) * channels, std=(0.5,) * channels)
    found = ReadImages(images=spec, classes=10)({"source": folder}, work=Work.seeded(0))
    arrays: dict[str, np.ndarray] = {}
    for split, columns in found.items():
        parts = [columns] if isinstance(columns, dict) else list(columns)
        for name in ("images", "labels"):
            arrays[f"{split}/{name}"] = np.concatenate([np.asarray(p[name]) for p in parts])
    return arrays


def test_mnist_is_read_as_it_was_published(
    tmp_path: Path, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mnist(place[0], monkeypatch)
    folder = fetch_data("mnist", tmp_path, mirror=place[1])
    assert folder == tmp_path / "data" / "mnist"
    look = look_at(folder)
    assert look.names == tuple("0123456789")
    found = read(folder, 28, 1)
    np.testing.assert_array_equal(found["train/images"][:, 0], DIGITS["train"])
    np.testing.assert_array_equal(found["test/images"][:, 0], DIGITS["t10k"])
    np.testing.assert_array_equal(found["test/labels"], LABELS)


def test_cifar_is_read_as_it_was_published_and_not_downloaded_twice(
    tmp_path: Path, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_cifar(place[0], monkeypatch)
    folder = fetch_data("cifar10", tmp_path, mirror=place[1])
    found = read(folder, 32, 3)
    np.testing.assert_array_equal(found["train/images"].reshape(20, -1), PHOTOS["train"])
    np.testing.assert_array_equal(found["test/labels"], LABELS)
    (place[0] / torchvision.datasets.CIFAR10.filename).unlink()
    again = fetch_data("cifar10", tmp_path / "other", mirror=place[1])
    assert (again / "train.parquet").read_bytes() == (folder / "train.parquet").read_bytes()


def test_a_file_of_other_bytes_is_not_used(
    tmp_path: Path, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torchvision's own checksums, which no stand-in has."""
    with monkeypatch.context() as patch:
        put_cifar(place[0], patch)
    with pytest.raises(StillhouseError, match="another MD5 than the published one") as error:
        fetch_data("cifar10", tmp_path, mirror=place[1])
    assert "\n" not in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["mnist", "--mirror", "{url}"], "'mnist': {url}/ does not give it"),
        (["tiny-imagenet"], "'tiny-imagenet' is under terms that you accept yourself"),
        (["mnits"], "Did you mean 'mnist'?"),
        (["fashion-mnist", "--mirror", "{url}"], "fashion-mnist is there already; remove it"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    words: list[str],
    reason: str,
    tmp_path: Path,
    place: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data/fashion-mnist").mkdir(parents=True)
    given = [word.format(url=place[1]) for word in words]
    with warnings.catch_warnings():
        # torchvision leaves the answer of a home that has no such file to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        assert main(["data", "fetch", *given]) == 2
        gc.collect()
    err = capsys.readouterr().err
    assert reason.format(url=place[1]) in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fashion-mnist"]


def test_without_a_name_they_are_listed_with_their_licence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "fetch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(data_homes()) >= 5
    assert all(
        home.license in line for home, line in zip(data_homes().values(), lines, strict=True)
    )


@pytest.mark.parametrize("blocked", ["home", "data"])
def test_a_folder_that_cannot_be_made_is_one_line(
    blocked: str,
    tmp_path: Path,
    place: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_mnist(place[0], monkeypatch)
    (tmp_path / blocked).write_text("a file\n")
    assert main(["data", "fetch", "mnist", "--mirror", place[1]]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert f"{tmp_path / blocked}" in err
    assert "a file, where a folder is to be; move it" in err
    assert (tmp_path / blocked).read_text() == "a file\n"
