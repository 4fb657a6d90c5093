"""How the outputs of a role are kept in a cache, and what is read back."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from stillhouse.errors import BadSetting

StoredType = Literal["fp32", "fp16"]


class Storage(Protocol):
    """What a cache says of the outputs that it keeps."""

    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def dtype(self) -> StoredType: ...
    @property
    def top_k(self) -> int | None: ...


def check_storage(storage: Storage) -> None:
    """Raises BadSetting for what nothing could be kept by."""
    if storage.top_k is not None and storage.top_k < 1:
        raise BadSetting(f"cache: top_k must be >= 1 (got {storage.top_k})")


def pack(name: str, value: Tensor, storage: Storage) -> dict[str, Tensor]:
    """The tensors that are written for output `name`, by the name they have in a shard."""
    dtype = torch.float16 if storage.dtype == "fp16" else torch.float32
    value = value.detach().cpu()
    if storage.top_k is None or name != "logits":
        return {name: value.to(dtype) if value.is_floating_point() else value}
    top = value.float().topk(min(storage.top_k, value.shape[-1]), dim=-1)
    rest = value.float().scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    classes = torch.full((len(value),), value.shape[-1])
    return {
        f"{name}.top": top.values.to(dtype),
        f"{name}.index": top.indices.to(torch.int32),
        f"{name}.rest": rest.to(dtype),
        f"{name}.classes": classes,
    }


def unpack(stored: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The outputs that a role stands for, from the tensors of a shard's rows."""
    return {name: _unpacked(name, stored, storage) for name in storage.outputs}


def _unpacked(name: str, stored: Mapping[str, Tensor], storage: Storage) -> Tensor:
    if storage.top_k is None or name != "logits":
        value = stored[name]
        return value.float() if value.is_floating_point() else value
    top, index = stored[f"{name}.top"].float(), stored[f"{name}.index"].long()
    classes, kept = int(stored[f"{name}.classes"][0]), top.shape[-1]
    share = torch.log(torch.tensor(float(max(1, classes - kept))))
    full = (stored[f"{name}.rest"].float() - share)[:, None].expand(-1, classes).clone()
    return full.scatter(-1, index, top)
