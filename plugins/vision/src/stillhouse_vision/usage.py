"""How an exported classifier is used, for its model card and its ONNX file."""

from collections.abc import Mapping
from typing import Any

from stillhouse import Model, Usage
from stillhouse.artifact import Record
from stillhouse.card import normalized_inside
from stillhouse_vision.models import ImageSpec

PREPARE = """
import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert(use["preprocessing"]["mode"])
size = use["preprocessing"]["size"]
scale = size / min(image.size)
width, height = (max(size, round(side * scale)) for side in image.size)
left, top = (width - size) // 2, (height - size) // 2
x, y = image.width / width, image.height / height
box = (left * x, top * y, (left + size) * x, (top + size) * y)
pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
inputs = {"images": np.ascontiguousarray(pixels[None])}
"""
READ = """
exponents = np.exp(outputs["logits"][0] - outputs["logits"][0].max())
probabilities = exponents / exponents.sum()
for number in probabilities.argsort()[::-1][:3]:
    print(use["classes"][number], round(float(probabilities[number]), 4))
"""


def classifier_usage(spec: Model) -> Usage:
    """Images in, logits out: the size, colours and class names that the model's spec holds."""
    kwargs = spec_of_images(spec.kwargs)
    images = ImageSpec.of(kwargs["images"])
    mode = "RGB" if images.channels == 3 else "L"
    names = images.names or tuple(str(number) for number in range(int(kwargs["classes"])))
    return Usage(
        ports={
            "images": f"{mode} pixels, 0 to 255, rows from the top; "
            "they are normalized inside the file",
            "logits": "a number a class; their softmax gives the probabilities",
        },
        classes=names,
        preprocessing=normalized_inside(
            size=images.size,
            mode=mode,
            resize="shorter side to size, bicubic, then the central square",
            mean=images.mean,
            std=images.std,
        ),
        prepare=PREPARE,
        read=READ,
    )


def spec_of_images(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    """The arguments that hold `images` and `classes`: those of the model, or of the network that it
    was converted from or merged of.
    """
    inner: Record = kwargs.get("source") or kwargs.get("student") or {"kwargs": kwargs}
    return inner["kwargs"]
