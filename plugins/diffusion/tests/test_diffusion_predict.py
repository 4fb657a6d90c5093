from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, Model, recorded
from stillhouse.cli.given import Given
from stillhouse.errors import BadData, StillhouseError
from stillhouse_diffusion.denoisers import edm_mlp, edm_unet
from stillhouse_diffusion.predict import FOLDER, predict
from stillhouse_diffusion.sampling import routed_students

UNET = Model(
    build=edm_unet,
    kwargs={"size": 8, "channels": 1, "classes": 4, "widths": [8, 16], "layers": 1},
)
MLP = Model(build=edm_mlp, kwargs={"channels": 2, "classes": 4, "width": 8, "layers": 2})


def students(spec: Model, shape: list[int]) -> Built:
    kwargs: dict[str, Any] = {
        "students": [recorded(spec)] * 2,
        "sigma": 10.0,
        "owner": [0, 0, 1, 1],
        "training_steps": 0,
        "shape": shape,
    }
    torch.manual_seed(0)
    made = Model(build=routed_students, kwargs=kwargs)
    return Built(spec=made, module=made.new().eval())


@pytest.fixture
def built() -> Built:
    return students(UNET, [1, 8, 8])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_images_of_classes_in_turn_by_the_students_that_own_them(built: Built) -> None:
    rows = predict(built, classes=(1, 3), count=3, seed=7)
    assert [(row["class"], row["student"]) for row in rows] == [(1, 0), (3, 1), (1, 0)]
    files = [Path(row["file"]) for row in rows]
    assert files[1] == FOLDER / "class3-00001-seed7.png"
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((8, 8), "L")


def test_an_image_is_the_same_whatever_is_made_beside_it(built: Built) -> None:
    predict(built, classes=(1,), count=1, seed=3)
    alone = (FOLDER / "class1-00000-seed3.png").read_bytes()
    predict(built, classes=(1,), count=5, seed=3)
    assert (FOLDER / "class1-00000-seed3.png").read_bytes() == alone
    assert (FOLDER / "class1-00001-seed3.png").read_bytes() != alone


def test_points_are_written_as_numbers() -> None:
    rows = predict(students(MLP, [2, 1, 1]), count=5)
    assert [row["class"] for row in rows] == [0, 1, 2, 3, 0]
    assert {*rows[0]} == {"class", "student", "x", "y"}
    assert not FOLDER.exists()


def test_the_command_line_is_read_by_the_functions_types(built: Built) -> None:
    given = Given.of(["--classes", "3,1", "--count", "2", "--seed", "0"])
    rows = given.call(predict, built, "domain 'diffusion'")
    assert [row["class"] for row in rows] == [3, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "4"], r"--classes: 4 is not in 0\.\.3"),
        (["--classes", "cat"], "--classes cat"),
        (["--count", "0"], "--count must be 1 to 100000"),
        (["--clases", "3"], "Did you mean '--classes'"),
        (["photo.png"], "predict takes options alone"),
    ],
)
def test_wrong_words_are_one_line(built: Built, words: list[str], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        Given.of(words).call(predict, built, "domain 'diffusion'")
    assert "\n" not in str(error.value)


def test_another_model_is_refused() -> None:
    with pytest.raises(BadData, match="no students of this plugin"):
        predict(Built(spec=MLP, module=MLP.new()))
