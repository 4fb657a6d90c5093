"""Stored weights into a module, without a second copy of them in memory.

While the module is built its parameters are on the meta device, where they take no room. Each
tensor is then read from its file into memory of the module's own dtype and layout, a piece of the
file at a time.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

MAPPED = 16 << 20  # bytes of a file that are in memory at a time, or its largest tensor
# of a tensor of a module: the file that holds it and its name there
Places = Mapping[str, tuple[Path, str]]
Memory = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def places_in(file: Path) -> dict[str, tuple[Path, str]]:
    """The tensors of one file, under their own names. Raises SafetensorError or OSError."""
    with safe_open(str(file), framework="pt") as opened:
        return {name: (file, name) for name in opened.keys()}  # noqa: SIM118  no mapping


def stored_tensors(places: Places) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its name in the module, file after file; it is the file's memory, and good
    until the next one is read.
    """
    for file in dict.fromkeys(file for file, _ in places.values()):
        waiting = [(name, stored) for name, (where, stored) in places.items() if where == file]
        while waiting:
            mapped = 0
            with safe_open(str(file), framework="pt") as opened:
                # closed now and then, or all of the file would stay in memory
                while waiting and mapped < MAPPED:
                    name, stored = waiting.pop(0)
                    tensor = opened.get_tensor(stored)
                    mapped += tensor.nbytes
                    yield name, tensor
                    del tensor


def without_copy(
    build: Callable[[], nn.Module],
    places: Callable[[], Places],
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module | None:
    """What `build` makes, with the stored weights; floating ones in `dtype`, or that of the module.

    None where that fails: then `build` computes with its fresh weights, or the weights do not fit;
    `build` and `overwrite` say which.
    """
    try:
        with _parameters_on_meta():
            module = build()
        _put(module, places(), dtype)
    except Exception:  # whatever a builder does where it finds no weights
        return None
    return None if _left_on_meta(module) else module


def overwrite(module: nn.Module, places: Places, *, dtype: torch.dtype | None = None) -> None:
    """Load stored tensors over those of a module, then give its floating ones `dtype`. Raises
    RuntimeError where names or shapes do not fit.
    """
    slots = module.state_dict(keep_vars=True)
    _check_names(slots, places)
    state = {name: tensor.clone() for name, tensor in stored_tensors(places)}
    module.load_state_dict(state, strict=False)
    for slot in slots.values():
        if dtype is not None and slot.is_floating_point():
            slot.data = slot.data.to(dtype)


def cast_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    """Give floating buffers that are not stored (positions, masks) the dtype of those that are, as
    `module.to(dtype)` does.
    """
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


@torch.no_grad()
def copy_into(module: nn.Module, places: Places) -> None:
    """Write stored tensors over some of a module's; raises RuntimeError where a shape differs."""
    slots: dict[str, Tensor] = module.state_dict()
    for name, tensor in stored_tensors(places):
        _check_shape(name, slots[name], tensor)
        slots[name].copy_(tensor)


@contextlib.contextmanager
def _parameters_on_meta() -> Generator[None]:
    """Whatever becomes a module's parameter loses its memory; buffers keep theirs."""
    moved = WeakTensorKeyDictionary()  # a parameter that two modules share stays one

    def move(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            return None  # as it is
        if parameter not in moved:
            empty = torch.empty_like(parameter, device="meta")
            moved[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        return moved[parameter]

    handle = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _put(module: nn.Module, places: Places, dtype: torch.dtype | None) -> None:
    slots: dict[str, Tensor] = module.state_dict(keep_vars=True)
    _check_names(slots, places)
    made: dict[Memory, Tensor] = {}
    for name, tensor in stored_tensors(places):
        slot = slots[name]
        _check_shape(name, slot, tensor)
        if memory_of(slot) not in made:
            kind = dtype if dtype is not None and slot.is_floating_point() else slot.dtype
            value = torch.empty_like(slot, dtype=kind, device="cpu", requires_grad=False)
            if isinstance(slot, nn.Parameter):
                value = nn.Parameter(value, requires_grad=slot.requires_grad)
            made[memory_of(slot)] = value
        made[memory_of(slot)].data.copy_(tensor)
    state = {name: made[memory_of(slot)] for name, slot in slots.items()}
    module.load_state_dict(state, assign=True)


def memory_of(tensor: Tensor) -> Memory:
    """The same for tensors that are one, as tied weights are, and for no others alive."""
    storage = StorageWeakRef(tensor.untyped_storage()).cdata
    return storage, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _check_shape(name: str, slot: Tensor, stored: Tensor) -> None:
    if slot.shape != stored.shape:
        raise RuntimeError(f"'{name}' is stored as {list(stored.shape)}, not {list(slot.shape)}")


def _check_names(slots: Mapping[str, Tensor], places: Places) -> None:
    """Of tensors that are one, one must be stored."""
    there = {memory_of(slots[name]) for name in places if name in slots}
    missing = [name for name, slot in slots.items() if memory_of(slot) not in there]
    extra = [name for name in places if name not in slots]
    for what, names in (("missing", missing), ("unexpected", extra)):
        if names:
            raise RuntimeError(f"{what} '{names[0]}' and {len(names) - 1} more")


def _left_on_meta(module: nn.Module) -> bool:
    """Whether anything in it was computed of missing weights."""
    held = (value for each in module.modules() for value in vars(each).values())
    every = [*module.parameters(), *module.buffers(), *held]
    return any(tensor.is_meta for value in every for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:  # Any: an attribute of a module
    match value:
        case Tensor():
            yield value
        case dict():
            yield from (tensor for one in value.values() for tensor in _tensors(one))
        case list() | tuple():
            yield from (tensor for one in value for tensor in _tensors(one))
        case _:
            return
