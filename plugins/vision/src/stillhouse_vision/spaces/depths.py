"""DisWOT's first space (arXiv 2303.15678, "S0" there): CIFAR ResNets of any depth a stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting
from stillhouse.search import Encoding
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.models.resnet import Shortcut, resnet_of_blocks
from stillhouse_vision.spaces.cost import changed, cost_of, digits


@dataclass(frozen=True, kw_only=True)
class ResNetDepths:
    """{"blocks": [a, b, c]}: blocks a stage, each one of `choices`; by default 64 networks, of
    which [3, 3, 3] is ResNet-20. `widths` are those of the stem and the stages.
    """

    choices: tuple[int, ...] = (1, 3, 5, 7)
    widths: tuple[int, ...] = (16, 16, 32, 64)
    shortcut: Shortcut = "conv"
    classes: int
    images: ImageSpec = field(default_factory=ImageSpec)

    def __post_init__(self) -> None:
        if len(set(self.choices)) < max(2, len(self.choices)) or min(self.choices) < 1:
            raise BadSetting(
                f"choices must be two or more different numbers >= 1 (got {self.choices})"
            )
        if len(self.widths) < 2:
            raise BadSetting(f"widths needs a stem and a stage (got {self.widths})")

    def __len__(self) -> int:
        return len(self.choices) ** self._stages

    def at(self, index: int) -> Encoding:
        """By number: the last stage's depth changes fastest."""
        return self._encoding(digits(index, len(self.choices), self._stages))

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(len(self), (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        """Another depth in one stage."""
        place = int(torch.randint(self._stages, (), generator=rng))
        turn = int(torch.randint(len(self.choices) - 1, (), generator=rng))
        values = [self.choices.index(count) for count in encoding["blocks"]]
        return self._encoding(changed(place, turn, values, len(self.choices)))

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return cost_of(self.model(encoding), self.images)

    def model(self, encoding: Encoding) -> Model:
        kwargs = {
            "blocks": list(encoding["blocks"]),
            "widths": list(self.widths),
            "shortcut": self.shortcut,
            "classes": self.classes,
            "images": self.images.json(),
        }
        return Model(build=resnet_of_blocks, kwargs=kwargs)

    @property
    def _stages(self) -> int:
        return len(self.widths) - 1

    def _encoding(self, values: list[int]) -> Encoding:
        return {"blocks": [self.choices[value] for value in values]}
