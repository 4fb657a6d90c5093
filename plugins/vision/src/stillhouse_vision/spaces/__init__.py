"""Search spaces of image classifiers."""

from stillhouse_vision.spaces.cells import NasBench201, cell_text, parse_cell
from stillhouse_vision.spaces.depths import ResNetDepths

__all__ = ["NasBench201", "ResNetDepths", "cell_text", "parse_cell"]
