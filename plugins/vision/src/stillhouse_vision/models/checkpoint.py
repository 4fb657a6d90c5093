"""Weights that others trained, as a model artifact: a Stillhouse model folder, safetensors, or a
torch checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built, Model, load_model
from stillhouse.batching import each_batch
from stillhouse.class_order import balanced_rows, check_names, check_predictions, class_names
from stillhouse.data.data import RowData, Rows
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Tensors
from stillhouse.weights import State, as_named, import_checkpoint
from stillhouse.work import Work
from stillhouse_vision.models.catalogue import output_shapes
from stillhouse_vision.models.classifier import ImageSpec
from stillhouse_vision.models.lookalikes import misfit

# names of the CIFAR ResNets in other code, and ours
RESNET_NAMES = (
    (re.compile(r"^conv1\."), "body.conv."),
    (re.compile(r"^bn1\."), "body.norm."),
    *((re.compile(rf"^layer{i + 1}\."), f"body.stages.{i}.blocks.") for i in range(4)),
    (re.compile(r"\.bn([12])\."), r".norm\1."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^(linear|fc)\."), "head."),
)
BATCH = 100  # the most images that are looked at together
GO_ON = "set check_teacher=false to go on with it as it is"


@dataclass(frozen=True, kw_only=True)
class LoadCheckpoint:
    """A `convert`: the weights of the port "checkpoint" in `model`, every tensor of both accounted
    for.

    A folder with model.json keeps its own spec; its outputs named in `agree` must have the shapes
    of `model`'s. Files are read without unpickling code. Where there is a port "data" (labelled
    images), the class names that the checkpoint brings are compared with `model`'s, and it must
    know those images better than chance: see `stillhouse.class_order`.
    """

    model: Model
    agree: tuple[str, ...] = ("logits",)

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        source = inputs["checkpoint"]  # Built or Path
        names = ImageSpec.of(self.model.kwargs["images"]).names
        if "data" in inputs:
            check_names(_names(source), names, go_on=GO_ON)
        try:
            import_checkpoint(source, out, spec=self.model, check=self._check, ways=_namings)
        except BadData as error:
            hint = misfit(source, self.model, _namings) if isinstance(source, Path) else ""
            raise BadData(f"{error}. {hint}" if hint else str(error)) from error
        if "data" in inputs:
            self._try(load_model(out), inputs["data"], work.rng)

    def _check(self, source: Built) -> None:
        expected, found = output_shapes(self.model), output_shapes(source.spec)
        for name in self.agree:
            if found.get(name) != expected.get(name):
                raise BadData(
                    f"the given model's '{name}' is {found.get(name)}, "
                    f"teacher_model's is {expected.get(name)}; "
                    "set teacher_model and classes to those of the given model"
                )

    def _try(self, built: Built, data: RowData, rng: Generator) -> None:
        labels = data.columns["labels"]
        assert isinstance(labels, torch.Tensor)
        rows = balanced_rows(labels, rng=rng)

        def classes(batch: Tensors) -> Tensor:
            return built.module({"images": batch["images"]})["logits"].argmax(1)

        predicted = list(each_batch(Rows(data, rows), classes, most=BATCH, device="cpu"))
        spec = ImageSpec.of(built.spec.kwargs["images"])
        size = data.rows(rows[:1])["images"].shape[-1]
        check_predictions(
            torch.cat(predicted),
            labels[rows],
            ImageSpec.of(self.model.kwargs["images"]).names,
            classes=int(self.model.kwargs["classes"]),
            causes=f"mean={_values(spec.mean)} std={_values(spec.std)} size={size}",
            go_on=GO_ON,
        )


def _values(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _names(source: Built | Path) -> tuple[str, ...]:
    if isinstance(source, Path):
        return class_names(source)
    images = source.spec.kwargs.get("images")
    return ImageSpec.of(images).names if isinstance(images, Mapping) else ()  # pyright: ignore[reportUnknownArgumentType]


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
