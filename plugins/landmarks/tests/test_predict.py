from pathlib import Path

import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData, MissingData
from stillhouse_landmarks.formats import read_pts
from stillhouse_landmarks.models import ImageSpec, model
from stillhouse_landmarks.predict import COLOUR, FOLDER, predict

POINTS = [0.25, 0.5, 0.75, 0.5]  # two points, left and right of the middle


@pytest.fixture
def built() -> Built:
    """A model that says `POINTS` whatever it sees."""
    spec = model("cnn2", images=ImageSpec(size=16, points=2))
    module = spec.new().eval()
    torch.nn.init.zeros_(module.head.weight)
    with torch.no_grad():
        module.head.bias.copy_(torch.tensor(POINTS) - 0.5)
    return Built(spec=spec, module=module)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_points_of_the_central_square_in_pixels_of_the_whole_image(built: Built) -> None:
    Image.new("RGB", (300, 100)).save("wide.png")
    row = predict(built, [Path("wide.png")])[0]
    assert row == {
        "file": "wide.png", "points": 2, "box": "125,50 175,50",
        "drawn": "predictions/wide.png", "listed": "predictions/wide.pts",
    }  # fmt: skip
    # 300-W counts pixels from 1: half a pixel more than from the edge
    assert read_pts(FOLDER / "wide.pts").tolist() == [[125.5, 50.5], [175.5, 50.5]]


def test_points_are_drawn_where_they_are_said_to_be(built: Built) -> None:
    Image.new("RGB", (40, 40)).save("a.png")
    predict(built, [Path("a.png")])
    drawn = Image.open(FOLDER / "a.png")
    assert drawn.size == (256, 256)
    assert [drawn.getpixel((x, 128)) for x in (64, 128, 192)] == [COLOUR, (0, 0, 0), COLOUR]


def test_a_folder_stands_for_its_images_and_no_drawing_is_overwritten(built: Built) -> None:
    for name in ("in/a.png", "in/sub/a.jpg", "in/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            Path(name).write_text("x")
        else:
            Image.new("RGB", (16, 16)).save(name)
    rows = predict(built, [Path("in"), Path("in/a.png")])
    assert [row["file"] for row in rows] == ["in/a.png", "in/sub/a.jpg", "in/a.png"]
    assert [Path(row["drawn"]).name for row in rows] == ["a.png", "a-2.png", "a-3.png"]
    assert sorted(p.name for p in FOLDER.glob("*.png")) == ["a-2.png", "a-3.png", "a.png"]


def test_what_cannot_be_used_is_named(built: Built) -> None:
    Path("empty").mkdir()
    with pytest.raises(MissingData, match="empty: no images in this folder"):
        predict(built, [Path("empty")])
    with pytest.raises(MissingData, match=r"c.png: there is no such file"):
        predict(built, [Path("c.png")])
    Path("d.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadData, match=r"d.jpg: not an? (whole )?image"):
        predict(built, [Path("d.jpg")])
    other = Built(spec=Model(build=torch.nn.Linear), module=torch.nn.Linear(1, 1))
    with pytest.raises(BadData, match="Linear: a model that does not record which images"):
        predict(other, [])
