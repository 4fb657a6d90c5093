"""How an exported SAM is prompted, by ONNX Runtime or torch: for its card and export.json."""

from stillhouse.artifact import Model
from stillhouse.card import Usage
from stillhouse.errors import BadSetting

PORTS = {
    "images": "RGB, 0..255: the image scaled until its longer side is {size} pixels, at the top "
    "left; the rest is not looked at",
    "sizes": "height and width in pixels of the scaled image within the {size} x {size}",
    "point_coords": "x and y in pixels of the scaled image; any number of prompts an image, and of "
    "points a prompt",
    "point_labels": "1: a point of the object, 0: of what is not; 2 and 3: the top left and bottom "
    "right corner of a box; -1: none, fills up a prompt; one without a box has one of these",
    "logits": "three masks a prompt of {low} x {low} cells, {cell} pixels each; above 0 is inside",
    "iou": "predicted IoU of each of the three masks, 0..1; the highest is the answer",
    "embedding": "of the image, for decoder.onnx",
}
PREPARE = """
import numpy as np
from PIL import Image

side = use["preprocessing"]["size"]
image = Image.open("photo.jpg").convert("RGB")
# of the image, in its own pixels: a box, another one, and a click on something
prompts = [[[10, 20], [60, 70]], [[30, 5], [80, 60]], [[40, 30], [0, 0]]]
labels = [[2, 3], [2, 3], [1, -1]]

scale = side / max(image.size)
width, height = (max(1, int(length * scale + 0.5)) for length in image.size)
scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
frame = np.zeros((1, 3, side, side), np.uint8)
frame[0, :, :height, :width] = scaled.transpose(2, 0, 1)
inputs = {
    "images": frame,
    "sizes": np.array([[height, width]], np.int64),
    "point_coords": np.array([prompts], np.float32) * np.float32(scale),
    "point_labels": np.array([labels], np.int64),
}
"""
READ = """
for prompt, ious in enumerate(outputs["iou"][0]):
    best = ious.argmax()
    cells = Image.fromarray(outputs["logits"][0, prompt, best])
    whole = cells.resize((side, side), Image.Resampling.BILINEAR).crop((0, 0, width, height))
    mask = np.asarray(whole.resize(image.size, Image.Resampling.BILINEAR)) > 0
    print(prompt, f"IoU {ious[best]:.2f}", f"{mask.sum()} pixels of {mask.size}")
"""
CELLS = 4  # of the logits, a side of one of the embedding


def sam_usage(spec: Model) -> Usage:
    """Of a whole SAM (`models.network`)."""
    if "prompts" not in spec.kwargs:
        raise BadSetting("usage: not the spec of a whole SAM; join its parts first")
    shape = spec.kwargs["prompts"]["kwargs"]
    size, low = shape["size"], CELLS * shape["grid"]
    cell = size / low
    ports = {
        name: text.format(size=size, low=low, cell=f"{cell:g}") for name, text in PORTS.items()
    }
    return Usage(
        ports=ports,
        preprocessing={
            "size": size,
            "resize": "longer side to size, bilinear; top left of a square of zeros",
            "pixels": "0..255; mean and deviation are taken within the file",
            "points": "pixels of the scaled image: those of the image times size / longer side",
        },
        prepare=PREPARE,
        read=READ,
    )
