"""Annotations of images: the column `annotations`, read."""

import json
from collections.abc import Sequence
from typing import TypedDict

from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData
from stillhouse_sam.formats import Object

# COCO's numbers of the licences under which a changed image may be published: BY, BY-SA
PUBLISHABLE = (4, 5)
NAMES = {4: "CC BY 2.0", 5: "CC BY-SA 2.0"}


class Annotation(TypedDict):
    """An image's own height and width in pixels, whose it is, and all its objects."""

    name: str
    height: int
    width: int
    licence: int | str | None
    credit: str
    objects: list[Object]


def annotations(data: Data) -> list[Annotation]:
    """One a row of the data, in their order; raises BadData where they have none."""
    column = data.columns.get("annotations") if isinstance(data, RowData) else None
    if not isinstance(column, list):
        raise BadData("the data have no text column 'annotations'; make them with ReadMasks")
    return [json.loads(text) for text in column]


def segments(annotation: Annotation) -> list[Object]:
    """The objects of an image that are single ones (no crowd) and have a pixel."""
    return [thing for thing in annotation["objects"] if not thing["crowd"] and thing["area"] > 0]


def allowed(annotation: Annotation, licences: Sequence[int | str] | None) -> bool:
    """Whether an image may be shown: of a licence in `licences` or of none (rendered, or the
    user's own); any image where None.
    """
    licence = annotation["licence"]
    return licences is None or licence is None or licence in licences


def credit_of(annotation: Annotation) -> str:
    """The line to print below an image; empty where nobody is to be named."""
    licence = annotation["licence"]
    name = NAMES.get(licence, f"licence {licence}") if isinstance(licence, int) else licence
    return ", ".join(part for part in (annotation["credit"], name) if part)
