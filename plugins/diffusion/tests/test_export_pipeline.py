"""The exported folders, and the pipeline in a process that cannot import stillhouse."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Built, Model, load_model, recorded
from stillhouse.card import Card
from stillhouse.data.data import TensorData
from stillhouse.work import Work
from stillhouse_diffusion.denoisers import edm_mlp, edm_unet
from stillhouse_diffusion.export import ExportStudents
from stillhouse_diffusion.sampling import routed_students

# PyTorch takes its time to write ONNX files
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHAPES = {"unet": [1, 8, 8], "mlp": [2, 1, 1]}
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("stillhouse"):
            raise ImportError(f"{name}: not here")

sys.meta_path.insert(0, Refuse())
import torch
from diffusers import DiffusionPipeline

folder, noise, labels, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
given = torch.load(noise), torch.load(labels)
images = pipe(class_labels=given[1], noise=given[0], output_type="pt").images
torch.save(images, out)
shown = pipe(class_labels=[3, 0], generator=torch.Generator().manual_seed(0)).images
assert [image.size for image in shown] == [(8, 8), (8, 8)]
try:
    pipe(class_labels=[4])
except ValueError as error:
    assert "ids of 0..3" in str(error)
else:
    raise AssertionError("label 4 was taken")
assert not any(name.startswith("stillhouse") for name in sys.modules)
"""


def spec(kind: str) -> Model:
    if kind == "mlp":
        return Model(build=edm_mlp, kwargs={"channels": 2, "classes": 4, "width": 8, "layers": 2})
    kwargs = {"size": 8, "channels": 1, "classes": 4, "widths": [8, 16], "layers": 1}
    return Model(build=edm_unet, kwargs=kwargs)


def students(kind: str) -> Built:
    torch.manual_seed(0)
    made = Model(
        build=routed_students,
        kwargs={
            "students": [recorded(spec(kind))] * 2,
            "sigma": 10.0,
            "owner": [0, 1, 1, 0],
            "training_steps": 5,
            "shape": SHAPES[kind],
        },
    )
    return Built(spec=made, module=made.new().eval())


def conditions(kind: str) -> dict[str, Tensor]:
    noise = torch.randn(12, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
    return {"noise": noise, "labels": torch.arange(12) % 4}


@pytest.fixture(scope="module", params=["unet", "mlp"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Built]:
    kind: str = request.param
    out = tmp_path_factory.mktemp(kind) / "export"
    built = students(kind)
    card = Card(title="Digits", task="unconditional-image-generation", paper="MSD")
    inputs = {"student": built, "data": TensorData(conditions(kind))}
    ExportStudents(card=card)(inputs, out, work=Work())
    return kind, out, built


def test_the_folder_is_a_model_of_all_students(exported: tuple[str, Path, Built]) -> None:
    kind, out, built = exported
    again = load_model(out).module
    with torch.no_grad():
        found, expected = (m(conditions(kind))["images"] for m in (again, built.module))
    assert torch.equal(found, expected)
    record = json.loads((out / "export.json").read_text())
    assert (record["students"], record["owner"], record["evaluations"]) == (2, [0, 1, 1, 0], 1)


def test_each_student_is_an_onnx_file_of_its_own_labels(
    exported: tuple[str, Path, Built],
) -> None:
    kind, out, built = exported
    given = conditions(kind)
    with torch.no_grad():
        expected = built.module(given)["images"]
    for number, owned in enumerate(([0, 3], [1, 2])):
        rows = torch.isin(given["labels"], torch.tensor(owned))
        session = onnxruntime.InferenceSession(str(out / f"student{number}.onnx"))
        words = {name: value[rows].numpy() for name, value in given.items()}
        (images,) = session.run(["images"], words)
        torch.testing.assert_close(torch.from_numpy(images), expected[rows], atol=1e-3, rtol=1e-3)


def test_points_have_no_pipeline_of_images(exported: tuple[str, Path, Built]) -> None:
    kind, out, _ = exported
    assert (out / "diffusers").is_dir() == (kind == "unet")


def test_the_pipeline_routes_without_stillhouse(
    exported: tuple[str, Path, Built], tmp_path: Path
) -> None:
    kind, out, built = exported
    if kind == "mlp":
        pytest.skip("points have no pipeline of images")
    given = conditions(kind)
    for name, value in given.items():
        torch.save(value, tmp_path / name)
    found = tmp_path / "images"
    paths = [out / "diffusers", tmp_path / "noise", tmp_path / "labels", found]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, paths)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        expected = built.module(given)["images"]
    torch.testing.assert_close(torch.load(found), expected, atol=1e-5, rtol=1e-4)


def test_the_cards_python_runs_in_the_folder(exported: tuple[str, Path, Built]) -> None:
    _, out, _ = exported
    text = (out / "README.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python")[1:]]
    assert len(blocks) == (2 if (out / "diffusers").is_dir() else 1)
    ran = subprocess.run(
        [sys.executable, "-c", blocks[-1] + "\nprint(pixels.shape)"],
        capture_output=True, text=True, check=False, cwd=out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("(4, ")
