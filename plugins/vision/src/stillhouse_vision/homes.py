"""Public sets of labelled images from their homes: downloaded and checked by torchvision, written
as the parquet files that Hugging Face has of such sets.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.errors import BadData, MissingData
from stillhouse_vision.datasets import DATASETS

# torchvision's class of a set, which knows the names and the MD5 of its files
KINDS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashion-mnist": "FashionMNIST",
    "mnist": "MNIST",
}


def fetch(name: str, folder: Path, home: str, downloads: Path) -> None:
    """Write train.parquet and test.parquet of a set of `KINDS` into `folder`: PNG images, labels
    and the classes' names.

    Raises MissingData where the home does not answer, BadData for a file of other bytes.
    """
    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, KINDS[name])  # Any: its classes share no type
    at: dict[str, Any] = {"mirrors": [home]}
    if hasattr(kind, "filename"):
        at = {"url": f"{home}{kind.filename}"}
    # the same name: torchvision stores by it
    mine: Any = type(kind.__name__, (kind,), at)
    for split in ("train", "test"):
        try:
            found = mine(root=str(downloads), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise _failed(name, home, error) from error
        names = [str(each).partition(" - ")[0] for each in found.classes]  # MNIST: "7 - seven"
        _write(folder / f"{split}.parquet", np.asarray(found.data), found.targets, names)


def _failed(name: str, home: str, error: Exception) -> BadData | MissingData:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "corrupted" in reason or "md5" in reason.lower():
        return BadData(
            f"'{name}': a file from {home} has another MD5 than the published one; it was not used"
        )
    page = DATASETS[name].page
    return MissingData(
        f"'{name}': {home} does not give it ({reason}); name another place with --mirror URL, or "
        f"get it from {page}"
    )


def _write(file: Path, images: np.ndarray[Any, Any], labels: Any, names: Sequence[str]) -> None:
    """Parquet as Hugging Face's `datasets` has it; Any: a list or a tensor of labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    text = json.dumps({"info": {"features": features}})
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": text},
    )
    numbers = [int(label) for label in labels]
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(images), 5000):
            rows = range(start, min(start + 5000, len(images)))
            encoded = [{"bytes": _png(images[i]), "path": f"{i:06d}.png"} for i in rows]
            columns = {"image": encoded, "label": numbers[start : start + 5000]}
            writer.write_table(pa.table(columns, schema=schema))


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()
