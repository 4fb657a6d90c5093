"""Weights that others trained, as a model artifact: a Stillhouse model folder, safetensors, or a
torch checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData
from stillhouse_vision.models.catalogue import output_shapes

State = dict[str, Tensor]
WRAPPERS = (
    "module.",
    "model.",
    "_orig_mod.",
)  # left by DataParallel, by trainers, by torch.compile
ENTRIES = ("state_dict", "model_state_dict", "model")  # where a checkpoint file keeps the weights

# names of the CIFAR ResNets in other code, and ours
RESNET_NAMES = (
    (re.compile(r"^conv1\."), "body.conv."),
    (re.compile(r"^bn1\."), "body.norm."),
    *((re.compile(rf"^layer{i + 1}\."), f"body.stages.{i}.blocks.") for i in range(3)),
    (re.compile(r"\.bn([12])\."), r".norm\1."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^(linear|fc)\."), "head."),
)


@dataclass(frozen=True, kw_only=True)
class LoadCheckpoint:
    """A `convert`: the weights of the port "checkpoint" in `model`, every tensor of both accounted
    for.

    A folder with model.json keeps its own spec; its outputs named in `agree` must have the shapes
    of `model`'s. Files are read without unpickling code.
    """

    model: Model
    agree: tuple[str, ...] = ("logits",)

    def __call__(
        self,
        inputs: Mapping[str, Any],
        out: Path,
        *,
        rng: Generator,  # noqa: ARG002
    ) -> None:  # Any: Built or Path
        source = inputs["checkpoint"]
        if isinstance(source, Built):
            self._check(source)
            save_model(out, source)
            return
        file = _file(source)
        module = self.model.new()
        load_strictly(module, read_state(file), where=str(file))
        save_model(out, Built(spec=self.model, module=module))

    def _check(self, source: Built) -> None:
        expected, found = output_shapes(self.model), output_shapes(source.spec)
        for name in self.agree:
            if found.get(name) != expected.get(name):
                raise BadData(
                    f"the given model's '{name}' is {found.get(name)}, "
                    f"teacher_model's is {expected.get(name)}; "
                    "set teacher_model and classes to those of the given model"
                )


def _file(source: Path) -> Path:
    if source.is_file():
        return source
    found = [
        p
        for p in sorted(source.glob("*"))
        if p.suffix in (".safetensors", ".th", ".pth", ".pt", ".bin")
    ]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise BadData(
            f"{source}: expected model.json or one checkpoint file (found {names}); "
            "name the file itself"
        )
    return found[0]


def read_state(file: Path) -> State:
    """The named tensors of a .safetensors file or of a torch checkpoint read with weights_only."""
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


def load_strictly(module: nn.Module, state: State, *, where: str) -> None:
    """Load `state` into `module` under the names it has, or under those of a known code base.

    Raises BadData with the first tensor that is missing, left over or of another shape.
    """
    bare = {_unwrapped(name): value for name, value in state.items()}
    ways = (state, bare, _renamed(bare), {f"net.{name}": value for name, value in bare.items()})
    fresh = module.state_dict()
    wanted = {name: value.shape for name, value in fresh.items()}
    fitting = max(ways, key=lambda way: len(wanted.keys() & way.keys()))
    # BatchNorm of before torch 0.4.1 did not count its batches; nothing reads the count
    fitting = {k: v for k, v in fresh.items() if k.endswith(".num_batches_tracked")} | fitting
    if problem := _difference(wanted, fitting):
        raise BadData(
            f"{where}: does not fit the model: {problem}; choose the model it was made from"
        )
    module.load_state_dict(fitting)


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _renamed(state: State) -> State:
    renamed: State = {}
    for name, value in state.items():
        for pattern, ours in RESNET_NAMES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed


def _difference(wanted: Mapping[str, torch.Size], state: State) -> str:
    if missing := [name for name in wanted if name not in state]:
        return f"it lacks '{missing[0]}' and {len(missing) - 1} more"
    if extra := [name for name in state if name not in wanted]:
        return f"it has '{extra[0]}' and {len(extra) - 1} more that the model has not"
    for name, shape in wanted.items():
        if state[name].shape != shape:
            return f"'{name}' is {list(state[name].shape)}, the model's is {list(shape)}"
    return ""
