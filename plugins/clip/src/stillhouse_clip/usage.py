"""How an exported open-vocabulary classifier is used, for its model card and its ONNX files."""

from stillhouse import Model, Usage
from stillhouse.card import normalized_inside
from stillhouse.errors import BadData
from stillhouse_clip.images import images_of

PREPARE = """
import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
size = use["preprocessing"]["size"]
scale = size / min(image.size)
width, height = (max(size, round(side * scale)) for side in image.size)
left, top = (width - size) // 2, (height - size) // 2
x, y = image.width / width, image.height / height
box = (left * x, top * y, (left + size) * x, (top + size) * y)
pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
inputs = {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}
"""
READ = """
logits = outputs["logits"][0]
exponents = np.exp(logits - logits.max())
probabilities = exponents / exponents.sum()
for number in probabilities.argsort()[::-1][:5]:
    print(use["classes"][number], round(float(probabilities[number]), 4))
"""


def zero_shot_usage(spec: Model) -> Usage:
    """Images in; embedding and logits over the bank's classes out. Raises BadData for another
    model.
    """
    images = images_of(spec)
    if images is None:
        raise BadData(f"{spec.build.__qualname__}: a model that does not say which images it takes")
    return Usage(
        ports={
            "images": "RGB pixels, 0 to 255, rows from the top; they are normalized inside the "
            "file",
            "embedding": "in the teacher's space: its cosine with any text's embedding, of "
            "text.onnx, says how well they fit",
            "logits": "a number a class; their softmax gives the probabilities",
        },
        classes=tuple(map(str, spec.kwargs.get("names", ()))),
        preprocessing=normalized_inside(
            size=images.size,
            mode="RGB",
            resize="shorter side to size, bicubic, then the central square",
            mean=images.mean,
            std=images.std,
        ),
        prepare=PREPARE,
        read=READ,
    )
