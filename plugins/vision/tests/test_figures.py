"""Images of predictions, of mistakes, of classes that are confused: what they show, by hand."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_vision.figures import MATRIX, Confusion, Grid, Mistakes

NAMES = ("cat", "dog", "rat")
# truth, and what student and teacher say, of six images: three mistakes of the student
TRUTH = torch.tensor([0, 0, 1, 1, 2, 2])
STUDENT = torch.tensor([[5.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 4, 0], [0, 6, 0], [0, 0, 1]])
TEACHER = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 0, 9], [0, 9, 0], [0, 0, 9], [0, 0, 9]])


class Said(nn.Module):
    """Answers that are looked up by an image's first pixel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"logits": self.logits[batch["images"][:, 0, 0, 0].long()]}


def models() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"teacher": Said(TEACHER), "student": Said(STUDENT)}
    return {role: module.requires_grad_(False) for role, module in found.items()}


def data(truth: Tensor = TRUTH) -> TensorData:
    images = np.zeros((len(truth), 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(truth))
    return TensorData({"images": torch.from_numpy(images), "labels": truth})


def drawn(figure: Grid, shown: TensorData) -> list[Axes]:
    assert isinstance(figure, Mistakes)
    with torch.no_grad():
        return [axes for axes in figure(models(), shown, work=Work()).axes if axes.images]


def test_mistakes_are_the_surest_first_with_what_the_teacher_says() -> None:
    found = drawn(Mistakes(names=NAMES, columns=2, rows=2), data())
    assert [axes.get_title() for axes in found] == ["rat", "dog", "cat"]
    # e^6 / (e^6 + 2) = 0.995, e^3 / (e^3 + 2) = 0.909, e / (e + 2) = 0.576
    assert [[text.get_text() for text in axes.texts] for axes in found] == [
        ["teacher: rat 100%", "student: dog 100%"],
        ["teacher: rat 100%", "student: cat 91%"],
        ["teacher: cat 100%", "student: dog 58%"],
    ]
    right = [[text.get_color() == "#1a7f37" for text in axes.texts] for axes in found]
    assert right == [[True, False], [False, False], [True, False]]


def test_only_as_many_mistakes_as_there_is_room_for_are_shown() -> None:
    found = drawn(Mistakes(names=NAMES, columns=2, rows=1), data())
    assert [axes.get_title() for axes in found] == ["rat", "dog"]


def test_a_student_without_mistakes_has_none_to_show() -> None:
    assert drawn(Mistakes(names=NAMES), data(STUDENT.argmax(1))) == []


def test_confusion_is_in_percent_of_the_true_class() -> None:
    with torch.no_grad():
        teacher, student = Confusion(names=NAMES)(models(), data(), work=Work()).axes
    assert teacher.get_title() == "teacher, % of each true class"
    shares = {
        axes.get_title()[:7]: np.asarray(axes.images[0].get_array()) for axes in (teacher, student)
    }
    np.testing.assert_allclose(shares["teacher"], [[100, 0, 0], [0, 50, 50], [0, 0, 100]])
    np.testing.assert_allclose(shares["student"], [[50, 50, 0], [50, 50, 0], [0, 50, 50]])
    assert [label.get_text() for label in student.get_yticklabels()] == list(NAMES)
    assert len(student.texts) == 6  # zeros are left blank


def test_with_many_classes_the_pairs_most_often_confused_are_named() -> None:
    classes = MATRIX + 1
    names = tuple(f"c{number}" for number in range(classes))
    truth = torch.tensor([3, 3, 3, 5, 7])
    said = Said(torch.eye(classes)[[4, 4, 3, 6, 7]]).requires_grad_(False)
    figure = Confusion(names=names, roles=("student",))
    with torch.no_grad():
        (axes,) = figure({"student": said}, data(truth), work=Work()).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "c3 taken for c4",
        "c5 taken for c6",
    ]
    assert [patch.get_width() for patch in axes.patches] == [2, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_classes_without_a_name_are_numbers(names: tuple[str, ...]) -> None:
    with torch.no_grad():
        axes = Confusion(names=names)(models(), data(), work=Work()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][1:] == ["1", "2"]
