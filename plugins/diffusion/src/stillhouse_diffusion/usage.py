"""How exported students are used, for their model card."""

from stillhouse import Model, Usage
from stillhouse.errors import BadData

PIPELINE_USE = """
With diffusers (`pip install diffusers torch pillow`), whatever label is requested; the folder holds
a short pipeline of its own, which `trust_remote_code` runs:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("diffusers", trust_remote_code=True)
images = pipe(class_labels={labels}, generator=torch.Generator().manual_seed(0)).images
images[0].save("image.png")
```
"""
USE = """
## Use
{pipeline}
With ONNX Runtime (`pip install onnxruntime numpy`), a file a student; `owner` in export.json says
which one makes a label:

```python
import json

import numpy as np
import onnxruntime

with open("export.json") as file:
    use = json.load(file)
label = {label}
session = onnxruntime.InferenceSession(f"student{{use['owner'][label]}}.onnx")
shape = use["inputs"]["noise"]["shape"][1:]
noise = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
labels = np.full(4, label)
(images,) = session.run(["images"], {{"noise": noise, "labels": labels}})
pixels = ((images + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
```
"""


def students_usage(spec: Model) -> Usage:
    """Noise and labels in, images out; raises BadData for another model."""
    if "students" not in spec.kwargs or "owner" not in spec.kwargs:
        raise BadData(f"{spec.build.__qualname__}: no students of this plugin")
    classes = len(spec.kwargs["owner"])
    return Usage(
        ports={
            "noise": "standard normal numbers; the same noise and label give the same image",
            "labels": f"ids of 0..{classes - 1}; a student's file knows those that it owns",
            "images": "pixels of -1 to 1 (or points, as the training data have them)",
        }
    )


def use_section(spec: Model, *, pipeline: bool) -> str:
    """Text of a model card on use, whose Python a reader can run in the folder."""
    classes = len(spec.kwargs["owner"])
    labels = sorted({0, classes // 2, classes - 1})
    text = PIPELINE_USE.format(labels=labels) if pipeline else ""
    return USE.format(pipeline=text, label=classes - 1)
