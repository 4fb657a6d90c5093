"""Networks as ONNX files: the same numbers as torch, int8 ones near them, and what a role must do."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Generator, nn

from stillhouse.artifact import Built, Model, load_model
from stillhouse.data.data import TensorData
from stillhouse.digest import path_digest
from stillhouse.errors import BadRecipe, BadSetting, ContractError, UnknownName
from stillhouse.export import INT8, Export, check_onnx, write_onnx
from stillhouse.metrics import Latencies, Lines, Profile
from stillhouse.objectives.objective import Tensors
from stillhouse.profile import macs, parameters
from stillhouse.quantize.onnx_network import ONNX, OnnxNetwork
from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.onnx_static import QuantizeStatic, ToOnnx
from stillhouse.work import Work

from .toys import SITE, Net, toy_data


@pytest.fixture(autouse=True, scope="module")
def _site() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE))
        yield


@pytest.fixture(scope="module")
def float_() -> Built:
    """A small network that has seen data, so that its BatchNorm is not the identity."""
    torch.manual_seed(0)
    spec = Model(build=Net, kwargs={"width": 4})
    module = spec.new().train()
    for batch in toy_data().batches(25, rng=None):
        module(dict(batch))
    return Built(spec=spec, module=module.eval())


def to_onnx(built: Built, folder: Path, **kwargs: Any) -> Built:
    ToOnnx(**kwargs)({"student": built, "data": toy_data()}, folder, work=Work())
    return load_model(folder)


def to_int8(built: Built, folder: Path, data: TensorData | None = None, **kwargs: Any) -> Built:
    inputs = {"student": built, "data": data or toy_data()}
    QuantizeStatic(**kwargs)(inputs, folder, work=Work.seeded(1))
    return load_model(folder)


@pytest.fixture(scope="module")
def folder(float_: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "file"
    to_onnx(float_, folder)
    return folder


@pytest.fixture
def file(folder: Path) -> Built:
    return load_model(folder)


def logits(module: nn.Module, data: TensorData) -> torch.Tensor:
    with torch.no_grad():
        return module(dict(next(iter(data.batches(len(data), rng=None)))))["logits"]


class Talkative(nn.Module):
    """A network during whose export torch's exporter, its optimizer and a library speak."""

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name in ("torch.onnx.exporter", "onnxscript.optimizer", "another"):
            logging.getLogger(name).warning("of %s", name)
        return {"logits": batch["x"] + 1}


def test_an_export_hides_what_the_exporter_warns_of_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_onnx(Talkative(), {"x": torch.zeros(2, 3)}, ("logits",), tmp_path / "a.onnx", opset=20)
    warned = {record.name for record in caplog.records if record.levelno >= logging.WARNING}
    assert warned == {"another"}
    logging.getLogger("onnxscript.optimizer").warning("heard again")
    assert caplog.records[-1].name == "onnxscript.optimizer"


def test_the_file_gives_what_torch_gives_at_any_batch_size(float_: Built, file: Built) -> None:
    for rows in (1, 3, 50):
        data = toy_data(rows, seed=5)
        torch.testing.assert_close(logits(file.module, data), logits(float_.module, data))


class Asked(nn.Module):
    """As many answers as questions."""

    def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
        weights = batch["weights"]
        count = weights.shape[1]
        return {"logits": batch["images"].mean((2, 3))[:, None].expand(-1, count, -1) * weights}


def asked(count: int) -> dict[str, torch.Tensor]:
    rng = Generator().manual_seed(count)
    shapes = {"images": (1, 3, 4, 4), "weights": (1, count, 1)}
    return {name: torch.rand(*shape, generator=rng) for name, shape in shapes.items()}


def test_a_named_axis_takes_any_length(tmp_path: Path) -> None:
    dynamic, given = {"weights": ("prompts",)}, (Asked(), asked(1), ("logits",))
    write_onnx(*given, tmp_path / ONNX, opset=18, dynamic=dynamic)
    check_onnx(tmp_path / ONNX, *given, tolerance=1e-5, dynamic=dynamic)
    session = onnxruntime.InferenceSession(tmp_path / ONNX)
    assert [i.shape for i in session.get_inputs()] == [
        ["batch", 3, 4, 4], ["batch", "prompts", 1],
    ]  # fmt: skip
    for count in (1, 2, 5, 9):
        one = asked(count)
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in one.items()})
        torch.testing.assert_close(torch.from_numpy(found), Asked()(one)["logits"])


def test_a_file_that_differs_at_another_length_is_refused(tmp_path: Path) -> None:
    dynamic = {"weights": ("prompts",)}
    write_onnx(Asked(), asked(2), ("logits",), tmp_path / ONNX, opset=18, dynamic=dynamic)

    class Summed(nn.Module):
        def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
            found = Asked()(batch)["logits"]
            return {"logits": found if found.shape[1] < 7 else 2 * found}

    given = (Summed(), asked(2), ("logits",))
    check_onnx(tmp_path / ONNX, *given, tolerance=1e-5)
    with pytest.raises(ContractError, match=r"model\.onnx differs from torch"):
        check_onnx(tmp_path / ONNX, *given, tolerance=1e-5, dynamic=dynamic)


