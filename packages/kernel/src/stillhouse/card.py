"""What the files of an exported student say about themselves: model card, export.json, metadata."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor

from stillhouse.artifact import SPEC, Built
from stillhouse.assets import FOLDER
from stillhouse.metrics import units
from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Declared, Score
from stillhouse.quantize.onnx_network import ONNX, RECORD

CARD, INT8 = "README.md", "model-int8.onnx"
Record = Mapping[str, Any]  # Any: JSON values; what export.json holds
# of the record, what an ONNX file carries in its own metadata
METADATA = ("task", "inputs", "outputs", "classes", "preprocessing", "decoding")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the model card says beside the record's figures."""

    title: str
    task: str  # a Hugging Face pipeline tag, as "image-classification"
    paper: str
    license: str = "other"
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How an exported student is used.

    `ports` says what each input and output means, with units and range. `classes` are names in the
    order of the class axis. `preprocessing` are JSON values. The two examples are lines of Python
    that run in the export's folder: `prepare` makes `inputs`, a dict of numpy arrays, with `use`
    being export.json as a dict; `read` prints what `outputs`, a dict of numpy arrays, say.
    """

    ports: Mapping[str, str]
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    prepare: str = ""
    read: str = ""


def normalized_inside(
    *, size: int, mode: str, resize: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:  # Any: JSON values
    """The `preprocessing` of images that are scaled to `size` pixels outside the exported file and
    normalized, by `mean` and `std` of pixels in 0..1, within it.
    """
    return {
        "size": size,
        "mode": mode,
        "resize": resize,
        "mean": list(mean),
        "std": list(std),
        "normalized_inside": True,
    }


def port_record(values: Mapping[str, Tensor], usage: Usage | None) -> dict[str, dict[str, Any]]:
    """Type, shape and meaning of each of a batch's tensors; Any: JSON values."""
    meanings = {} if usage is None else usage.ports
    return {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": ["batch", *value.shape[1:]],
            **({"meaning": meanings[name]} if name in meanings else {}),
        }
        for name, value in values.items()
    }


def add_shapes(record: Record, file: Path) -> None:
    """Put into the record's ports the shapes that an ONNX file has, in which an axis of any length
    is a name.
    """
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        port = {**record["inputs"], **record["outputs"]}.get(value.name, {})
        dims = value.type.tensor_type.shape.dim
        if len(dims) == len(port.get("shape", ())):
            axes = zip(dims, port["shape"], strict=True)
            port["shape"] = [dim.dim_param or dim.dim_value or length for dim, length in axes]


def add_metadata(file: Path, record: Record) -> None:
    """Write those of `METADATA` that the record has into an ONNX file, as JSON texts by key."""
    import onnx

    model = onnx.load(str(file))
    texts = {
        key: record[key] if isinstance(record[key], str) else json.dumps(record[key])
        for key in METADATA
        if record.get(key)
    }
    onnx.helper.set_model_props(model, texts)
    file.write_bytes(model.SerializeToString(deterministic=True))


def model_card(card: Card, usage: Usage | None, built: Built, record: Record) -> str:
    """README.md of an export, in Hugging Face's form."""
    data = ModelCardData(
        license=card.license,
        pipeline_tag=card.task,
        library_name="stillhouse",
        tags=[*card.tags, "distillation"],
    )
    spec = json.dumps(dict(built.spec.kwargs), sort_keys=True)
    return f"""---
{data.to_yaml()}
---

# {card.title}

A student distilled with Stillhouse. It holds no weights of its teacher.

- Method: {card.paper}
- Architecture: `{built.spec.build.__module__}:{built.spec.build.__qualname__}` with `{spec}`
- Parameters: {record["parameters"]:,}; multiply-accumulates of one sample: {record["macs"]:,}
- ONNX opset {record["opset"]}; checked against torch on {record["checked_samples"]} real inputs,
  largest difference allowed {record["agrees_within"]:.0e}

## Inputs and outputs

{_ports(record)}
{_assets(record)}{_use(usage)}
## Scores

{_scores(record)}
"""


