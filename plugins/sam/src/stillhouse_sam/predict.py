"""All masks a trained SAM finds in images: drawn on a copy of each, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from stillhouse.artifact import Built
from stillhouse.data.images import IMAGE_SUFFIXES, read_image
from stillhouse.errors import BadData
from stillhouse.files import each_file, free_name, write_text, writing_file
from stillhouse_sam.drawing import by_area, painted, resized, scaled, sides
from stillhouse_sam.everything import EverythingSettings, Record
from stillhouse_sam.formats import decoded
from stillhouse_sam.models import SamNetwork

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

FOLDER = Path("predictions")
# of a SAM that keeps none; below SAM's own 0.88 and 0.95: a small model is seldom that sure
SETTINGS = EverythingSettings(pred_iou_thresh=0.7, stability_score_thresh=0.85)
SMALLEST, LARGEST = 512, 1600  # pixels of a drawn image's longer side
PIXELS = 1 << 27  # of three masks a point that are decoded together


def predict(model: Built, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """A row an image: its file, how many masks were kept, and the files written into
    ./predictions: the image with them in colours, and JSON as SA-1B's: image (file_name, height,
    width) and annotations (segmentation as COCO's run lengths, bbox as x, y, width, height, area,
    predicted_iou, stability_score, point_coords, crop_box, id), all in the image's pixels.

    Masks are those of everything in it, by a grid of points in two rounds (TinySAM), with the
    settings that were kept with the SAM; else 32 x 32 points, a predicted IoU above 0.7 and a
    stability of 0.85 or more. A camera's orientation tag is applied: masks are those of the upright
    image. A folder stands for all images below it. Raises MissingData or BadData naming the
    file.
    """
    module = model.module
    if not isinstance(module, SamNetwork):
        raise BadData(
            f"{type(module).__name__}: not a whole SAM, which alone finds everything in an image; "
            "give one"
        )
    kept, names = module.everything, set[str]()
    settings = SETTINGS if kept is None else EverythingSettings.of(kept)
    return [
        _row(module.sam, settings, file, free_name(file.stem, names))
        for file in each_file(inputs, IMAGE_SUFFIXES, kind="image")
    ]


def _row(sam: "Sam", settings: EverythingSettings, file: Path, name: str) -> Mapping[str, Any]:
    photo = np.array(read_image(file, str(file)))
    height, width = photo.shape[:2]
    # masks are decoded at the image's size: of a large one, fewer at a time
    at_once = max(1, min(settings.points_per_batch, PIXELS // (3 * height * width)))
    generator = replace(settings, points_per_batch=at_once).hierarchical(sam)
    with torch.no_grad():
        found = [record for record in generator.generate(photo) if record["area"] > 0]
    records = by_area(found)
    drawn, listed = FOLDER / f"{name}.png", FOLDER / f"{name}.json"
    with writing_file(drawn) as aside:
        _drawn(photo, records).save(aside)
    image = {"file_name": file.name, "height": height, "width": width}
    masks = [{"id": number, **record} for number, record in enumerate(records, 1)]
    write_text(listed, json.dumps({"image": image, "annotations": masks}) + "\n")
    return {"file": str(file), "masks": len(records), "drawn": str(drawn), "listed": str(listed)}


def _drawn(photo: "np.ndarray[Any, np.dtype[np.uint8]]", records: list[Record]) -> Image.Image:
    height, width = photo.shape[:2]
    size = sides(height, width, min(max(height, width, SMALLEST), LARGEST))
    rles = (record["segmentation"] for record in records)
    masks = (scaled(torch.from_numpy(decoded(rle))[None], size)[0] for rle in rles)
    return Image.fromarray(painted(resized(photo, size), masks))
