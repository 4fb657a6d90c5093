"""Weights that others trained: reading a checkpoint file safely, and fitting it to a module."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData

State = dict[str, Tensor]
FILES = (".safetensors", ".th", ".pth", ".pt", ".bin")
# left by DataParallel, by trainers, by torch.compile
WRAPPERS = ("module.", "model.", "_orig_mod.")
ENTRIES = ("state_dict", "model_state_dict", "model")  # where a checkpoint file keeps the weights
COUNT = ".num_batches_tracked"


def checkpoint_file(source: Path) -> Path:
    """The file itself, or the only checkpoint in a folder; raises BadData for none or several."""
    if source.is_file():
        return source
    found = [p for p in sorted(source.glob("*")) if p.suffix in FILES]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise BadData(
            f"{source}: expected model.json or one checkpoint file (found {names}); "
            "name the file itself"
        )
    return found[0]


def read_state(file: Path) -> State:
    """The named tensors of a .safetensors file or of a torch checkpoint read with weights_only:
    no code in it runs. Raises BadData.
    """
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(str(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail anywhere inside the readers
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadData(
            f"{file}: not a checkpoint that can be read safely ({reason}); give safetensors"
        ) from error
    if not isinstance(content, dict):
        raise BadData(f"{file}: a {type(content).__name__}, not a mapping of names to tensors")
    content = next((content[entry] for entry in ENTRIES if entry in content), content)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """The same without what wrappers put before the names."""
    return {_unwrapped(name): value for name, value in state.items()}


def load_strictly(module: nn.Module, ways: Iterable[Mapping[str, Tensor]], *, where: str) -> None:
    """Load the one of `ways` (a state under several namings) that fits best, every tensor of both
    accounted for. Raises BadData with the first that is missing, left over or of another shape.
    """
    fresh = module.state_dict()
    fitting = max(ways, key=lambda way: len(fresh.keys() & way.keys()))
    # BatchNorm of before torch 0.4.1 did not count its batches; nothing reads the count
    fitting = {k: v for k, v in fresh.items() if k.endswith(COUNT)} | dict(fitting)
    if problem := _difference(fresh, fitting):
        raise BadData(
            f"{where}: does not fit the model: {problem}; choose the model it was made from"
        )
    module.load_state_dict(fitting)


def as_named(state: State) -> tuple[State, ...]:
    """The namings that every loader tries: the file's own, and without wrappers."""
    return state, unwrapped(state)


def adopt(
    source: Built | Path,
    out: Path,
    *,
    spec: Model,
    check: Callable[[Built], None],
    inside: str = "",
    ways: Callable[[State], Iterable[State]] = as_named,
    about: str = "",
) -> None:
    """Save at `out`, as a model folder, what a user gave for `spec`.

    A `Built` (a folder with model.json) keeps its own spec, if `check` does not raise; a file, or
    the only one of a folder, is loaded strictly into `spec`'s submodule `inside`, under one of
    `ways` of naming its tensors. `about` follows the file in errors. Raises BadData.
    """
    if isinstance(source, Built):
        check(source)
        save_model(out, source)
        return
    file = checkpoint_file(source)
    state, module = read_state(file), spec.new()
    where = f"{file} ({about})" if about else str(file)
    load_strictly(module.get_submodule(inside), ways(state), where=where)
    save_model(out, Built(spec=spec, module=module))


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _difference(wanted: State, state: State) -> str:
    if missing := [name for name in wanted if name not in state]:
        return f"it lacks '{missing[0]}' and {len(missing) - 1} more"
    if extra := [name for name in state if name not in wanted]:
        return f"it has '{extra[0]}' and {len(extra) - 1} more that the model has not"
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            return f"'{name}' is {list(state[name].shape)}, the model's is {list(tensor.shape)}"
    return ""
