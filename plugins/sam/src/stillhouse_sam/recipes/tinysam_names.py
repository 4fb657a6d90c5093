"""What the stages and rows of sam/tinysam are called."""

from collections.abc import Mapping

from stillhouse.export import Axes
from stillhouse_sam.recipes.tinysam_settings import Student, TinySamSettings

INPUTS = ("images", "sizes", "point_coords", "point_labels")
OUTPUT = ("logits", "iou", "embedding")
DYNAMIC: Axes = dict.fromkeys(INPUTS[2:], ("prompts", "points"))
ROWS: Mapping[Student, str] = {
    "alone": "student alone",
    "embedding": "embedding only",
    "stages": "+ tokens and output",
    "prompts": "+ hard prompts",
    "weighting": "+ hard mask weighting",
}


def seeds(settings: TinySamSettings) -> range:
    return range(settings.seeds)


def shipped(settings: TinySamSettings) -> Student:
    """The student that is quantized and exported: that of the most parts of the method."""
    return max(settings.students, key=tuple(ROWS).index)


def shipped_sam(settings: TinySamSettings, seed: int = 0) -> str:
    return f"{shipped(settings)}-{seed}-sam.model"
