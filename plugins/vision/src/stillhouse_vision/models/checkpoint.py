"""Weights that others trained, as a model artifact: a Stillhouse model folder, safetensors, or a
torch checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData
from stillhouse.weights import State, adopt, as_named
from stillhouse_vision.models.catalogue import output_shapes

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
        adopt(inputs["checkpoint"], out, spec=self.model, check=self._check, ways=_namings)

    def _check(self, source: Built) -> None:
        expected, found = output_shapes(self.model), output_shapes(source.spec)
        for name in self.agree:
            if found.get(name) != expected.get(name):
                raise BadData(
                    f"the given model's '{name}' is {found.get(name)}, "
                    f"teacher_model's is {expected.get(name)}; "
                    "set teacher_model and classes to those of the given model"
                )


def _namings(state: State) -> tuple[State, ...]:
    own, bare = as_named(state)
    return own, bare, _renamed(bare), {f"net.{name}": value for name, value in bare.items()}


def _renamed(state: State) -> State:
    renamed: State = {}
    for name, value in state.items():
        for pattern, ours in RESNET_NAMES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed
