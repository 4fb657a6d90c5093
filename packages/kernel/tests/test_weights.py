"""Weights that a user gives: a model folder, a checkpoint file, or a folder that holds one."""

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.artifact import Built, Model, load_model, save_model
from stillhouse.errors import BadData
from stillhouse.weights import import_checkpoint, peeled, read_state

from .toys import SITE, Net


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SITE)


def spec(width: int = 3) -> Model:
    return Model(build=Net, kwargs={"width": width})


def nothing(_: Built) -> None:
    return


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module.module.", "model._orig_mod.module.model."]
)
def test_a_file_fills_the_part_it_is_of(tmp_path: Path, suffix: str, prefix: str) -> None:
    state = {f"{prefix}weight": torch.rand(5, 3), f"{prefix}bias": torch.rand(5)}
    folder = tmp_path / "given"
    folder.mkdir()
    file = folder / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    for name, source in {"of-file": file, "of-folder": folder}.items():
        import_checkpoint(source, tmp_path / name, spec=spec(), check=nothing, inside="head")
        loaded = load_model(tmp_path / name).module.get_submodule("head").state_dict()
        assert torch.equal(loaded["weight"], state[f"{prefix}weight"])
        assert torch.equal(loaded["bias"], state[f"{prefix}bias"])


def test_a_model_folder_keeps_its_own_spec_where_the_check_lets_it(tmp_path: Path) -> None:
    given = Built(spec=spec(5), module=spec(5).new())
    import_checkpoint(given, tmp_path / "out", spec=spec(), check=nothing)
    assert load_model(tmp_path / "out").spec == spec(5)

    def refuse(built: Built) -> None:
        raise BadData(f"width {built.spec.kwargs['width']}")

    with pytest.raises(BadData, match="width 5"):
        import_checkpoint(given, tmp_path / "other", spec=spec(), check=refuse)
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.rand(5, 4), "bias": torch.rand(5)}, file)
    with pytest.raises(BadData, match=r"weights.safetensors \(a model\): .*'weight' is \[5, 4\]"):
        import_checkpoint(
            file, tmp_path / "out", spec=spec(), check=nothing, inside="head", about="a model"
        )
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadData, match=r"expected model.json or one checkpoint file \(found none\)"):
        import_checkpoint(empty, tmp_path / "out", spec=spec(), check=nothing)


