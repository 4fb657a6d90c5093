"""Why a checkpoint does not fit the model it was given for: other classes, other channels, or
another network, ours, torchvision's or timm's.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stillhouse.artifact import Model
from stillhouse.errors import BadData
from stillhouse.weights import State, checkpoint_file, read_state
from stillhouse_vision.models.catalogue import ARCHITECTURES, TIMM, TORCHVISION, model
from stillhouse_vision.models.classifier import ImageSpec

COLOURS = 3
CLASSES = 37  # no layer of a network has so many outputs
Namings = Callable[[State], tuple[State, ...]]
TRIED = 16  # of torchvision's and of timm's networks, the ones with the nearest names
SIDE = {"torchvision": 96, "timm": 224}  # of images that all of them take


def misfit(source: Path, spec: Model, namings: Namings) -> str:
    """A sentence on what differs and what to set; "" where nothing is known."""
    try:
        file = checkpoint_file(source)
        ways = namings(read_state(file))
    except BadData:
        return ""
    wanted = _shapes(spec.new().state_dict())
    state = max((_shapes(way) for way in ways), key=lambda way: len(wanted.keys() & way.keys()))
    if wanted.keys() == state.keys():
        return _other_ends(wanted, state, spec) or _named(ways, file, spec)
    return _named(ways, file, spec)


Shapes = Mapping[str, tuple[int, ...]]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    # old files lack the counts of batches
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _other_ends(wanted: Shapes, state: Shapes, spec: Model) -> str:
    """Where only the first layer's inputs or the last one's outputs differ."""
    differ = [name for name in wanted if wanted[name] != state[name]]
    images = ImageSpec.of(spec.kwargs["images"])
    inner = [n for n in differ if wanted[n][1:] == state[n][1:] and len(wanted[n]) in (1, 2)]
    outer = [n for n in differ if len(wanted[n]) == 4 and n not in inner]
    if inner and len(inner) == len(differ):
        names = f" ({', '.join(images.names[:10])})" if images.names else ""
        return (
            f"It has {state[inner[0]][0]} classes, the run has {spec.kwargs['classes']}{names}: "
            "give a teacher of these classes, or leave teacher empty to train one"
        )
    if len(outer) == 1 and len(differ) == 1 and state[outer[0]][2:] == wanted[outer[0]][2:]:
        found = state[outer[0]][1]
        return (
            f"It takes images of {found} channel(s), mean and std have {images.channels}: "
            f"set {found} value(s) for each"
        )
    return ""


def _named(ways: tuple[State, ...], file: Path, spec: Model) -> str:
    """The first network with tensors of these names and shapes, but for the classes."""
    every = [_shapes(way) for way in ways]
    images = ImageSpec.of(spec.kwargs["images"])
    for name in _candidates(file, str(spec.kwargs.get("name", ""))):
        size = SIDE.get(name.partition(":")[0], images.size)
        try:
            fitting = model(name, classes=CLASSES, images=ImageSpec(size=size))
            with torch.device("meta"):
                shapes = _shapes(fitting.new().state_dict())
        except Exception:  # of other people's networks; one that cannot be built is not proposed
            continue
        if any(_alike(shapes, state) for state in every):
            return f"Its tensors are those of {name}: set teacher_model={name}"
    return ""


def _alike(shapes: Shapes, state: Shapes) -> bool:
    """Same names; same shapes but for the number of classes and of image channels."""
    return shapes.keys() == state.keys() and all(
        len(shape) == len(state[name])
        and shape[2:] == state[name][2:]
        and (shape[:1] == state[name][:1] or shape[:1] == (CLASSES,))
        and (shape[1:2] == state[name][1:2] or shape[1:2] == (COLOURS,))
        for name, shape in shapes.items()
    )


def _candidates(file: Path, name: str) -> Iterator[str]:
    import timm
    from torchvision import models

    yield from ARCHITECTURES
    near = f"{file.stem} {name}".lower()
    listed = {
        TORCHVISION: models.list_models(module=models),
        TIMM: timm.list_models(),
    }
    for prefix, names in listed.items():
        ranked = difflib.get_close_matches(near, names, n=TRIED, cutoff=0)
        common = [n for n in ("resnet18", "resnet34", "resnet50") if n in names]
        yield from (f"{prefix}{n}" for n in dict.fromkeys([*ranked, *common]))
