"""What a model folder, a stage's record or a `builtin:` input may have called, and what not."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
from stillhouse.errors import BadData, BadRecipe, CorruptArtifact, PluginError, StillhouseError
from stillhouse.inputs import outside

from .test_settings import plugin
from .toys import SITE

# every function but the builders leaves a file behind when it is called
CODE = """
import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import TypeAliasType
from stillhouse.files import write_text

Linear = nn.Linear

def mark(*, path: str):
    Path(path).touch()

def mark_and_say(*, path: str) -> str:
    Path(path).touch()
    return path

def mark_now() -> Mapping[str, str]:
    Path("marker").touch()
    return {}

@functools.cache
def arrays() -> Mapping[str, np.ndarray]:
    return {"a": np.zeros(3)}

# as numpy.typing.NDArray is from NumPy 2.5 on, where Python has such aliases
T = TypeVar("T", bound=np.generic)
Aliased = TypeAliasType("Aliased", np.ndarray[tuple[Any, ...], np.dtype[T]], type_params=(T,))

def aliased() -> Mapping[str, Aliased[np.uint8] | Aliased[np.int64] | NDArray[np.float32]]:
    return {"a": np.zeros(3, np.uint8)}

def tensors() -> dict[str, Tensor]:
    return {}

def objects() -> Mapping[str, np.ndarray]:
    return {"a": np.array([None])}

def sized(size: int) -> Mapping[str, np.ndarray]:
    Path("marker").touch()
    return {}