def test_the_file_is_given_as_the_save_function_wrote_it(tmp_path: Path) -> None:
    built = Built(spec=spec(), module=spec().new())
    save_model(tmp_path / "model", built)
    import_checkpoint(
        tmp_path / "model" / "model.safetensors", tmp_path / "out", spec=spec(), check=nothing
    )
    first, second = (load_model(tmp_path / name).module for name in ("model", "out"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def head(**changes: Any) -> dict[str, Any]:
    return {"weight": torch.rand(5, 3), "bias": torch.rand(5), **changes}


def refusal(file: Path, tmp_path: Path, inside: str = "head") -> str:
    with pytest.raises(BadData) as caught:
        import_checkpoint(file, tmp_path / "out", spec=spec(), check=nothing, inside=inside)
    text = str(caught.value)
    assert text.startswith(str(file))
    assert "\n" not in text
    assert "\x1b" not in text
    assert not (tmp_path / "out").exists()
    return text


def test_names_within_wrappers_that_the_model_has_itself(tmp_path: Path) -> None:
    """A model whose own names begin as a wrapper's do: what fits best is taken."""
    own = {"model.a": torch.ones(1), "n_averaged": torch.tensor(3)}
    first, *others = peeled({f"module.{name}": value for name, value in own.items()})
    assert list(first) == ["module.model.a", "module.n_averaged"]
    assert [list(other) for other in others] == [["model.a", "n_averaged"], ["a"]]


def test_an_averaged_model_is_read(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 5))
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    import_checkpoint(
        tmp_path / "swa.pth", tmp_path / "out", spec=spec(), check=nothing, inside="head"
    )
    loaded = load_model(tmp_path / "out").module.get_submodule("head")
    assert torch.equal(loaded.weight, averaged.module.weight)


def test_weights_beside_averaged_weights_are_a_choice(tmp_path: Path) -> None:
    """Both lines that the message prints make a file that is read, each its own."""
    file, both = tmp_path / "both.pth", {"state_dict": head(), "state_dict_ema": head()}
    torch.save({**both, "epoch": 3}, file)
    text = refusal(file, tmp_path)
    assert "holds 'state_dict' and 'state_dict_ema' (averaged over the steps" in text
    found = re.search(r'python -c "(.*?)" for the averaged', text)
    assert found
    for entry in both:
        line = found[1].replace("state_dict_ema", entry)
        subprocess.run([sys.executable, "-c", line], check=True, cwd=tmp_path)
        state = read_state(tmp_path / "weights.pth")
        assert torch.equal(state["weight"], both[entry]["weight"])
    torch.save({"ema": head(), "model": {"lr": 3}}, file)
    assert set(read_state(file)) == {"weight", "bias"}
    torch.save({"model": head(), "ema": {"decay": 0.9}}, file)
    assert set(read_state(file)) == {"weight", "bias"}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_other_classes_names_them_and_the_way_out(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "run.pth"
    for content, named in (
        ({"state_dict": head(), "args": Namespace(lr=1)}, "argparse.Namespace"),
        (torch.nn.Linear(3, 5), "torch.nn.modules.linear.Linear"),
    ):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        text = refusal(file, tmp_path)
        assert f"holds objects of class {named}, which only running code can restore" in text
        found = re.search(r'python -c "(.*?)" and give weights.pth', text)
        assert found
        subprocess.run([sys.executable, "-c", found[1]], check=True, cwd=tmp_path)
        if not isinstance(content, dict):
            import_checkpoint(
                tmp_path / "weights.pth",
                tmp_path / named,
                spec=spec(),
                check=nothing,
                inside="head",
            )


def test_what_is_no_set_of_weights_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    for content, message in (
        ([1, 2], "a list, not a mapping of names to tensors"),
        ({"state_dict": [1], "epoch": 2}, "holds no tensors by name (its keys: state_dict, epoch)"),
        ({}, "holds no tensors by name (its keys: none)"),
        (head(bias=torch.tensor([0.0, float("nan"), 0, 0, 0])), "'bias' holds values that are not"),
        (
            head(weight=torch.full((5, 3), float("inf"))),
            "'weight' holds values that are not finite",
        ),
    ):
        torch.save(content, file)
        assert message in refusal(file, tmp_path)
    file.write_bytes(b"\x1b[31mred")
    assert "not a checkpoint that can be read safely" in refusal(file, tmp_path)


def test_another_channel_count_is_said(tmp_path: Path) -> None:
    file = tmp_path / "grey.pth"
    torch.save({"weight": torch.rand(3, 1, 3, 3), "bias": torch.rand(3)}, file)
    text = refusal(file, tmp_path, inside="conv")
    assert "'weight' is [3, 1, 3, 3], the model's is [3, 3, 3, 3]: it reads 1 channels" in text


def test_a_given_model_that_diverged_is_refused(tmp_path: Path) -> None:
    module = spec().new()
    module.get_submodule("head").bias.data.fill_(float("nan"))
    with pytest.raises(BadData, match="the given model: 'head.bias' holds values that are not"):
        import_checkpoint(
            Built(spec=spec(), module=module), tmp_path / "o", spec=spec(), check=nothing
        )


def test_checkpoints_are_read_with_weights_only() -> None:
    """In two places of all that is installed: nobody else unpickles what a user gives."""
    root = Path(__file__).parents[3]
    folders = (root / "packages", root / "plugins", root / "flows")
    sources = [file for folder in folders for file in folder.rglob("src/**/*.py")]
    found = [file.name for file in sources if "torch.load(" in file.read_text().replace("{", "")]
    assert sources
    assert set(found) == {"weights.py", "class_order.py"}
    for name, device in (("weights.py", "cpu"), ("class_order.py", "meta")):
        text = (root / "packages/kernel/src/stillhouse" / name).read_text()
        assert f'torch.load(file, map_location="{device}", weights_only=True)' in text
