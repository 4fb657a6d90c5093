"""Checkpoints of an unfinished stage: safetensors + JSON, written aside and renamed, the last one
kept, and used again only where it leads to the same bits.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.digest import digest, file_digest, text_digest
from stillhouse.errors import BadSetting, CorruptArtifact
from stillhouse.files import fsync_tree, writing
from stillhouse.json_files import read_json
from stillhouse.recipe import Context, Event

TENSORS, RECORD = "state.safetensors", "state.json"
CHECKSUMS = (
    "checksums "  # what is known of a frozen role begins so; in older checkpoints it was sha256
)

State = tuple[dict[str, Tensor], dict[str, Any]]  # Any: JSON values


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What decides the last bits of a training beside the stage itself."""

    device: str  # "cpu", or the GPU's name
    processor: str  # the vector instructions that torch uses
    threads: int
    processes: int
    micro_batches: int
    torch: str

    @classmethod
    def of(cls, ctx: Context) -> "Conditions":
        """Those of this process."""
        gpu = torch.cuda.get_device_name(ctx.device) if ctx.device.startswith("cuda") else ""
        return cls(
            device=gpu or ctx.device,
            processor=torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
            processes=ctx.nproc,
            micro_batches=ctx.micro_batches,
            torch=torch.__version__,
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of a stage under the conditions of this run; those of other conditions stay
    beside them until the stage is done.
    """

    ctx: Context

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write one and drop the older ones; Any: JSON values."""
        conditions = Conditions.of(self.ctx)
        record = {**record, "conditions": asdict(conditions)}
        save_checkpoint(self.ctx.checkpoints, step, tensors, record, mark=_mark(conditions))

    def last(self) -> State | None:
        """Tensors and record of the newest readable one. None where there is none; says so where
        one of other conditions is passed over.
        """
        here, folder = Conditions.of(self.ctx), self.ctx.checkpoints
        if found := last_checkpoint(folder, mark=_mark(here)):
            return found
        if other := last_checkpoint(folder):
            self._pass_over(other[1], asdict(here))
        return None

    def _pass_over(self, record: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        made: Mapping[str, Any] = record.get("conditions", {})
        differences = [
            f"{name.replace('_', '-')} {made[name]} (now {here[name]})"
            for name in here
            if name in made and made[name] != here[name]
        ]
        text = (
            f"the checkpoint at {record['step']} was made with {', '.join(differences)}: it is "
            "kept, and this run begins anew"
        )
        self.ctx.observe(Event(stage=self.ctx.stage, text=text))


def _mark(conditions: Conditions) -> str:
    return digest(conditions)[:8]


def check_fingerprint(
    stage: str, folder: Path, made: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    """Raises BadSetting where a checkpoint is of another training; says what differs."""
    for name, value in here.items():
        if str(value).startswith(CHECKSUMS) and not str(made.get(name, CHECKSUMS)).startswith(
            CHECKSUMS
        ):
            raise BadSetting(
                f"stage '{stage}': the checkpoint in {folder} is of an older Stillhouse, which "
                f"knew {name} by other digests: whether it is the same is unknown. Give "
                "another folder, or delete this one"
            )
    differences = [
        name
        if max(len(str(value)), len(str(made.get(name)))) > 16
        else f"{name} {made.get(name)} (now {value})"
        for name, value in {**dict.fromkeys(made), **here}.items()
        if made.get(name) != value
    ]
    if differences:
        raise BadSetting(
            f"stage '{stage}': the checkpoint in {folder} is of another training; different: "
            f"{', '.join(differences)}. Give another folder, or delete this one"
        )


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],  # Any: JSON values
    *,
    mark: str = "",
) -> None:
    """Write `step-<n>` into `folder` and drop the older ones of the same mark."""
    folder.mkdir(parents=True, exist_ok=True)
    end = f"-{mark}" if mark else ""
    final = folder / f"step-{step:09d}{end}"
    for half in folder.glob(".step-*"):  # of a process that was killed while it wrote
        shutil.rmtree(half, ignore_errors=True)
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
    for old in folder.glob(f"step-*{end}"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What state.json says: a record as JSON text, and that text's digest."""

    digest: str
    record: str


def last_checkpoint(folder: Path, *, mark: str = "") -> State | None:
    """Tensors and record of the newest readable checkpoint of a mark, of any where it is empty;
    None where there is none.
    """
    for path in sorted(folder.glob(f"step-*{mark}"), reverse=True):
        try:
            kept = read_json(path / RECORD, _Kept, redo="an older checkpoint serves")
            if text_digest(kept.record) == kept.digest:
                record = json.loads(kept.record)
                if file_digest(path / TENSORS) == record["sha256"]:
                    return load_file(str(path / TENSORS)), record
        except (CorruptArtifact, OSError, SafetensorError):
            continue  # half of a checkpoint is no checkpoint: an older one or step 0 serves
    return None


def below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


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
