"""Weights that others trained: reading a checkpoint file safely, and fitting it to a module."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.assets import Assets
from stillhouse.errors import BadData

State = dict[str, Tensor]
FILES = (".safetensors", ".th", ".pth", ".pt", ".bin")
# left by DataParallel, by trainers, by torch.compile
WRAPPERS = ("module.", "model.", "_orig_mod.")
# where a checkpoint file keeps the weights, and the mean of them over its training's steps
ENTRIES = ("state_dict", "model_state_dict", "model")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
COUNT = ".num_batches_tracked"
STEPS = "n_averaged"  # of torch.optim.swa_utils.AveragedModel; no weight
FOREIGN = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)")


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
    no code in it runs. Raises BadData, one line: other content, weights and averaged weights side
    by side, or values that are not finite.
    """
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            state = load_file(str(file))
        else:
            with warnings.catch_warnings(action="ignore"):  # of archives; the error says it
                content = torch.load(file, map_location="cpu", weights_only=True)
            state = _weights(content, file)
    except BadData:
        raise
    except Exception as error:  # damaged bytes can fail anywhere inside the readers
        raise BadData(f"{file}: {_unread(error, file)}") from error
    check_finite(state, where=str(file))
    return state


def check_finite(state: Mapping[str, Tensor], *, where: str) -> None:
    """Raise BadData naming the first tensor with a value that is not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadData(
                f"{where}: '{name}' holds values that are not finite; training that diverged left "
                "them: give an earlier checkpoint"
            )


def _weights(content: object, file: Path) -> State:
    if not isinstance(content, Mapping):
        raise BadData(f"{file}: a {type(content).__name__}, not a mapping of names to tensors")
    whole = cast("Mapping[str, Any]", content)  # Any: what torch reads with weights_only
    plain, mean = (
        [entry for entry in entries if _holds_tensors(whole.get(entry))]
        for entries in (ENTRIES, AVERAGED)
    )
    if plain and mean:
        raise BadData(
            f"{file}: holds '{plain[0]}' and '{mean[0]}' (averaged over the steps, often the better"
            f"); choose one: {_extract(file, safe=True, entry=mean[0])} for the averaged, the same "
            f"with '{plain[0]}' for the other; then give that file"
        )
    chosen = next(iter([*plain, *mean]), "")
    inner: Mapping[str, Any] = whole[chosen] if chosen else whole
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(str, list(inner)[:5])) or "none"
        raise BadData(
            f"{file}: holds no tensors by name (its keys: {keys}); give the weights alone"
        )
    return state


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(tensor, Tensor)
        for tensor in value.values()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    )


def _unread(error: Exception, file: Path) -> str:
    """Why a file cannot be read safely and how to make one that can, on one line."""
    text = str(error)
    if found := FOREIGN.search(text):
        return (
            f"holds objects of class {found[1]}, which only running code can restore; where its "
            f"source is trusted: {_extract(file, safe=False)} and give weights.pth"
        )
    if "TorchScript" in text:
        return (
            "a TorchScript archive, which is code; where its source is trusted: python -c "
            f"\"import torch; torch.save(torch.jit.load('{file.name}').state_dict(), "
            "'weights.pth')\" and give weights.pth"
        )
    reason = next(iter(text.splitlines()), "") or type(error).__name__
    return f"not a checkpoint that can be read safely ({reason}); give safetensors"


def _extract(file: Path, *, safe: bool, entry: str = "") -> str:
    """The Python lines that take the weights out of a file."""
    taken = f"c['{entry}']" if entry else "getattr(c, 'state_dict', lambda: c)()"
    return (
        f"python -c \"import torch; c = torch.load('{file.name}', map_location='cpu', "
        f"weights_only={safe}); torch.save({taken}, 'weights.pth')\""
    )


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """The same without what wrappers put before the names, however many there are."""
    return peeled(state)[-1]


def peeled(state: Mapping[str, Tensor]) -> tuple[State, ...]:
    """The namings of a state: its own, then each with one wrapper less, until nothing changes."""
    namings = [dict(state)]
    while True:
        last = namings[-1]
        bare = {_unwrapped(name): value for name, value in last.items() if name != STEPS}
        if bare.keys() == last.keys():
            return tuple(namings)
        namings.append(bare)


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
    """The file's own names, and those without any wrappers."""
    return state, unwrapped(state)


def as_ordered(state: State, wanted: State) -> tuple[State, ...]:
    """As `as_named`, and under the names of `wanted` where the file's tensors are as many, in the
    same order and of the same shapes: another implementation's of the same network.
    """
    pairs = list(zip(wanted.items(), state.values(), strict=False))
    if len(wanted) == len(state) and all(s.shape == v.shape for (_, s), v in pairs):
        return *as_named(state), {name: value for (name, _), value in pairs}
    return as_named(state)


def import_checkpoint(
    source: Built | Path,
    out: Path,
    *,
    spec: Model,
    check: Callable[[Built], None],
    inside: str = "",
    ways: Callable[[State], Iterable[State]] = peeled,
    about: str = "",
    assets: Assets | None = None,
) -> None:
    """Save at `out`, as a model folder, what a user gave for `spec`.

    A `Built` (a folder with model.json) keeps its own spec, if `check` does not raise; a file, or
    the only one of a folder, is loaded strictly into `spec`'s submodule `inside`, under one of
    `ways` of naming its tensors, and gets `assets`. `about` follows the file in errors.
    Raises BadData.
    """
    if isinstance(source, Built):
        check(source)
        check_finite(source.module.state_dict(), where="the given model")
        save_model(out, source)
        return
    file = checkpoint_file(source)
    state, module = read_state(file), spec.new()
    where = f"{file} ({about})" if about else str(file)
    load_strictly(module.get_submodule(inside), ways(state), where=where)
    save_model(out, Built(spec=spec, module=module, assets=assets or {}))


def _unwrapped(name: str) -> str:
    wrapper = next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), "")
    return name.removeprefix(wrapper)


def _difference(wanted: State, state: State) -> str:
    if missing := [name for name in wanted if name not in state]:
        return f"it lacks '{missing[0]}' and {len(missing) - 1} more"
    if extra := [name for name in state if name not in wanted]:
        return f"it has '{extra[0]}' and {len(extra) - 1} more that the model has not"
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            found, fits = list(state[name].shape), list(tensor.shape)
            hint = ""
            if len(found) == len(fits) == 4 and found[0] == fits[0] and found[2:] == fits[2:]:
                hint = f": it reads {found[1]} channels, the model {fits[1]}"
            return f"'{name}' is {found}, the model's is {fits}{hint}"
    return ""
