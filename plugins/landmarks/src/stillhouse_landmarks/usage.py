"""How an exported regressor of landmarks is used, for its model card and its ONNX file."""

from stillhouse import Model, Usage
from stillhouse.card import normalized_inside
from stillhouse.errors import BadData
from stillhouse_landmarks.models import images_of

# what `predict` does: `data.cut` of the central square
PREPARE = """
import math

import numpy as np
from PIL import Image

size = use["preprocessing"]["size"]
image = Image.open("image.png").convert("RGB")  # a crop of one face
side = min(image.size)
left, top = ((length - side) / 2 for length in image.size)
x, y = math.floor(left), math.floor(top)
whole = math.ceil(max(left - x, top - y) + side)
box = (left - x, top - y, left - x + side, top - y + side)
square = image.crop((x, y, x + whole, y + whole))
square = square.resize((size, size), Image.Resampling.BILINEAR, box=box)
inputs = {"images": np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])}
"""
READ = """
points = side * outputs["landmarks"][0].reshape(-1, 2) + [left, top]
for x, y in points:  # pixels of the image, from its left and top edges
    print(round(float(x), 2), round(float(y), 2))
"""


def regressor_usage(spec: Model) -> Usage:
    """A crop of one face in, fractions of the crop out; raises BadData for another model."""
    images = images_of(spec)
    if images is None:
        raise BadData(f"{spec.build.__qualname__}: a model that does not say which images it takes")
    return Usage(
        ports={
            "images": "RGB pixels of a square crop of one face, 0 to 255, rows from the top; "
            "they are normalized inside the file",
            "landmarks": f"x and y of {images.points} points in turn, in fractions of the crop: "
            "0 is its left or top edge, 1 the other",
        },
        preprocessing=normalized_inside(
            size=images.size,
            mode="RGB",
            resize="the central square to size, bilinear and antialiased",
            mean=images.mean,
            std=images.std,
        ),
        prepare=PREPARE,
        read=READ,
    )