def _ports(record: Record) -> str:
    rows = [
        f"| {kind} | `{name}` | {port['dtype']} | {_shape(port['shape'])} | "
        f"{port.get('meaning', '')} |"
        for kind in ("input", "output")
        for name, port in record[f"{kind}s"].items()
    ]
    table = ["| | name | type | shape | meaning |", "|---|---|---|---|---|", *rows]
    if record.get("classes"):
        table += ["", f"Classes, in order: {', '.join(record['classes'])}."]
    return "\n".join(table) + "\n"


def _assets(record: Record) -> str:
    """Where the assets lie, for whoever reads the card."""
    found = [f"- `{FOLDER}/{entry['file']}`" for entry in record.get("assets", {}).values()]
    return "\n".join(["## Assets", "", *found, "", ""]) if found else ""


def _shape(axes: list[Any]) -> str:  # Any: names and sizes
    return f"[{', '.join(map(str, axes))}]"


def _use(usage: Usage | None) -> str:
    """The examples, in the order in which they run: either of the two in the middle."""
    if usage is None or not usage.prepare:
        return ""
    return f"""
## Use

In the folder of these files, which [{RECORD}]({RECORD}) describes:

```python
import json

{USE}
{usage.prepare.strip()}
```

With ONNX Runtime (`pip install onnxruntime numpy pillow`):

```python
{ONNX_RUNTIME}
```

or with torch and Stillhouse, where {SPEC} and model.safetensors are:

```python
{TORCH}
```

Then:

```python
{usage.read.strip()}
```
"""


USE = f"""with open("{RECORD}") as file:
    use = json.load(file)
"""
ONNX_RUNTIME = f"""import onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")  # or "{INT8}", where it is
outputs = dict(zip(use["outputs"], session.run(list(use["outputs"]), inputs)))"""
TORCH = """from pathlib import Path

import torch
from stillhouse import load_model

model = load_model(Path(".")).module
with torch.no_grad():
    found = model({name: torch.from_numpy(value) for name, value in inputs.items()})
outputs = {name: found[name].numpy() for name in use["outputs"]}"""


def scores_record(scores: Mapping[str, float]) -> dict[str, Any]:  # Any: JSON values
    """What export.json holds of an evaluation: values, and what each of them is."""
    declared = getattr(scores, "declared", Declared())  # a plain mapping says nothing of them
    return {"scores": dict(scores), "declared": declared.record()}


def _scores(record: Record) -> str:
    """A table of the scores by their labels, and where to read the rest."""
    rest = "Seeds, intervals, the baseline and the lineage are in the report of the run."
    scores: Mapping[str, float] = record.get("scores", {})
    if not scores:
        return rest
    declared = record.get("declared", {"scores": (), "cells": {}})
    known = {entry["name"]: Score(**entry) for entry in declared["scores"]}
    cells = {key: (row, name) for key, (row, name) in declared["cells"].items()}
    split = {
        key: cells.get(key, ("", key) if key in known else key.rpartition("/")[::2])
        for key in scores
    }
    heads = list(dict.fromkeys(row for row, _ in split.values()))
    shown = {name: known.get(name) or guessed(name) for _, name in split.values()}
    by_cell = {
        split[key]: units.number(value, shown[split[key][1]]) for key, value in scores.items()
    }
    lines = [
        f"| score | {' | '.join(head or 'this model' for head in heads)} |",
        f"|---|{'---|' * len(heads)}",
        *(
            f"| {_label(score)} | {' | '.join(by_cell.get((head, name), '') for head in heads)} |"
            for name, score in shown.items()
        ),
    ]
    return "\n".join(["One evaluation of these weights:", "", *lines, "", rest])


def _label(score: Score) -> str:
    return f"{units.headed(score)}{' (lower is better)' if score.lower_is_better else ''}"
