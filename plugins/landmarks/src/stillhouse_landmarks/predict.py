"""The points a trained regressor finds on face crops: drawn on a copy of each, and as .pts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stillhouse.artifact import Built
from stillhouse.data.images import IMAGE_SUFFIXES, read_image
from stillhouse.errors import BadData
from stillhouse.files import each_file, free_name, write_text, writing_file
from stillhouse_landmarks.data import cut
from stillhouse_landmarks.metrics import as_points
from stillhouse_landmarks.models import images_of

FOLDER = Path("predictions")
COLOUR = (61, 220, 132)
SMALLEST = 256  # pixels of a drawn image's side: points stay apart


def predict(model: Built, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """A row an image: its file, the box around the points in its pixels, and the files written
    into ./predictions: the image's square with the points drawn, and the points of the whole
    image as 300-W's .pts (the middle of the first pixel is 1, 1).

    An image is a crop of one face, of any size: its central square is what the model sees; a
    camera's orientation tag is applied first. A folder stands for all images below it. Raises
    MissingData or BadData naming the file.
    """
    images = images_of(model.spec)
    if images is None:
        name = model.spec.build.__qualname__
        raise BadData(f"{name}: a model that does not record which images it takes")
    names: set[str] = set()
    return [
        _row(model, images.size, file, free_name(file.stem, names))
        for file in each_file(inputs, IMAGE_SUFFIXES, kind="image")
    ]


def _row(model: Built, size: int, file: Path, name: str) -> Mapping[str, Any]:
    image = read_image(file, str(file))
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    seen = torch.from_numpy(cut(image, left, top, side, size))
    with torch.no_grad():
        points = as_points(model.module({"images": seen[None]})["landmarks"])[0]
    drawn, listed = FOLDER / f"{name}.png", FOLDER / f"{name}.pts"
    square = image.crop((int(left), int(top), int(left) + side, int(top) + side))
    with writing_file(drawn) as aside:
        _drawn(square, points).save(aside)
    whole = side * points + torch.tensor([left, top])
    write_text(listed, _pts(whole))
    x0, y0, x1, y1 = [*whole.amin(0).tolist(), *whole.amax(0).tolist()]
    return {
        "file": str(file),
        "points": len(points),
        "box": f"{x0:.0f},{y0:.0f} {x1:.0f},{y1:.0f}",
        "drawn": str(drawn),
        "listed": str(listed),
    }


def _drawn(square: Image.Image, points: Tensor) -> Image.Image:
    """The square, enlarged where it is small, with a dot a point."""
    side = max(SMALLEST, square.width)
    image = square.resize((side, side), Image.Resampling.BICUBIC)
    draw, radius = ImageDraw.Draw(image), side / 120
    for x, y in (side * points).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOUR)
    return image


def _pts(points: Tensor) -> str:
    """Points in pixels from the edges, in 300-W's text form, which counts pixels from 1."""
    lines = [f"{x + 0.5:.3f} {y + 0.5:.3f}" for x, y in points.tolist()]
    return "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}", ""])
