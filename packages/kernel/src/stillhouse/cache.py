"""The teacher cache: outputs of a frozen role computed once and read back, memory-mapped, by sample
id and view.

The key is the role's digest, the data's digest, the output names and their storage, the
augmentation with its seed, the batch, the code and the device type; under it lie one folder a view
with safetensors shards. A shard is written aside and renamed, so a killed fill goes on where it
stopped; a shard that does not match the manifest is computed again, never served.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillhouse.artifact import Built
from stillhouse.data.data import Data, Plan, is_stored, plans_of, rows_of
from stillhouse.data.loader import batches_of
from stillhouse.data.sampling import MixedData
from stillhouse.digest import digest, file_digest, file_digests
from stillhouse.errors import ContractError
from stillhouse.fidelity import settled
from stillhouse.files import fsync, share, storage, write_text
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Tensors
from stillhouse.packing import Output, StoredType, check_storage, name_of, pack, unpack
from stillhouse.recipe import Context, Event
from stillhouse.training import Augment, Prepared, Setup, pass_length

SHARD_ROWS = 4096
IN_MEMORY = 256 << 20  # bytes of one view's outputs that are joined in memory when opened


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Which outputs of a frozen role are computed once.

    The role must be a pure function of its input. `dtype` is that of storage. An output is kept as
    it is, or as a few classes of it (`TopK`, `Sampled` of stillhouse.sparse), which are read under
    names of their own. `top_k` keeps the k largest logits and the log-sum-exp of the rest, which is
    spread evenly over whole logits when read; for short vocabularies. What errs too much is refused
    (stillhouse.fidelity).
    """

    outputs: tuple[Output, ...] = ("logits",)
    dtype: StoredType = "fp32"
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_storage(self)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the stored outputs depend on; any difference is another key."""

    role: str  # digest of the role's artifact
    data: str  # digest of the data artifact
    code: str  # of what the role, the augmentation and this module can reach
    device: str  # "cpu" or "cuda": their last bits differ
    batch: int  # rows that went through the role together: it moves the last bits, too
    cache: Cache
    augment: Augment | None

    @property
    def key(self) -> str:
        return digest(self, at="cache")


class CachedRole(nn.Module):
    """Stands in for a frozen role: its forward looks the stored outputs up by batch["id"] and
    batch["view"]. `record` says what was computed and what was there.
    """

    def __init__(
        self, views: Mapping[int, "_View"], cache: Cache, record: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.views, self.cache, self.record = views, cache, record

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        ids = batch["id"].cpu()
        stored = self._stored(ids, batch["view"].cpu())
        outputs = unpack(stored, self.cache)
        device = batch["id"].device
        return outputs if device.type == "cpu" else {k: v.to(device) for k, v in outputs.items()}

    def _stored(self, ids: Tensor, seen: Tensor) -> dict[str, Tensor]:
        views = seen.unique().tolist()
        if len(views) == 1:
            return self.views[views[0]].rows(ids)
        whole: dict[str, Tensor] = {}
        for view in views:  # of a mix: a small set is further on than a large one
            mask = seen == view
            for name, value in self.views[view].rows(ids[mask]).items():
                full = whole.setdefault(name, value.new_empty(len(ids), *value.shape[1:]))
                full[mask] = value
        return whole


class _View:
    """One view's shards, opened."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        size = sum(t.nbytes for shard in shards for t in shard.values())
        if size <= IN_MEMORY:
            shards = [{name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}]
        self.shards = shards
        self.starts = torch.tensor([0, *(len(shard["id"]) for shard in shards)]).cumsum(0)
        ids = torch.cat([shard["id"] for shard in shards])
        self.sorted, self.order = ids.sort()
        self.direct = bool((ids == torch.arange(len(ids))).all())

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        places = ids if self.direct else self.order[torch.searchsorted(self.sorted, ids)]
        if len(self.shards) == 1:
            return {name: column[places] for name, column in self.shards[0].items()}
        which = torch.searchsorted(self.starts, places, right=True) - 1
        parts: dict[str, Tensor] = {}
        for number in which.unique().tolist():
            mask = which == number
            for name, column in self.shards[number].items():
                picked = column[places[mask] - self.starts[number]]
                full = parts.setdefault(name, picked.new_empty(len(ids), *picked.shape[1:]))
                full[mask] = picked
        return parts


