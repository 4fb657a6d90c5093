"""An exported SAM, used without Stillhouse: by ONNX Runtime alone, by torch and segment_anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from stillhouse.artifact import Built, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.export import Card, Export
from stillhouse.work import Work
from stillhouse_sam.exporting import ExportSam, write_loader
from stillhouse_sam.models import SamNetwork, Shape, named
from stillhouse_sam.usage import sam_usage

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
INPUTS = ("images", "sizes", "point_coords", "point_labels")
OUTPUTS = ("logits", "iou", "embedding")
EXPORT = Export(
    inputs=INPUTS,
    outputs=OUTPUTS,
    dynamic=dict.fromkeys(INPUTS[2:], ("prompts", "points")),
    card=Card(title="A small SAM", task="mask-generation", paper="TinySAM"),
    usage=sam_usage,
)
# a user's machine has neither Stillhouse nor timm
BARE = """
import sys

for name in ("stillhouse", "stillhouse_sam", "timm"):
    sys.modules[name] = None
"""


pytestmark = pytest.mark.slow


def sam(encoder: str) -> Built:
    torch.manual_seed(0)
    spec = named(encoder, shape=SHAPE)
    return Built(spec=spec, module=spec.new().eval())


def asked(count: int, points: int = 2) -> dict[str, Tensor]:
    """An image, and as many prompts: boxes and clicks in turn, each filled up by no points."""
    rng = Generator().manual_seed(count)
    coords = torch.rand(1, count, points, 2, generator=rng) * 30
    coords[:, ::2, 1] += 30
    labels = torch.full((1, count, points), -1)
    labels[:, ::2, :2] = torch.tensor([2, 3])
    labels[:, 1::2, 0] = 1
    images = torch.randint(0, 256, (1, 3, 64, 64), generator=rng).to(torch.uint8)
    sizes = torch.tensor([[48, 64]])
    return {"images": images, "sizes": sizes, "point_coords": coords, "point_labels": labels}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    built, out = sam("cnn8"), tmp_path_factory.mktemp("export") / "model"
    ports = {"student": built, "data": TensorData(asked(1))}
    ExportSam(export=EXPORT)(ports, out, work=Work())
    return built, out


def bare(code: str, folder: Path) -> str:
    """What a program prints in a process that can import neither Stillhouse nor timm."""
    ran = subprocess.run(
        [sys.executable, "-c", BARE + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def close(found: object, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("count", "points"), [(1, 2), (3, 2), (7, 5)])
def test_onnx_answers_all_prompts(exported: tuple[Built, Path], count: int, points: int) -> None:
    built, folder = exported
    given = asked(count, points)
    arrays = {name: value.numpy() for name, value in given.items()}
    whole = onnxruntime.InferenceSession(folder / "model.onnx")
    logits, iou, embedding = whole.run(list(OUTPUTS), arrays)
    with torch.no_grad():
        expected = built.module(given)
    assert logits.shape == (1, count, 3, 32, 32)
    close(logits, expected["logits"])
    close(iou, expected["iou"])
    again = onnxruntime.InferenceSession(folder / "decoder.onnx")
    later = {"embedding": embedding} | {name: arrays[name] for name in INPUTS[2:]}
    found, scores = again.run(["logits", "iou"], later)
    close(found, expected["logits"])
    close(scores, expected["iou"])


def test_the_cards_lines_ask_by_boxes_and_clicks_in_onnx_runtime_alone(
    exported: tuple[Built, Path],
) -> None:
    built, folder = exported
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    blocks = [
        part.split("```")[0] for part in (folder / "README.md").read_text().split("```python")
    ]
    prepare, runtime, _, read = blocks[1:5]
    keep = 'np.savez("../asked.npz", **inputs, **{f"out_{n}": v for n, v in outputs.items()})\n'
    printed = bare("sys.modules['torch'] = None\n" + prepare + runtime + read + keep, folder)
    lines = printed.splitlines()
    assert [line.split()[:2] for line in lines] == [["0", "IoU"], ["1", "IoU"], ["2", "IoU"]]
    assert all(line.endswith("pixels of 7500") for line in lines)
    found = np.load(folder.parent / "asked.npz")
    given = {name: torch.from_numpy(found[name]) for name in INPUTS}
    assert given["sizes"].tolist() == [[48, 64]]
    torch.testing.assert_close(
        given["point_coords"][0, 0], torch.tensor([[6.4, 12.8], [38.4, 44.8]])
    )
    with torch.no_grad():
        expected = built.module(given)
    close(found["out_logits"], expected["logits"])
    close(found["out_iou"], expected["iou"])


def test_units_and_sizes_are_in_the_files(exported: tuple[Built, Path]) -> None:
    _, folder = exported
    record = json.loads((folder / "export.json").read_text())
    points = record["inputs"]["point_coords"]
    assert points["shape"] == ["batch", "prompts", "points", 2]
    assert "x and y in pixels of the scaled image" in points["meaning"]
    assert record["outputs"]["logits"]["shape"] == ["batch", "prompts", 3, 32, 32]
    assert record["preprocessing"]["size"] == 64
    for name in ("model.onnx", "decoder.onnx"):
        known = onnx.load(folder / name).metadata_props
        told = {prop.key: json.loads(prop.value) for prop in known if prop.key != "task"}
        assert told["inputs"]["point_coords"] == points
        assert (
            "three masks a prompt of 32 x 32 cells, 2 pixels each"
            in told["outputs"]["logits"]["meaning"]
        )
    assert (
        "| input | `point_labels` | int64 | [batch, prompts, points] |"
        in (folder / "README.md").read_text()
    )


def test_another_networks_encoder_opens_without_stillhouse_and_timm(
    exported: tuple[Built, Path],
) -> None:
    built, folder = exported
    assert (folder / "image_encoder.pt2").is_file()
    assert (
        str(Path(__file__).parents[1]).encode() not in (folder / "image_encoder.pt2").read_bytes()
    )
    card = (folder / "README.md").read_text()
    assert "The image encoder is none of segment_anything's" in card
    record = json.loads((folder / "export.json").read_text())
    assert record["files"]["image_encoder"] == "image_encoder.pt2"
    lines = card.split("```python")[-1].split("```")[0]
    compare(built, folder, lines)


def compare(built: Built, folder: Path, lines: str) -> None:
    """The card's lines give a SamPredictor that gives what ours gives."""
    torch.save(asked(3), folder.parent / "asked.pt")
    bare(
        f"""{lines}
import torch

asked = torch.load("../asked.pt")
predictor.set_image(asked["images"][0, :, :48].permute(1, 2, 0).numpy())
with torch.no_grad():
    boxes = asked["point_coords"][0, ::2].flatten(1)
    _, iou, logits = predictor.predict_torch(None, None, boxes=boxes)
torch.save((iou, logits), "../found.pt")
predictor.model.eval()
""",
        folder,
    )
    iou, logits = torch.load(folder.parent / "found.pt")
    with torch.no_grad():
        expected = built.module(asked(3))
    close(iou, expected["iou"][0, ::2])
    close(logits, expected["logits"][0, ::2])


def test_segment_anythings_own_encoder_opens_without_stillhouse(tmp_path: Path) -> None:
    built, folder = sam("sam-32x2"), tmp_path / "model"
    save_model(folder, built)
    (folder / "export.json").write_text("{}\n")
    (folder / "README.md").write_text("# A card\n")
    write_loader(built, folder, tolerance=1e-3)
    assert not (folder / "image_encoder.pt2").exists()
    card = (folder / "README.md").read_text()
    assert card.startswith("# A card\n")
    assert "The image encoder is segment_anything's ImageEncoderViT" in card
    compare(built, folder, card.split("```python")[-1].split("```")[0])


def test_a_part_of_a_sam_is_not_exported(tmp_path: Path) -> None:
    built = sam("cnn8")
    assert isinstance(built.module, SamNetwork)
    part = Built(spec=built.spec, module=built.module.sam.image_encoder)
    with pytest.raises(BadData, match="export: a Backbone, not a whole SAM; join its parts first"):
        ExportSam(export=EXPORT)(
            {"student": part, "data": TensorData(asked(1))}, tmp_path / "x", work=Work()
        )
