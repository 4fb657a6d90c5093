from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_contracts.metrics import AllPositive, Detection, macro, type_scores

# decisions: hit, miss, false alarm, rightly none
LOGITS = torch.tensor([[2.0], [-1.0], [1.0], [-2.0]])
LABELS = torch.tensor([[1.0], [1.0], [0.0], [0.0]])


class Says(nn.Module):
    """Gives the batch's column as logits."""

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": batch[self.column]}


def table(**columns: Tensor) -> TensorData:
    novel = torch.zeros(len(next(iter(columns.values()))), 1)
    return TensorData({"novel": novel, **columns})


def test_scores_of_a_type_by_hand() -> None:
    found = type_scores(LOGITS, LABELS, ("a",))["a"]
    assert (found["f1"], found["precision"], found["recall"]) == (0.5, 0.5, 0.5)
    # of the four pairs of one with and one without, three in order
    assert found["auc"] == pytest.approx(0.75)
    # precision 1 at the first half of the recall, 2/3 at the second
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    shares = LOGITS.sigmoid()
    expected = float((shares - LABELS).abs().mean())  # each is alone in its bin
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_a_type_that_all_or_none_have_is_left_out_and_named() -> None:
    logits, labels = LOGITS.repeat(1, 3), torch.cat([LABELS, LABELS * 0, LABELS * 0 + 1], 1)
    assert list(type_scores(logits, labels, ("a", "b", "c"))) == ["a"]
    metric = Detection(types=("a", "b", "c"))
    data = table(tokens=logits, labels=labels)
    models: dict[str, nn.Module] = {"student": Says("tokens")}
    left = metric.uncounted(models, data, work=Work.seeded(0))
    assert left == {"macro_f1": ["type b", "type c"]}
    found = metric(models, data, work=Work.seeded(0))
    assert found["macro_f1"] == 0.5
    assert ("b", "f1") not in found
    with pytest.raises(BadData, match="nothing to score"):
        macro({})


def test_means_are_over_types_and_agreement_over_functions_and_types() -> None:
    labels = torch.cat([LABELS, LABELS], 1)
    ours = torch.cat([LOGITS, 9 * (2 * LABELS - 1)], 1)
    data = table(tokens=ours, others=torch.cat([LOGITS, -LOGITS], 1), labels=labels)
    models: dict[str, nn.Module] = {"student": Says("tokens"), "teacher": Says("others")}
    found: Any = Detection(types=("a", "b"), teacher="teacher")(models, data, work=Work.seeded(0))
    assert found["macro_f1"] == pytest.approx((0.5 + 1) / 2)
    assert found["b", "recall"] == 1
    # all four of the first type; of the second: + + - - against - + - +
    assert found["teacher_agreement"] == pytest.approx(6 / 8)
    declared = {score.name for score in Detection(types=("a",), teacher="teacher").scores()}
    assert {key if isinstance(key, str) else key[1] for key in found} <= declared


def test_saying_yes_to_everything_by_hand() -> None:
    labels = torch.cat([LABELS, torch.tensor([[1.0], [0.0], [0.0], [0.0]])], 1)
    found = AllPositive(types=("a", "b"))({}, table(labels=labels), work=Work.seeded(0))
    # precision 1/2 and 1/4 at full recall
    assert found["a", "f1"] == pytest.approx(2 / 3)
    assert found["b", "f1"] == pytest.approx(0.4)
    assert found["mean", "macro_f1"] == pytest.approx((2 / 3 + 0.4) / 2)
    assert (found["b", "positives"], found["b", "functions"]) == (1, 4)


def test_data_without_a_row_are_refused() -> None:
    empty = table(tokens=LOGITS[:0], labels=LABELS[:0])
    with pytest.raises(BadData, match="hold no function"):
        AllPositive(types=("a",))({}, empty, work=Work.seeded(0))
    with pytest.raises(BadData, match="hold no function"):
        Detection(types=("a",))({"student": Says("tokens")}, empty, work=Work.seeded(0))