def cached(
    role: str,
    module: nn.Module,
    data: Data,
    views: Sequence[int],
    source: Source,
    *,
    ctx: Context,
) -> CachedRole:
    """The stand-in for `module`, after computing what of `views` is not stored yet; one process
    fills, others wait.

    Raises UnknownName for an output the role does not have, ContractError for an augmentation that
    is not pure.
    """
    folder = ctx.caches / source.key[:2] / source.key
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            fill = _Fill(
                role=role,
                module=module,
                data=data,
                folder=folder,
                source=source,
                ctx=ctx,
            )
            outputs, kept = settled(
                source.cache, folder, lambda: fill.outputs(views[0]), where=fill.where
            )
            fill.cache = replace(source.cache, outputs=outputs)
            opened = {view: _View(fill.view(view)) for view in views}
    record: dict[str, Any] = {
        "key": source.key,
        "views": len(views),
        "rows": fill.rows // len(views),
    }
    record |= {"computed_rows": fill.computed, "reused_rows": fill.rows - fill.computed}
    return CachedRole(opened, fill.cache, record | ({"kept": kept} if kept else {}))


def stored(
    role: str,
    built: Built,
    data: Data,
    *,
    setup: Setup,
    cache: Cache,
    ctx: Context,
    selects: bool = False,
) -> CachedRole:
    """The stand-in for a frozen role in a training of `setup`: every view it will read.

    `selects`: the objective re-selects its data; a selection is shorter than the data, and so has
    more passes, and views, than these.
    """
    source = Source(
        role=ctx.digests[role],
        data=ctx.digests["data"],
        code=ctx.code(
            (built.spec, {type(m) for m in built.module.modules()}, setup.augment, cache)
        ),
        device=ctx.device.partition(":")[0],
        batch=setup.batch,
        cache=cache,
        augment=setup.augment,
    )
    epochs = -(-setup.steps // pass_length(data, setup.batch))
    every = selects or isinstance(data, MixedData)  # whose small sets are read more often
    views = range(setup.views if every else min(setup.views, epochs))
    return cached(role, built.module, data, views, source, ctx=ctx)


class _Fill:
    def __init__(
        self,
        *,
        role: str,
        module: nn.Module,
        data: Data,
        folder: Path,
        source: Source,
        ctx: Context,
    ) -> None:
        self.role, self.module, self.data, self.folder = role, module.eval(), data, folder
        self.source, self.batch, self.ctx = source, source.batch, ctx
        self.cache, self.where = source.cache, f"cache of role '{role}'"
        self.computed = self.rows = 0

    @torch.no_grad()
    def outputs(self, view: int) -> Iterator[Tensors]:
        """The role's outputs, batch by batch."""
        self.module.to(self.ctx.device)
        plans = (plan for chunk in self._chunks() for plan in chunk)
        for batch in self._batches(plans, view):
            yield self._outputs(batch)

    def view(self, view: int) -> list[dict[str, Tensor]]:
        """The shards of a view, in order; those missing or damaged are computed, of batches that
        are read once each, as they are needed.
        """
        folder = self.folder / f"view-{view}"
        folder.mkdir(exist_ok=True)
        manifest, chunks = folder / "manifest.json", list(self._chunks())
        known, files = _read_manifest(manifest), [folder / _name(n) for n in range(len(chunks))]
        found = _whole_shards(files, known)
        missing = [plan for n, chunk in enumerate(chunks) if found[n] is None for plan in chunk]
        if missing and self.source.augment is not None:
            self._check_augment(missing[0], view)
        batches = self._batches(missing, view)
        shards: list[dict[str, Tensor]] = []
        for number, (file, chunk) in enumerate(zip(files, chunks, strict=True)):
            shard = found[number]
            if shard is None:
                shard = self._compute(islice(batches, len(chunk)), view)
                _write_shard(file, shard)
                known[file.name] = file_digest(file)
                write_text(
                    manifest, json.dumps({"key": self.source.key, "shards": known}, indent=1)
                )
            self.rows += len(shard["id"])
            self._report(view, number)
            shards.append(shard)
        return shards

    def _chunks(self) -> Iterator[list[Plan]]:
        """What the batches of each shard are read by."""
        each, size = plans_of(self.data, self.batch, rng=None), max(1, SHARD_ROWS // self.batch)
        return iter(lambda: list(islice(each, size)), [])

    def _batches(self, plans: Iterable[Plan], view: int) -> Iterator[Tensors]:
        """The batches of plans at a view, augmented."""
        read = Prepared(data=self.data, augment=self.source.augment, plain=False, views=view + 1)
        requests = ((plan, view) for plan in plans)
        return batches_of(read, requests, stored=is_stored(self.data))

    def _check_augment(self, plan: Plan, view: int) -> None:
        augment = self.source.augment
        read = Prepared(data=self.data, augment=None, plain=False, views=view + 1)
        plain = read((plan, view))
        assert augment is not None
        _check_pure(augment, plain, augment(plain))

    @torch.no_grad()
    def _compute(self, batches: Iterable[Tensors], view: int) -> dict[str, Tensor]:
        self.module.to(self.ctx.device)
        parts = [self._packed(batch, view) for batch in batches]
        self.computed += sum(len(part["id"]) for part in parts)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _packed(self, batch: Tensors, view: int) -> dict[str, Tensor]:
        found, packed = self._outputs(batch), {"id": batch["id"]}
        for output in self.cache.outputs:
            value = named(found, name_of(output), what="output", where=self.where)
            packed |= pack(output, value, self.cache, ids=batch["id"], view=view)
        return packed

    def _outputs(self, batch: Tensors) -> Tensors:
        return self.module({name: value.to(self.ctx.device) for name, value in batch.items()})

    def _report(self, view: int, number: int) -> None:
        done = min(len(self.data), (number + 1) * max(1, SHARD_ROWS // self.batch) * self.batch)
        text = f"teacher cache of '{self.role}', view {view}"
        self.ctx.observe(Event(stage=self.ctx.stage, text=text, done=done, total=len(self.data)))


def _check_pure(augment: Augment, plain: Tensors, seen: Tensors) -> None:
    """An augmentation that depends on a sample's neighbours or on a hidden state would make the
    cache lie.
    """
    half = torch.arange(len(plain["id"]) - 1, -1, -2)
    again, before = augment(rows_of(plain, half)), rows_of(seen, half)
    for name, value in again.items():
        if not torch.equal(value, before[name]):
            raise ContractError(
                f"augmentation {type(augment).__name__} is not a pure function of (id, view): "
                f"'{name}' differs for the same samples in another batch; "
                "without that no teacher output can be cached"
            )


def _read_manifest(path: Path) -> dict[str, Any]:  # Any: file name -> sha256
    try:
        return dict(json.loads(path.read_text())["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _whole_shards(
    files: Sequence[Path], known: Mapping[str, str]
) -> list[dict[str, Tensor] | None]:
    """The shards that are what their manifest says."""
    there = [file for file in files if file.name in known and file.is_file()]
    digests = file_digests(there)
    return [
        load_file(str(file)) if file in digests and digests[file] == known[file.name] else None
        for file in files
    ]


def _write_shard(path: Path, shard: Mapping[str, Tensor]) -> None:
    aside = path.with_name(f".{path.name}")
    save_file({name: value.contiguous() for name, value in shard.items()}, str(aside))
    share(aside)
    fsync(aside)
    aside.replace(path)
