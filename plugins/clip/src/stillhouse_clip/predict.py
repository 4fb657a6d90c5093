"""Predict the classes of image files by an open-vocabulary student, its own or other labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, load_model
from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.errors import BadData, BadSetting
from stillhouse.files import each_file
from stillhouse.work import Work
from stillhouse_clip.banks import ZeroShot, new_bank, with_bank
from stillhouse_clip.dual_predict import among_labels, reads_labels
from stillhouse_clip.exporting import TEXT_TOWER
from stillhouse_clip.images import images_of, pixels

TOP = 5


def predict(
    model: Built, inputs: Sequence[Path], *, labels: tuple[str, ...] = (), top: int = TOP
) -> Sequence[Mapping[str, Any]]:
    """A row an image: its file, and the `top` likeliest classes with their probabilities, best
    first. `labels` are other classes, as words: their bank is computed by the text tower that goes
    with the student; nothing is trained.

    Images of any size are scaled and cut to the model's; a folder stands for all below it. Raises
    MissingData or BadData naming the file, BadSetting for labels that are none.
    """
    if top < 1:
        raise BadSetting(f"--top {top}: expected a whole number >= 1")
    if reads_labels(model):
        return among_labels(model, inputs, labels=labels, top=top)
    chosen = relabelled(model, labels) if labels else model
    module, images = chosen.module, images_of(_tower_spec(chosen))
    if not isinstance(module, ZeroShot) or images is None:
        raise BadData(
            f"{model.spec.build.__qualname__}: a model without a bank of class texts; give the "
            "folder that an export wrote, or --labels"
        )
    rows = list[Mapping[str, Any]]()
    for file in each_file(inputs, IMAGE_SUFFIXES, kind="image"):
        image = pixels(file, images.size, str(file))
        with torch.no_grad():
            found = module({"images": image[None]})["logits"][0].softmax(0)
        rows.append({"file": str(file), **_best(found, module.names, top)})
    return rows


def _tower_spec(built: Built) -> Any:  # Any: the spec of the model itself, which may be nested
    return built.spec


def _best(found: torch.Tensor, names: Sequence[str], top: int) -> dict[str, Any]:  # Any: cells
    values, places = found.topk(min(top, len(found)))
    row = dict[str, Any]()
    for place, (number, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True), 1):
        suffix = "" if place == 1 else f" {place}"
        row[f"class{suffix}"], row[f"probability{suffix}"] = names[number], round(value, 4)
    return row


def relabelled(model: Built, labels: Sequence[str]) -> Built:
    """The student with a bank of other labels. Raises BadSetting for empty or equal labels, BadData
    for a model that has no text tower beside it.
    """
    names = [label.strip() for label in labels]
    if "" in names or len(set(names)) < len(names):
        raise BadSetting(
            f"--labels {','.join(labels)}: name each class once, as in --labels cat,dog"
        )
    if TEXT_TOWER not in model.assets:
        raise BadData(
            f"{model.spec.build.__qualname__}: no text tower goes with this model, so it has its "
            "own classes alone; leave out --labels"
        )
    text = load_model(model.assets[TEXT_TOWER])
    temperature = float(model.spec.kwargs.get("temperature", 0.07))
    return with_bank(model, new_bank(text, names, work=Work()), temperature=temperature)
