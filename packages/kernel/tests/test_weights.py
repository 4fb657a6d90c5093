"""Weights that a user gives: a model folder, a checkpoint file, or a folder that holds one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.artifact import Built, Model, load_model, save_model
from stillhouse.errors import BadData
from stillhouse.weights import adopt

from .toys import SITE, Net


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SITE)


def spec(width: int = 3) -> Model:
    return Model(build=Net, kwargs={"width": width})


def nothing(_: Built) -> None:
    return


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_fills_the_part_it_is_of(tmp_path: Path, suffix: str, prefix: str) -> None:
    state = {f"{prefix}weight": torch.rand(5, 3), f"{prefix}bias": torch.rand(5)}
    folder = tmp_path / "given"
    folder.mkdir()
    file = folder / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    for name, source in {"of-file": file, "of-folder": folder}.items():
        adopt(source, tmp_path / name, spec=spec(), check=nothing, inside="head")
        loaded = load_model(tmp_path / name).module.get_submodule("head").state_dict()
        assert torch.equal(loaded["weight"], state[f"{prefix}weight"])
        assert torch.equal(loaded["bias"], state[f"{prefix}bias"])


def test_a_model_folder_keeps_its_own_spec_where_the_check_lets_it(tmp_path: Path) -> None:
    given = Built(spec=spec(5), module=spec(5).new())
    adopt(given, tmp_path / "out", spec=spec(), check=nothing)
    assert load_model(tmp_path / "out").spec == spec(5)

    def refuse(built: Built) -> None:
        raise BadData(f"width {built.spec.kwargs['width']}")

    with pytest.raises(BadData, match="width 5"):
        adopt(given, tmp_path / "other", spec=spec(), check=refuse)
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.rand(5, 4), "bias": torch.rand(5)}, file)
    with pytest.raises(BadData, match=r"weights.safetensors \(a model\): .*'weight' is \[5, 4\]"):
        adopt(file, tmp_path / "out", spec=spec(), check=nothing, inside="head", about="a model")
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadData, match=r"expected model.json or one checkpoint file \(found none\)"):
        adopt(empty, tmp_path / "out", spec=spec(), check=nothing)


def test_the_file_is_given_as_the_save_function_wrote_it(tmp_path: Path) -> None:
    built = Built(spec=spec(), module=spec().new())
    save_model(tmp_path / "model", built)
    adopt(tmp_path / "model" / "model.safetensors", tmp_path / "out", spec=spec(), check=nothing)
    first, second = (load_model(tmp_path / name).module for name in ("model", "out"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
