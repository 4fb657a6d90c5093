"""The README's path: photos with a COCO JSON and a checkpoint of segment_anything, to an int8 SAM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stillhouse.errors import BadData
from stillhouse.runs import Runs, finished, run_recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse_sam.models import SamNetwork, Shape, named

NAME = "sam/tinysam"
SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
# as few steps as there can be, of the least that is exported
SHORT: dict[str, Any] = {
    "students": ["embedding"], "steps": 2, "bits": [8], "compared": False, "calibration": 2,
    "candidates": 2, "everything": 1, "points_per_side": 2, "high_confidence": 8.5, "clicks": [1],
}  # fmt: skip


def write_photos(folder: Path, count: int = 8) -> Path:
    """Photos with two rectangles each, as polygons in one COCO JSON."""
    (folder / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        pixels = rng.integers(0, 90, (48, 80, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        images.append({"id": number, "file_name": name, "height": 48, "width": 80})
        for left, top, right, bottom in ((4, 6, 30, 40), (40, 10 + number, 70, 30 + number)):
            pixels[top:bottom, left:right] += 120
            polygon = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0,
                 "segmentation": [polygon]}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "photos" / name)
    categories = [{"id": 1, "name": "box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def write_checkpoint(file: Path) -> Path:
    """The state of a stock Sam, as segment_anything's files hold it."""
    torch.manual_seed(0)
    module = named("sam-32x1", shape=SHAPE).new()
    assert isinstance(module, SamNetwork)
    torch.save(module.sam.state_dict(), file)
    return file


def prepared(tmp_path: Path, **given: Any) -> tuple[Any, Runs]:
    settings = make_settings(NAME, "tiny", {**SHORT, **given})
    recipe = make_recipe(NAME, settings)
    return recipe, Runs(root=tmp_path / "runs", recipe=NAME, variant=settings.variant())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_photos_and_a_checkpoint_become_an_int8_sam(tmp_path: Path) -> None:
    data = f"file:{write_photos(tmp_path / 'mine')}"
    teacher = f"file:{write_checkpoint(tmp_path / 'sam.pth')}"
    with pytest.raises(BadData, match="run with --set teacher_model=sam-32x1 --set size=64 "):
        run_recipe(*prepared(tmp_path, data=data, teacher=teacher))
    given = {"data": data, "teacher": teacher, "teacher_model": "sam-32x1"}
    # it was never trained
    with pytest.raises(BadData, match="go on with --set check_teacher=false"):
        run_recipe(*prepared(tmp_path, **given))
    recipe, runs = prepared(tmp_path, **given, check_teacher=False)
    run_recipe(recipe, runs)
    record = finished(recipe.stage("export"), runs)
    assert record is not None
    folder = record.outputs["model"].path
    assert {"model.onnx", "model-int8.onnx", "decoder.onnx", "load_sam.py"} <= {
        path.name for path in folder.iterdir()
    }
    image = np.zeros((1, 3, 64, 64), dtype=np.uint8)
    with Image.open(tmp_path / "mine" / "photos" / "000.png") as photo:
        image[0, :, :38] = np.asarray(photo.resize((64, 38))).transpose(2, 0, 1)
    corners = np.array([[[[3, 5], [24, 32]]] * 3], dtype=np.float32) + np.arange(3)[:, None, None]
    found: dict[str, NDArray[Any]] = {}
    for name in ("model.onnx", "model-int8.onnx"):
        session = onnxruntime.InferenceSession(folder / name)
        given_to = {
            "images": image,
            "sizes": np.array([[38, 64]]),
            "point_coords": corners.astype(np.float32),
            "point_labels": np.array([[[2, 3]] * 3]),
        }
        logits, iou = session.run(["logits", "iou"], given_to)
        found[name] = np.asarray(logits)
        assert found[name].shape == (1, 3, 3, 32, 32)
        assert np.asarray(iou).shape == (1, 3, 3)
    exact, whole = found["model.onnx"], found["model-int8.onnx"]
    assert 0 < np.abs(exact - whole).mean() < 0.5 * np.abs(exact).mean()
    assert not np.allclose(exact[0, 0], exact[0, 2])
    photos = json.loads((folder / "export.json").read_text())
    assert photos["scores"]["box_miou"] >= 0