class Late(Mapping[str, torch.Tensor]):
    """Outputs that are computed when they are asked for, as a language model's logits."""

    def __init__(self, layer: nn.Linear, images: torch.Tensor) -> None:
        self.layer, self.images = layer, images

    def __getitem__(self, name: str) -> torch.Tensor:
        assert name == "logits"
        return self.layer(self.images.mean((2, 3)))

    def __iter__(self) -> Iterator[str]:
        return iter(["logits"])

    def __len__(self) -> int:
        return 1


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: Tensors) -> Late:
        return Late(self.layer, batch["images"])


def test_outputs_that_are_computed_late_are_checked_without_a_graph(tmp_path: Path) -> None:
    """A graph would be a warning when the difference becomes a number, and warnings are errors."""
    given = (Lazy(), {"images": asked(1)["images"]}, ("logits",))
    write_onnx(*given, tmp_path / ONNX, opset=18)
    check_onnx(tmp_path / ONNX, *given, tolerance=1e-5)


def test_a_dynamic_axis_of_no_input_is_refused() -> None:
    for kind in (Export, ToOnnx, ToIntegers):
        with pytest.raises(UnknownName, match=r"dynamic: unknown input 'image'.*'images'"):
            kind(dynamic={"image": ("prompts",)})


def test_the_file_does_not_say_where_the_code_lay(folder: Path) -> None:
    found = (folder / ONNX).read_bytes()
    assert b"conv.weight" in found
    for place in (b".py", b"site-packages", str(Path(__file__).parents[3]).encode()):
        assert place not in found


def test_the_folder_holds_the_file_and_the_spec_says_where_it_is_from(
    file: Built, folder: Path
) -> None:
    assert isinstance(file.module, OnnxNetwork)
    content = (folder / ONNX).read_bytes()
    assert bytes(file.module.file.tolist()) == content
    assert file.spec.kwargs["source"] == {"build": "stillhouse_toy:Net", "kwargs": {"width": 4}}


def test_it_costs_what_the_network_costs_but_its_size_is_the_files(
    float_: Built, file: Built, folder: Path
) -> None:
    # by hand: 8 x 8 places, 3 x 3 x 3 inputs, 4 channels; then 4 x 5
    assert macs(file.module, dict(next(iter(toy_data(2).batches(2, rng=None))))) == 2 * (
        64 * 27 * 4 + 20
    )
    assert parameters(file.module) == parameters(float_.module) == (108 + 4) + 8 + 25
    scores = Profile()({"student": file.module}, toy_data(), work=Work())
    assert scores["size_mib"] == (folder / ONNX).stat().st_size / 2**20
    assert scores["macs"] == 64 * 27 * 4 + 20


def test_int8_is_near_the_floats_smaller_in_weights_and_the_same_bytes_again(
    float_: Built, file: Built, tmp_path: Path
) -> None:
    int8 = to_int8(file, tmp_path / "int8", samples=50)
    data = toy_data(40, seed=9)
    exact, near = logits(float_.module, data), logits(int8.module, data)
    assert not torch.equal(exact, near)
    # an int8 weight is off by at most 1 / 254 of the largest, an activation by 1 / 510 of its range
    assert (exact - near).abs().max() < 0.03 * (exact.max() - exact.min())
    types = [w.data_type for w in onnx.load(str(tmp_path / "int8" / ONNX)).graph.initializer]
    assert types.count(onnx.TensorProto.INT8) >= 2  # the convolution's weights and the layer's
    to_int8(file, tmp_path / "again", samples=50)
    assert path_digest(tmp_path / "again") == path_digest(tmp_path / "int8")


def test_the_ranges_are_those_of_the_calibration_rows(file: Built, tmp_path: Path) -> None:
    data = toy_data(20)
    wide = TensorData({**data.columns, "images": 8 * data.columns["images"]})
    for name, rows in (("narrow", data), ("wide", wide)):
        to_int8(file, tmp_path / name, data=rows, samples=20)
    narrow, wider = (image_scale(tmp_path / name / ONNX) for name in ("narrow", "wide"))
    assert wider == pytest.approx(8 * narrow, rel=1e-5)
    images = data.columns["images"]
    # uint8: 255 steps from the smallest value to the largest
    assert narrow == pytest.approx(float(images.max() - images.min()) / 255, rel=1e-5)