class Net(nn.Module):
    def __init__(self, width: int, names: tuple[str, ...] = (), rate: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    @staticmethod
    def mark(path: str) -> None:
        Path(path).touch()

def tight(*, width: int) -> nn.Module:
    return nn.Linear(10 // width, 1)

def nested(*, inner: Mapping[str, object]) -> nn.Module:
    from stillhouse.artifact import spec_of
    return spec_of(inner).new()
"""


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin `trap`, and no file yet."""
    site = tmp_path / "site"
    site.mkdir()
    plugin(site, "trap", CODE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stillhouse_trap", raising=False)


def written(folder: Path, record: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(("build", "message"), [
    ("os:system", "package 'os' is neither stillhouse nor a plugin"),
    ("stillhouse_trap:mark", "'stillhouse_trap:mark': builds no network; a model's `build` is an nn"),
    ("stillhouse_trap:mark_and_say", "builds no network"),
    ("stillhouse_trap:Net.mark", "'mark' is neither a function nor a class"),
    ("stillhouse_trap:subprocess.run", "'subprocess' is neither a function nor a class"),
    ("stillhouse_trap:Path.touch", "defined elsewhere, as pathlib:Path"),
    ("stillhouse_trap:write_text", "defined elsewhere, as stillhouse.files:write_text; only the name"),
    ("stillhouse_trap:Linear", "defined elsewhere, as torch.nn.modules.linear:Linear"),
    ("stillhouse.files:write_text", "builds no network"),
    ("stillhouse.files:shutil.rmtree", "'shutil' is neither a function nor a class"),
    ("stillhouse.domain:importlib.metadata.sys", "'importlib' is neither a function nor a class"),
    ("stillhouse.__main__:sys.exit", "not of the form module:function"),
    ("stillhouse_trap:Net.__init__.__globals__", "not of the form module:function"),
    ("stillhouse_trap:Net\n", "not of the form module:function"),
    ("x" * 10_000, "not of the form module:function"),
])  # fmt: skip
def test_a_model_folder_calls_nothing_but_builders(
    tmp_path: Path, build: str, message: str
) -> None:
    marker = tmp_path / "marker"
    for kwargs in ({"path": str(marker)}, {}, {"command": f"touch {marker}"}):
        folder = written(tmp_path / "model", {"build": build, "kwargs": kwargs})
        with pytest.raises(StillhouseError) as caught:
            load_model(folder)
        assert message in str(caught.value)
        assert "model.json" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert not marker.exists()


def test_a_builder_inside_a_builder_goes_through_the_same_door(tmp_path: Path) -> None:
    inner = {"build": "stillhouse_trap:mark", "kwargs": {"path": str(tmp_path / "marker")}}
    record = {"build": "stillhouse_trap:nested", "kwargs": {"inner": inner}}
    with pytest.raises(PluginError, match=r"model.json: 'stillhouse_trap:mark': builds no network"):
        load_model(written(tmp_path / "model", record))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("record", "message"), [
    ([], r"model.json: Input should be an object \(got \[\]\); run the stage that made it again"),
    (3, r"Input should be an object \(got 3\)"),
    (None, r"Input should be an object \(got None\)"),
    ({}, r'expected {"build": "module:name", "kwargs": {...}} \(got {}\)'),
    ({"build": ["a"], "kwargs": {}}, r'expected {"build": "module:name"'),
    ({"build": "stillhouse_trap:Net", "kwargs": [1]}, r'expected {"build": "module:name"'),
    ({"build": "stillhouse_trap:Net", "kwargs": {}}, r"missing a required argument: 'width'"),
    ({"build": "stillhouse_trap:Net", "kwargs": {"width": 1, "b": 2}}, r"got an unexpected keyword argument 'b'"),
    ({"build": "stillhouse_trap:Net", "kwargs": {"width": "1"}}, r"argument 'width' does not fit 'stillhouse_trap:Net': Input should be a valid integer"),
    ({"build": "stillhouse_trap:Net", "kwargs": {"width": 1, "names": [1]}}, r"argument 'names' does not fit .* valid string"),
    ({"build": "stillhouse_trap:tight", "kwargs": {"width": 0}}, r"model.json: builds no network: ZeroDivisionError: integer"),
    ({"build": "stillhouse_trap:nope", "kwargs": {}}, r"stillhouse_trap defines no 'nope'"),
    ({"build": "stillhouse_trap.nope:Net", "kwargs": {}}, r"cannot be found: No module named"),
])  # fmt: skip
def test_a_record_of_another_shape_is_one_line(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as caught:
        load_model(written(tmp_path / "model", record))
    assert "\n" not in str(caught.value)


LOAD = """
import resource, sys
from pathlib import Path
import torch
from stillhouse.artifact import load_model
from stillhouse.errors import CorruptArtifact
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_model(Path(sys.argv[1]))
except CorruptArtifact as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)  # MiB
"""


@pytest.mark.parametrize("width", [10**6, 10**9])
def test_a_width_far_beyond_the_weights_takes_no_memory(tmp_path: Path, width: int) -> None:
    """A linear layer of 10**6 x 10**6 takes 4 TB, of 10**9 x 10**9 four million."""
    import stillhouse_trap  # pyright: ignore[reportMissingImports]

    spec = Model(build=stillhouse_trap.Net, kwargs={"width": 3})
    save_model(tmp_path / "model", Built(spec=spec, module=spec.new()))
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    record["kwargs"]["width"] = width
    (tmp_path / "model" / "model.json").write_text(json.dumps(record))
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model")]
    places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(SITE)])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=places)
    line, grown = done.stdout.splitlines()
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert line == (
        f"{tmp_path}/model/model.json: builds no network: its arguments need "
        f"{4 * width * width:,} bytes and more, but the weights have {size}; give the arguments "
        "that the weights were saved with"
    )
    assert int(grown) < 500


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    import stillhouse_trap  # pyright: ignore[reportMissingImports]

    build: Any = stillhouse_trap.Net
    spec = Model(build=build, kwargs={"width": 3, "names": ("a",), "rate": 1})
    module = spec.new()
    save_model(tmp_path / "model", Built(spec=spec, module=module))
    loaded = load_model(tmp_path / "model").module.get_submodule("layer")
    assert torch.equal(loaded.weight, module.get_submodule("layer").weight)


@pytest.mark.parametrize("opener", [
    "stillhouse_trap:mark", "os:remove", "stillhouse.files:fsync", "stillhouse.digest:path_digest", "", "x" * 999,
])  # fmt: skip
def test_only_openers_open(tmp_path: Path, opener: str) -> None:
    artifact = Artifact(kind="data", path=tmp_path / "marker", digest="", opener=opener)
    with pytest.raises(CorruptArtifact, match="opens no artifact; run the stage") as caught:
        artifact.open()
    assert "stillhouse.artifact:load_model" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "marker").exists()


def test_builtin_names_a_function_that_makes_arrays(tmp_path: Path) -> None:
    for name in ("arrays", "aliased"):
        artifact = outside(f"builtin:stillhouse_trap:{name}", tmp_path)
        found: Mapping[str, Any] = artifact.open()
        assert list(found) == ["a"]
    for name in ("mark_now", "mark", "sized", "Net", "nested"):
        with pytest.raises(
            PluginError, match=f"'stillhouse_trap:{name}': makes no arrays; builtin"
        ):
            outside(f"builtin:stillhouse_trap:{name}", tmp_path)
    for name, message in (
        ("tensors", "gave a dict without arrays"),
        ("objects", "'a' is no array of numbers or texts"),
    ):
        with pytest.raises(BadData, match=f"'builtin:stillhouse_trap:{name}': {message}"):
            outside(f"builtin:stillhouse_trap:{name}", tmp_path)
    with pytest.raises(BadRecipe, match="stillhouse_trap defines no 'array'"):
        outside("builtin:stillhouse_trap:array", tmp_path)
    with pytest.raises(PluginError, match="package 'os' is neither stillhouse nor a plugin"):
        outside("builtin:os:getcwd", tmp_path)
    assert not (tmp_path / "marker").exists()
