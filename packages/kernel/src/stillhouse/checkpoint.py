"""Checkpoints of an unfinished training stage: safetensors + JSON, written aside and renamed, the
last one kept.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.digest import file_digest, text_digest
from stillhouse.errors import CorruptArtifact
from stillhouse.files import fsync_tree, writing
from stillhouse.json_files import read_json

TENSORS, RECORD = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write `step-<n>` into `folder` and drop the older ones; Any: JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    with writing(final) as aside:
        # a copy each: tied weights share memory, which the format refuses
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()},
            str(aside / TENSORS),
        )
        whole = {**record, "step": step, "sha256": file_digest(aside / TENSORS)}
        text = json.dumps(whole)
        (aside / RECORD).write_text(json.dumps({"digest": text_digest(text), "record": text}))
        fsync_tree(aside)
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What state.json says: a record as JSON text, and that text's digest."""

    digest: str
    record: str


def last_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of the newest readable checkpoint; None where there is none."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            kept = read_json(path / RECORD, _Kept, redo="an older checkpoint serves")
            if text_digest(kept.record) == kept.digest:
                record = json.loads(kept.record)
                if file_digest(path / TENSORS) == record["sha256"]:
                    return load_file(str(path / TENSORS)), record
        except (CorruptArtifact, OSError, SafetensorError):
            continue  # half of a checkpoint is no checkpoint: an older one or step 0 serves
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer, at: str) -> tuple[dict[str, Tensor], Any]:
    """An optimizer's state as named tensors and a JSON record; Any: JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{at}/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"state": plain, "groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, at: str, tensors: Mapping[str, Tensor], record: Any
) -> None:
    """Put back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in record["state"].items()}
    for name, value in tensors.items():
        if name.startswith(f"{at}/"):
            index, key = name.removeprefix(f"{at}/").split("/", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": record["groups"]})
