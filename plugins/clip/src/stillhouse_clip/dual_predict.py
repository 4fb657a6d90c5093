"""What two towers say about image files among any labels, in any language that they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built
from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.errors import BadData, BadSetting
from stillhouse.files import each_file
from stillhouse_clip.bert_tower import BertTower
from stillhouse_clip.dual_export import class_bank
from stillhouse_clip.images import images_of, pixels
from stillhouse_clip.languages import PLAIN
from stillhouse_clip.objectives.distillation import unit
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import TwoTowers


def reads_labels(model: Built) -> bool:
    """Whether a model is two towers whose text tower `among_labels` can run."""
    return isinstance(model.module, TwoTowers) and isinstance(model.module.text, BertTower)


def among_labels(
    model: Built, inputs: Sequence[Path], *, labels: tuple[str, ...], top: int
) -> Sequence[Mapping[str, Any]]:
    """A row an image: its file and the `top` nearest labels with their probabilities, best first.

    The labels' bank is made by the model's own text tower: nothing is trained. Raises BadSetting
    for labels that are none or fewer than two, BadData for a model without a text tower, and for
    a label of more tokens than it reads.
    """
    names = [label.strip() for label in labels]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise BadSetting("--labels: name two classes or more, each once, as in --labels cat,dog")
    images = images_of(model.spec)
    if not isinstance(model.module, TwoTowers) or images is None or ASSET not in model.assets:
        raise BadData(
            f"{model.spec.build.__qualname__}: no two towers with a tokenizer, which labels need"
        )
    bank = class_bank(model, names, PLAIN, context=model.module.length)
    rows: list[Mapping[str, Any]] = []
    for file in each_file(inputs, IMAGE_SUFFIXES, kind="image"):
        image = pixels(file, images.size, str(file))
        with torch.no_grad():
            found = model.module({"images": image[None]})
        logits = found["scale"] * unit(found["embedding"]) @ bank.mT
        rows.append({"file": str(file), **_best(logits[0].softmax(0), names, top)})
    return rows


def _best(found: torch.Tensor, names: Sequence[str], top: int) -> dict[str, Any]:  # Any: cells
    row: dict[str, Any] = {}
    values, places = found.topk(min(top, len(found)))
    for place, (number, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True), 1):
        suffix = "" if place == 1 else f" {place}"
        row[f"class{suffix}"], row[f"probability{suffix}"] = names[number], round(value, 4)
    return row
