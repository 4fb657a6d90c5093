"""How the outputs of a role are kept in a cache, and what is read back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.objectives.objective import Composed
from stillhouse.sparse import Sampled, TopK, drawn, kept_of, likeliest, starts

StoredType = Literal["fp32", "fp16"]
Output = str | TopK | Sampled  # an output as it is, or a few classes of it
SHORT = 1 << 16  # classes whose numbers fit 16 bits


class Storage(Protocol):
    """What a cache says of the outputs that it keeps."""

    @property
    def outputs(self) -> Sequence[Output]: ...
    @property
    def dtype(self) -> StoredType: ...
    @property
    def top_k(self) -> int | None: ...


def check_storage(storage: Storage) -> None:
    """Raises BadSetting for what nothing could be kept by."""
    if storage.top_k is not None and storage.top_k < 1:
        raise BadSetting(f"cache: top_k must be >= 1 (got {storage.top_k})")
    names = [name_of(output) for output in storage.outputs]
    for name in names:
        if names.count(name) > 1:
            raise BadSetting(f"cache: output '{name}' is named {names.count(name)} times")


def name_of(output: Output) -> str:
    """What the role calls it."""
    return output if isinstance(output, str) else output.output


def names_of(output: Output) -> tuple[str, ...]:
    """What a term reads of the stand-in."""
    return (output,) if isinstance(output, str) else output.names


def pack(
    output: Output, value: Tensor, storage: Storage, *, ids: Tensor, view: int
) -> dict[str, Tensor]:
    """The tensors written for an output of the samples `ids`, by their names in a shard."""
    dtype = torch.float16 if storage.dtype == "fp16" else torch.float32
    value = value.detach()
    if not isinstance(output, str):
        return _few(output, value, dtype, ids=ids, view=view)
    value = value.cpu()
    if storage.top_k is None or output != "logits":
        return {output: value.to(dtype) if value.is_floating_point() else value}
    top = value.float().topk(min(storage.top_k, value.shape[-1]), dim=-1)
    rest = value.float().scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    classes = torch.full((len(value),), value.shape[-1])
    return {
        f"{output}.top": top.values.to(dtype),
        f"{output}.index": top.indices.to(torch.int32),
        f"{output}.rest": rest.to(dtype),
        f"{output}.classes": classes,
    }


def _few(
    output: TopK | Sampled, value: Tensor, dtype: torch.dtype, *, ids: Tensor, view: int
) -> dict[str, Tensor]:
    classes = value.shape[-1]
    k = kept_of(output, classes)
    if isinstance(output, TopK):
        index, numbers, scalar = likeliest(value, k, output.temperature)
    else:
        u = starts(ids, view, output.seed, value.shape[:-1])
        index, numbers, scalar = drawn(value, k, output.temperature, u)
    # as the bits of int16: torch has no indexed writes of uint16
    index = index.to(torch.int16 if classes <= SHORT else torch.int32)
    columns = (index, numbers.to(dtype), scalar.to(dtype))
    return {name: x.cpu() for name, x in zip(output.names, columns, strict=True)}


def unpack(stored: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The outputs that a role stands for, from the tensors of a shard's rows."""
    return {
        name: value
        for output in storage.outputs
        for name, value in _unpacked(output, stored, storage)
    }


def _unpacked(
    output: Output, stored: Mapping[str, Tensor], storage: Storage
) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, str):
        yield output, _whole(output, stored, storage)
        return
    index, numbers, scalar = (stored[name] for name in output.names)
    index = index.long() & 0xFFFF if index.dtype == torch.int16 else index.long()
    numbers = numbers.float() if isinstance(output, TopK) else numbers.float().exp()
    yield from zip(output.names, (index, numbers, scalar.float()), strict=True)


def _whole(name: str, stored: Mapping[str, Tensor], storage: Storage) -> Tensor:
    if storage.top_k is None or name != "logits":
        value = stored[name]
        return value.float() if value.is_floating_point() else value
    top, index = stored[f"{name}.top"].float(), stored[f"{name}.index"].long()
    classes, kept = int(stored[f"{name}.classes"][0]), top.shape[-1]
    share = torch.log(torch.tensor(float(max(1, classes - kept))))
    full = (stored[f"{name}.rest"].float() - share)[..., None].expand(*top.shape[:-1], classes)
    return full.clone().scatter(-1, index, top)


def check_reads(role: str, storage: Storage, objective: object, *, where: str) -> None:
    """Raises BadRecipe where a term reads whole logits of which a few classes are kept, or reads
    these at another temperature than theirs.
    """
    few = [output for output in storage.outputs if not isinstance(output, str)]
    losses = objective.losses if isinstance(objective, Composed) else {}
    for name, loss in losses.items():
        for output in few:
            kind, whole = type(output).__name__, f"{role}.{output.output}"
            if whole in loss.term.names:
                parts = ", ".join(f"'{role}.{part}'" for part in output.names)
                raise BadRecipe(
                    f"{where}: term '{name}' reads '{whole}', of which the cache keeps a {kind}; "
                    f"read {parts}"
                )
            reads = {f"{role}.{part}" for part in output.names} & {*loss.term.names}
            at = loss.term.hyperparameters.get("temperature", output.temperature)
            if reads and at != output.temperature:
                raise BadRecipe(
                    f"{where}: term '{name}' is at temperature {at:g}, what the cache keeps of "
                    f"'{whole}' at {output.temperature:g}; give both as one"
                )
