"""Usage of an exported pillar detector: export.json, the card, and detect.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.artifact import Built, recorded
from stillhouse.card import CARD, Card, Usage, add_metadata, model_card
from stillhouse.files import write_text
from stillhouse.profile import parameters
from stillhouse.quantize.onnx_network import ONNX, RECORD
from stillhouse_pointcloud import standalone
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.anchors import GROUND, HEADINGS, SIZES
from stillhouse_pointcloud.detectors.found import PICKING
from stillhouse_pointcloud.detectors.pillars import CELLS, COUNTS, POINTS, PillarGrid
from stillhouse_pointcloud.figures import SHOWN
from stillhouse_pointcloud.formats import IMAGE_SIZE
from stillhouse_pointcloud.samples import PROJECTION

TASK = "object-detection"
DETECT = "detect.py"
MEANINGS = {
    POINTS: "x, y, z in metres, reflectance 0..1; x, y, z from the pillar's mean; x, y from its "
    "middle; rows beyond a pillar's count are not read",
    COUNTS: "points of each pillar",
    CELLS: "row (y) and column (x) of each pillar in the grid",
    "cls": "logits: of each cell's anchors (class, then heading) a number a class",
    "box": "differences from each anchor: x, y, z, logarithms of length, width, height; yaw",
    "dir": "logits of each anchor's halves of headings: from -45 to 135 degrees, and the rest",
}
USE = f"""
## Use

`{DETECT}` goes from a .bin to boxes with numpy and onnxruntime alone (`pip install onnxruntime
numpy`): points into pillars, [{ONNX}]({ONNX}), anchors and decoding by [{RECORD}]({RECORD}), boxes
that overlap. `python {DETECT} cloud.bin` prints a box a line; or in the folder of these files:

```python
from pathlib import Path

import numpy as np
from detect import detect

points = np.fromfile("cloud.bin", "float32").reshape(-1, 4)  # x, y, z, reflectance (0..1)
boxes, scores, labels = detect(Path("."), points)
```

A box is x, y, z of its middle (to the front, to the left, up; metres from the sensor, {-GROUND} m
above the road), length, width, height, and yaw in radians, counter-clockwise from x. Points are
those that a camera ahead sees (`preprocessing.view`): put your own projection and image size
there, or KITTI's of the frame. With Stillhouse: `stillhouse predict <recipe> cloud.bin`.
"""


def write_about(out: Path, built: Built, record: Mapping[str, Any], card: Card) -> None:
    """Writes export.json, README.md and detect.py into a folder with the model.onnx of a pillar
    detector, and what it is into that file's metadata. `record`: ports, checks, scores, MACs.
    """
    ports = {
        kind: {name: {**port, "meaning": MEANINGS[name]} for name, port in record[kind].items()}
        for kind in ("inputs", "outputs")
    }
    whole = {
        **record,
        **ports,
        "model": recorded(built.spec),
        "task": card.task,
        "classes": list(CLASSES),
        "preprocessing": preprocessing(built.spec.kwargs),
        "decoding": decoding(built.spec.kwargs),
        "parameters": parameters(built.module),
    }
    add_metadata(out / ONNX, whole)
    write_text(out / RECORD, json.dumps(whole, indent=1, sort_keys=True) + "\n")
    usage = Usage(ports=MEANINGS, classes=CLASSES)
    write_text(out / CARD, model_card(card, usage, built, whole) + USE)
    write_text(out / DETECT, Path(standalone.__file__).read_text())


def preprocessing(kwargs: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """What comes before the network, of a detector's arguments: the points that are seen, and the
    grid of the pillars.
    """
    return {
        "points": "float32 x, y, z (metres), reflectance (0..1); those in view, as pillars",
        "view": {"projection": PROJECTION.tolist(), "size": list(IMAGE_SIZE)},
        "grid": PillarGrid.of(kwargs["grid"]).json(),
    }


def decoding(kwargs: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """What comes after it: the anchors, in the order row, column, class, heading; and of each
    class the `before` highest scores of at least `score`, without boxes that share more than
    `overlap` with a better one, and of all classes the `most` highest.
    """
    grid = PillarGrid.of(kwargs["grid"])
    return {
        "anchors": {
            "sizes": [list(size) for size in SIZES],
            "headings": list(HEADINGS),
            "ground": GROUND,
            "step": kwargs["strides"][0] * grid.cell,
            "origin": [grid.x[0], grid.y[0]],
        },
        "score": SHOWN.score,
        "overlap": PICKING.overlap,
        "before": PICKING.before,
        "most": PICKING.most,
    }
