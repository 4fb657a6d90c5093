"""Zero-shot tables of data sets: how folders are read, and each metric by hand or a slow version."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, MissingData
from stillhouse.settings import make_recipe, make_settings
from stillhouse.work import Work
from stillhouse_clip.vocabulary import counted_unigram, opened, write_tokenizer
from stillhouse_clip.zero_shot_sets import (
    ReadSets,
    ZeroShotSets,
    accuracy,
    by_class,
    map11,
    read_sets,
    roc_auc,
)

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
NAMES = {"en": ["red", "green", "blue"], "zh": ["红", "绿", "蓝"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two data sets: three colours in two languages, and two colours in English alone, of which one
    image is called by the other's name.
    """
    for name, labels, classes in (
        ("colours", NAMES, (0, 1, 2, 2)),
        ("warm", {"en": ["red", "green"]}, (0, 0, 1)),
    ):
        (tmp_path / name / "images").mkdir(parents=True)
        lines = list[str]()
        for number, label in enumerate(classes):
            seen = 1 if (name, number) == ("warm", 1) else label
            array = np.full((6, 6, 3), COLOURS[seen], np.uint8)
            Image.fromarray(array).save(tmp_path / name / "images" / f"{number}.png")
            lines.append(f"images/{number}.png\t{label}")
        (tmp_path / name / "images.tsv").write_text("\n".join(lines))
        (tmp_path / name / "set.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


class Towers(nn.Module):
    """An image is its mean colour, a text the colour whose name it holds."""

    def __init__(self, places: Mapping[int, int]) -> None:
        super().__init__()
        self.places = places
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "images" in batch:
            return {"embedding": batch["images"].float().mean((2, 3))}
        rows = [
            next(self.places[token] for token in row if token in self.places)
            for row in batch["tokens"].tolist()
        ]
        return {"text": torch.eye(3)[rows]}


def test_each_set_is_scored_in_the_languages_it_has(root: Path, tmp_path: Path) -> None:
    sets = read_sets(root)
    images = ReadSets(size=4, sets=sets)({"sets": root}, work=Work())["images"]
    (columns,) = images
    assert columns["truth"].tolist()[:2] == [[1, 0, 0], [0, 1, 0]]  # type: ignore[union-attr]
    every = [*NAMES["en"], *NAMES["zh"]]
    file = write_tokenizer(tmp_path / "tokenizer.json", counted_unigram([*every, *every]))
    tokenizer = opened(counted_unigram([*every, *every]))
    places = {tokenizer.token_to_id(text): number % 3 for number, text in enumerate(every)}
    places |= {tokenizer.encode(text).ids[-2]: n % 3 for n, text in enumerate(every)}
    towers = Towers({token: place for token, place in places.items() if token is not None})
    metric = ZeroShotSets(
        sets=sets, languages=("en", "zh"), context=16, templates={"en": ("{}",), "zh": ("{}",)}
    )
    work = Work(data={"images": TensorData(columns)}, assets={"student": {"tokenizer": file}})
    found = metric({"student": towers}, TensorData({}), work=work)
    assert found == {
        ("colours", "zero_shot_en"): 1,
        ("colours", "zero_shot_zh"): 1,
        ("warm", "zero_shot_en"): pytest.approx(2 / 3),
    }
    assert {score.name for score in metric.scores()} == {"zero_shot_en", "zero_shot_zh"}


def read(root: Path) -> None:
    sets = read_sets(root)
    list(ReadSets(size=4, sets=sets)({"sets": root}, work=Work())["images"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("set.json", "{", "colours/set.json: not JSON"),
        ("set.json", '{"labels": {}}', "colours/set.json: expected"),
        ("set.json", '{"labels": {"en": ["a", "b"], "zh": ["c"]}}', "labels: 2 in en, 1 in zh"),
        ("set.json", '{"labels": {"en": ["a", "b"]}, "metric": "f1"}', "metric 'f1' is none of"),
        (
            "set.json",
            '{"labels": {"en": ["a", "b", "c"]}, "metric": "roc_auc"}',
            "3 classes, of which roc_auc cannot be",
        ),
        (
            "set.json",
            '{"labels": {"en": ["a", "b"]}, "templates": {"en": ["a photo"]}}',
            "'a photo' has no {}",
        ),
        ("images.tsv", "images/0.png\t3", "line 1: class 3, but 3 are named"),
        ("images.tsv", "images/0.png 1", "line 1: expected <image>, a tab"),
        ("images.tsv", "images/9.png\t1", "9.png not found"),
        ("images.tsv", "", "lists no image"),
    ],
)
def test_what_is_wrong_is_one_line(root: Path, file: str, text: str, message: str) -> None:
    (root / "colours" / file).write_text(text)
    with pytest.raises((BadData, MissingData)) as raised:
        read(root)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_sets_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="holds no <data set>/set.json"):
        read_sets(tmp_path)


def truth(*classes: int, count: int) -> Tensor:
    return torch.eye(count).bool()[list(classes)]


def test_accuracies_by_hand() -> None:
    logits = torch.tensor([[2.0, 1], [2, 1], [2, 1], [0, 1]])
    labels = truth(0, 0, 1, 1, count=2)
    assert accuracy(logits, labels) == 0.75
    assert by_class(logits[1:], labels[1:]) == 0.75  # all of one image, half of two
    both = torch.ones(1, 2, dtype=torch.bool)
    assert accuracy(logits[:1], both) == 1
    with pytest.raises(BadData, match="several classes"):
        by_class(logits[:1], both)


def test_average_precision_at_eleven_levels_by_hand() -> None:
    """Ranked right, wrong, right, wrong: precision 1 up to half of the recall (6 levels), 2/3 after
    (5); the other class is ranked wrong, right, wrong, right: 1/2 at all levels.
    """
    logits = torch.tensor([[4.0, 4], [3, 3], [2, 2], [1, 1]])
    labels = truth(0, 1, 0, 1, count=2)
    assert map11(logits, labels) == pytest.approx(((6 + 5 * 2 / 3) / 11 + 1 / 2) / 2)
    with pytest.raises(BadData, match="map11: no image of class 1"):
        map11(logits, truth(0, 0, 0, 0, count=2))


def test_roc_auc_agrees_with_all_pairs() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (40, 2), generator=rng).float()
    classes = torch.randint(0, 2, (40,), generator=rng)
    margins = (logits[:, 1] - logits[:, 0]).tolist()
    pairs = [
        (a > b) + (a == b) / 2
        for a, one in zip(margins, classes.tolist(), strict=True)
        for b, other in zip(margins, classes.tolist(), strict=True)
        if one == 1 and other == 0
    ]
    found = roc_auc(logits, truth(*classes.tolist(), count=2))
    assert found == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(BadData, match="both classes"):
        roc_auc(logits, truth(*[1] * 40, count=2))


def test_the_recipe_has_a_table_of_them(root: Path) -> None:
    given: dict[str, Any] = {"sets": f"file:{root}", "students": ["scratch", "map-aligned"]}
    made = make_recipe("clip/dc_clip", make_settings("clip/dc_clip", "tiny", given))
    scored = made.stage("sets-scores")
    assert scored.inputs["images"] == "sets.images"
    assert made.stage("sets").inputs == {"sets": f"file:{root}"}
    bare = make_recipe("clip/dc_clip", make_settings("clip/dc_clip", "tiny", {}))
    assert "sets" not in {stage.name for stage in bare.stages}