class Masked(nn.Module):
    """Attention over three tokens of which the last is padding, by an added mask; [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = batch["images"]
        mask = torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min])
        scores = tokens @ self.keys(tokens).transpose(1, 2) + mask
        return {"logits": (scores.softmax(-1) @ self.values(tokens))[:, 0]}


@pytest.fixture
def masked(tmp_path: Path) -> tuple[Built, TensorData]:
    torch.manual_seed(0)
    spec, tokens = Model(build=Masked), torch.randn(40, 3, 4)
    tokens[:, 2] = 3  # whoever looks at the padding is far off
    data = TensorData({"images": tokens})
    built = Built(spec=spec, module=spec.new().eval())
    ToOnnx()({"student": built, "data": data}, tmp_path / "masked", work=Work())
    return load_model(tmp_path / "masked"), data


def test_a_mask_that_is_added_does_not_drown_the_scores(
    masked: tuple[Built, TensorData], tmp_path: Path
) -> None:
    file, data = masked
    int8 = to_int8(file, tmp_path / "int8", data=data, samples=40)
    exact, near = logits(file.module, data), logits(int8.module, data)
    assert (exact - near).abs().mean() < 0.05 * exact.abs().mean()
    assert quantizers(tmp_path / "int8" / ONNX) > 0


def quantizers(file: Path) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(str(file)).graph.node)


def test_an_int8_file_that_is_far_off_is_refused(file: Built, tmp_path: Path) -> None:
    told = r"quantize: 'logits' of the int8 file is off the float one's by .* in the mean"
    with pytest.raises(ContractError, match=told):
        to_int8(file, tmp_path / "off", samples=20, tolerance=1e-6)
    assert not (tmp_path / "off").exists()


def test_percentile_cuts_what_minmax_covers(file: Built, tmp_path: Path) -> None:
    images = toy_data(20).columns["images"].clone()
    images[0, 0, 0, 0] = 40.0
    data = TensorData({**toy_data(20).columns, "images": images})
    for method in ("minmax", "percentile"):
        to_int8(file, tmp_path / method, data=data, samples=20, method=method, tolerance=10.0)
    whole, cut = (image_scale(tmp_path / m / ONNX) for m in ("minmax", "percentile"))
    assert cut < whole


def image_scale(file: Path) -> float:
    """The scale with which an int8 file quantizes its input."""
    found = {i.name: i for i in onnx.load(str(file)).graph.initializer}["images_scale"]
    return float(onnx.numpy_helper.to_array(found))


def test_other_weights_are_run_once_they_are_loaded(file: Built) -> None:
    data = toy_data(4)
    before = logits(file.module, data)
    other = file.spec.new()
    other.load_state_dict(file.module.state_dict())
    torch.testing.assert_close(logits(other, data), before)
    broken = {**file.module.state_dict(), "file": torch.zeros_like(file.module.file)}
    file.module.load_state_dict(broken)
    with pytest.raises(Exception, match="(?i)protobuf|model"):
        logits(file.module, data)


def test_the_export_takes_the_files_that_are_there(
    float_: Built, file: Built, folder: Path, tmp_path: Path
) -> None:
    int8 = to_int8(file, tmp_path / "int8", samples=20)
    ports = {"student": float_, "data": toy_data(), "onnx": file, "int8": int8}
    Export()(ports, tmp_path / "out", work=Work())
    for name, made in ((ONNX, folder), (INT8, tmp_path / "int8")):
        given, kept = (onnx.load(str(f)) for f in (made / ONNX, tmp_path / "out" / name))
        assert given.graph == kept.graph
    with pytest.raises(BadRecipe, match="export: port 'onnx' is no ONNX file"):
        Export()({**ports, "onnx": float_}, tmp_path / "bad", work=Work())


def test_lines_and_latencies_of_several_roles(float_: Built, file: Built) -> None:
    roles = {"torch": float_.module, "file": file.module}
    sizes = Lines(lines={"a": Profile(role="torch"), "b": Profile(role="file")})
    scores = sizes(roles, toy_data(), work=Work())
    assert scores["a", "parameters"] == scores["b", "parameters"] == 145
    times = Latencies(lines={"a": "torch", "b": "file"}, batches=(1,), runs=2)(
        roles, toy_data(), work=Work()
    )
    assert set(times) == {("a", "latency_b1_ms"), ("b", "latency_b1_ms")}
    assert min(times.values()) > 0


def test_what_cannot_be_used_is_named(float_: Built, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"opset must be >= 17 \(got 9\)"):
        ToOnnx(opset=9)
    with pytest.raises(ContractError, match="differs from torch by"):
        to_onnx(float_, tmp_path / "a", tolerance=-1.0)
    with pytest.raises(BadRecipe, match="needs the ports 'student' and 'data'"):
        ToOnnx()({"data": toy_data()}, tmp_path / "b", work=Work())
    with pytest.raises(BadRecipe, match="'student' is a Net; make it an ONNX file"):
        to_int8(float_, tmp_path / "c")
    with pytest.raises(BadSetting, match=r"samples and batch must be >= 1 \(got 0, 32\)"):
        QuantizeStatic(samples=0)
    with pytest.raises(BadSetting, match="runs and batch sizes"):
        Latencies(lines={}, runs=0)
