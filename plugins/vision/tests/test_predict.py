from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, Model
from stillhouse.data import TensorData
from stillhouse.errors import BadData, MissingData
from stillhouse.work import Work
from stillhouse_vision.figures import Predictions
from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.predict import predict

GREY = ImageSpec(size=8, mean=(0.5,), std=(0.5,), names=("dark", "light", "odd"))


@pytest.fixture
def built() -> Built:
    """A model that says "light" with probability 0.6, "odd" with 0.3 and "dark" with 0.1."""
    spec = model("cnn2", classes=3, images=GREY)
    module = spec.new().eval()
    head = module.get_submodule("head")
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.1, 0.6, 0.3]).log())
    return Built(spec=spec, module=module)


def test_a_row_a_image_with_the_three_likeliest_classes(built: Built, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.jpg"]
    Image.new("L", (8, 8)).save(files[0])
    Image.new("L", (30, 17), 200).save(files[1])
    rows = predict(built, files)
    expected = {
        "class": "light", "probability": 0.6,
        "class 2": "odd", "probability 2": 0.3,
        "class 3": "dark", "probability 3": 0.1,
    }  # fmt: skip
    assert rows == [{"file": str(file), **expected} for file in files]


def test_files_that_cannot_be_used_are_named(built: Built, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"c.png: there is no such file"):
        predict(built, [tmp_path / "c.png"])
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadData, match=r"d.png: not an? (whole )?image"):
        predict(built, [tmp_path / "d.png"])


def test_models_of_another_kind_are_refused() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(BadData, match="does not record which images"):
        predict(Built(spec=Model(build=torch.nn.Linear), module=module), [])


def test_figure_shows_each_image_with_its_truth_and_what_is_said(built: Built) -> None:
    images = torch.from_numpy(np.arange(5 * 64, dtype=np.uint8).reshape(5, 1, 8, 8))
    data = TensorData({"images": images, "labels": torch.tensor([0, 1, 2, 1, 1])})
    figure = Predictions(names=GREY.names, columns=3, rows=2)
    models = {"teacher": built.module, "student": built.module}
    drawn = figure(models, data, work=Work())
    shown = [axis for axis in drawn.axes if axis.images]
    assert len(shown) == 5
    assert sorted(axis.get_title() for axis in shown) == ["dark", "light", "light", "light", "odd"]
    wrong = [axis.get_title() for axis in shown if axis.texts[0].get_color() != "#1a7f37"]
    assert sorted(wrong) == ["dark", "odd"]
    assert {text.get_text() for axis in shown for text in axis.texts} == {
        "teacher: light",
        "student: light",
    }
