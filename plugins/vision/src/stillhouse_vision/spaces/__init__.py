"""Search spaces of image classifiers."""

from stillhouse_vision.spaces.cells import NasBench201, cell_text, parse_cell
from stillhouse_vision.spaces.depths import ResNetDepths
from stillhouse_vision.spaces.macro import NasBenchMacro, macro_text, parse_macro
from stillhouse_vision.spaces.shapes import ResNetShapes

__all__ = [
    "NasBench201",
    "NasBenchMacro",
    "ResNetDepths",
    "ResNetShapes",
    "cell_text",
    "macro_text",
    "parse_cell",
    "parse_macro",
]
