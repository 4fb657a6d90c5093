"""Models come from their files to the same bits, without a second copy in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stillhouse.artifact import Built, Model, load_model, save_model
from stillhouse.errors import CorruptArtifact
from stillhouse.loading import places_in, without_copy

from .toys import SITE, Net, Towers, Wide, same

LOAD = """
import sys
from pathlib import Path
import torch
from stillhouse.artifact import load_model

def peak():  # not ru_maxrss: that begins with the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

load_model(Path(sys.argv[1]))  # a small one: what loading itself imports is not counted
before = peak()
dtype = getattr(torch, sys.argv[3]) if sys.argv[3] else None
module = load_model(Path(sys.argv[2]), dtype=dtype).module
grown = peak() - before
print(grown, sum(p.nbytes for p in module.parameters()))
"""


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def saved(folder: Path, spec: Model, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = spec.new()
    save_model(folder, Built(spec=spec, module=module))
    return module


@pytest.mark.parametrize("odd", ["", "tied", "lstm", "strided", "computed", "kept", "frozen"])
def test_a_model_of_any_make_is_loaded_to_the_same_bits(tmp_path: Path, odd: str) -> None:
    spec = Model(build=Towers, kwargs={"odd": odd})
    module = saved(tmp_path / "model", spec).eval()
    assert isinstance(module, Towers)
    torch.manual_seed(9)  # other fresh weights than those that were saved
    found = load_model(tmp_path / "model").module
    assert isinstance(found, Towers)
    assert same(dict(found.state_dict()), dict(module.state_dict()))
    assert torch.equal(found.positions, module.positions)  # not stored: made by the builder
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(found(images), module(images))
    assert not any(value.is_meta for value in (*found.parameters(), *found.buffers()))
    for one, other in zip(found.parameters(), module.parameters(), strict=True):
        assert (one.stride(), one.requires_grad) == (other.stride(), other.requires_grad)
    if odd == "tied":
        assert found.head.weight is found.body.weight


@pytest.mark.parametrize("odd", ["", "tied", "lstm", "strided", "computed", "kept", "frozen"])
def test_only_what_needs_fresh_weights_is_built_with_them(tmp_path: Path, odd: str) -> None:
    """One computes with its weights while it is built, one keeps them where no loader looks."""
    spec = Model(build=Towers, kwargs={"odd": odd})
    saved(tmp_path / "model", spec)
    file = tmp_path / "model" / "model.safetensors"
    found = without_copy(spec.new, lambda: places_in(file))
    assert (found is None) == (odd in ("computed", "kept"))


def test_a_dtype_is_that_of_the_stored_floats(tmp_path: Path) -> None:
    spec = Model(build=Net, kwargs={"width": 4})
    module = saved(tmp_path / "model", spec)
    found = load_model(tmp_path / "model", dtype=torch.bfloat16).module.state_dict()
    for name, value in module.state_dict().items():
        assert found[name].dtype == (torch.bfloat16 if value.is_floating_point() else value.dtype)
        assert torch.equal(found[name], value.to(found[name].dtype))


@pytest.mark.parametrize("odd", ["", "tied", "computed", "kept"])
def test_a_model_loaded_in_a_dtype_computes_in_it(tmp_path: Path, odd: str) -> None:
    """Its buffers that are not stored included, and tied weights stay one."""
    saved(tmp_path / "model", Model(build=Towers, kwargs={"odd": odd}))
    found = load_model(tmp_path / "model", dtype=torch.bfloat16).module
    assert isinstance(found, Towers)
    assert found.positions.dtype == torch.bfloat16
    assert found(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert (found.head.weight is found.body.weight) == (odd == "tied")


def test_a_stored_dtype_becomes_that_of_the_module(tmp_path: Path) -> None:
    spec = Model(build=Net, kwargs={"width": 4})
    halves = spec.new().to(torch.bfloat16)
    save_model(tmp_path / "model", Built(spec=spec, module=halves))
    found = load_model(tmp_path / "model").module
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert torch.equal(
        found.get_parameter("head.weight"), halves.get_parameter("head.weight").float()
    )


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", Model(build=Net, kwargs={"width": 4}))
    file = tmp_path / "model" / "model.json"
    record = json.loads(file.read_text())
    record["kwargs"]["width"] = 5
    file.write_text(json.dumps(record))
    with pytest.raises(
        CorruptArtifact, match=r"model.safetensors does not fit model.json \(Error\(s\) in"
    ):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path, dtype: str) -> None:
    saved(tmp_path / "small", Model(build=Wide, kwargs={"width": 8, "depth": 1}))
    spec = Model(build=Wide, kwargs={"width": 2048, "depth": 12})  # 201 MB
    saved(tmp_path / "model", spec)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "small"), str(tmp_path / "model"), dtype]
    places = {**os.environ, "PYTHONPATH": str(SITE)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=places)
    grown, size = map(int, done.stdout.split())
    assert size == 12 * 2048 * 2048 * (2 if dtype else 4)
    assert grown < 1.35 * size  # the weights, and the piece of the file that is read at a time
