"""Predict the classes of image files by a trained classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built
from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.errors import BadData
from stillhouse.files import each_file
from stillhouse_vision.images import Sample, decode
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.usage import spec_of_images

TOP = 3


def predict(model: Built, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """A row an image: its file, and the likeliest classes with their probabilities, best first.

    Images of any size are scaled and cut to the model's; a folder stands for all below it.
    Raises MissingData or BadData naming the file.
    """
    kwargs = spec_of_images(model.spec.kwargs)
    if "images" not in kwargs:
        raise BadData(
            f"{model.spec.build.__qualname__}: a model that does not record which images it takes"
        )
    images = ImageSpec.of(kwargs["images"])
    return [_row(model, images, file) for file in each_file(inputs, IMAGE_SUFFIXES, kind="image")]


def _row(model: Built, images: ImageSpec, file: Path) -> Mapping[str, Any]:
    pixels = torch.from_numpy(decode(Sample(str(file), file, 0), images, resize=True))
    with torch.no_grad():
        logits = model.module({"images": pixels[None]})["logits"][0]
    probabilities, classes = logits.softmax(0).topk(min(TOP, len(logits)))
    row: dict[str, Any] = {"file": str(file)}
    for place, (number, probability) in enumerate(
        zip(classes.tolist(), probabilities.tolist(), strict=True), 1
    ):
        suffix = "" if place == 1 else f" {place}"
        row[f"class{suffix}"] = images.names[number] if images.names else str(number)
        row[f"probability{suffix}"] = round(probability, 4)
    return row
