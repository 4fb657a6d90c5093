import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.artifact import Built, Model, load_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, model

IMAGES = ImageSpec()
SPEC = model("resnet8", classes=4, images=IMAGES)

# our names -> the names of the reference code of the CIFAR ResNets, which is not in this repository
FOREIGN = (
    ("body.conv.", "conv1."),
    ("body.norm.", "bn1."),
    ("body.stages.0.blocks.", "layer1."),
    ("body.stages.1.blocks.", "layer2."),
    ("body.stages.2.blocks.", "layer3."),
    (".norm1.", ".bn1."),
    (".norm2.", ".bn2."),
    ("head.", "linear."),
)


def foreign_state(spec: Model = SPEC) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = {}
    for name, value in spec.new().state_dict().items():
        for ours, theirs in FOREIGN:
            name = name.replace(ours, theirs)
        state[f"module.{name}"] = torch.rand(value.shape) if value.ndim else value
    return state


def convert(source: object, out: Path, spec: Model = SPEC, **kwargs: tuple[str, ...]) -> Built:
    LoadCheckpoint(model=spec, **kwargs)({"checkpoint": source}, out, work=Work())
    return load_model(out)


def test_foreign_checkpoint_is_loaded_tensor_by_tensor(tmp_path: Path) -> None:
    state = foreign_state()
    torch.save({"state_dict": state, "best_prec1": 91.0}, tmp_path / "a.th")
    loaded = convert(tmp_path / "a.th", tmp_path / "out").module.state_dict()
    assert torch.equal(loaded["body.conv.weight"], state["module.conv1.weight"])
    third = "body.stages.2.blocks.0.norm2.running_var"
    assert torch.equal(loaded[third], state["module.layer3.0.bn2.running_var"])
    assert torch.equal(loaded["head.bias"], state["module.linear.bias"])
    assert len(loaded) == len(state)


def test_checkpoint_of_old_torch_without_batch_counts(tmp_path: Path) -> None:
    state = {k: v for k, v in foreign_state().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "a.pth")
    loaded = convert(tmp_path / "a.pth", tmp_path / "out").module.state_dict()
    assert loaded["body.norm.num_batches_tracked"] == 0
    assert torch.equal(loaded["body.norm.bias"], state["module.bn1.bias"])


def test_own_names_and_safetensors_in_a_folder(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in SPEC.new().state_dict().items()}
    (tmp_path / "in").mkdir()
    save_file(state, str(tmp_path / "in" / "w.safetensors"))
    loaded = convert(tmp_path / "in", tmp_path / "out").module.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_timm_checkpoint_has_timms_names(tmp_path: Path) -> None:
    spec = model("timm:resnet10t", classes=4, images=IMAGES)
    net = spec.new().get_submodule("net")
    torch.save(net.state_dict(), tmp_path / "a.pt")
    loaded = convert(tmp_path / "a.pt", tmp_path / "out", spec).module.state_dict()
    assert torch.equal(loaded["net.fc.weight"], net.state_dict()["fc.weight"])


def test_a_model_folder_keeps_its_own_spec(tmp_path: Path) -> None:
    given = model("cnn4", classes=4, images=IMAGES)
    built = Built(spec=given, module=given.new())
    opened = convert(built, tmp_path / "out")
    assert opened.spec == given


def test_a_model_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    given = model("cnn4", classes=5, images=IMAGES)
    with pytest.raises(BadData, match=r"'logits' is \(5,\), teacher_model's is \(4,\)"):
        convert(Built(spec=given, module=given.new()), tmp_path / "out")


def test_a_model_of_other_feature_maps_is_refused_when_they_are_read(tmp_path: Path) -> None:
    given = model("cnn4", classes=4, images=IMAGES)
    built = Built(spec=given, module=given.new())
    with pytest.raises(BadData, match="'hint1'"):
        convert(built, tmp_path / "out", agree=("logits", "hint1"))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    state = foreign_state()
    del state["module.linear.bias"]
    torch.save(state, tmp_path / "a.th")
    with pytest.raises(BadData, match=r"a\.th: does not fit the model: it lacks 'head.bias'"):
        convert(tmp_path / "a.th", tmp_path / "out")


def test_checkpoint_of_a_deeper_model_is_refused(tmp_path: Path) -> None:
    torch.save(foreign_state(model("resnet14", classes=4, images=IMAGES)), tmp_path / "a.th")
    with pytest.raises(BadData, match=r"it has 'body.stages.0.blocks.1.conv1.weight' and"):
        convert(tmp_path / "a.th", tmp_path / "out")


def test_other_number_of_classes_is_named(tmp_path: Path) -> None:
    torch.save(foreign_state(model("resnet8", classes=10, images=IMAGES)), tmp_path / "a.th")
    with pytest.raises(BadData, match=r"'head.weight' is \[10, 64\], the model's is \[4, 64\]"):
        convert(tmp_path / "a.th", tmp_path / "out")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "a.th")
    with pytest.raises(BadData, match=r"a\.th: holds objects of class getattr, which only running"):
        convert(tmp_path / "a.th", tmp_path / "out")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadData, match=r"b\.pt: not a checkpoint that can be read safely"):
        convert(tmp_path / "b.pt", tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    for name in ("a.th", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=f"{name}: not a checkpoint"):
            convert(tmp_path / name, tmp_path / "out")


def test_a_folder_of_several_checkpoints_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.th", "b.th"):
        torch.save(foreign_state(), tmp_path / name)
    with pytest.raises(BadData, match=r"\(found a.th, b.th\); name the file itself"):
        convert(tmp_path, tmp_path / "out")
