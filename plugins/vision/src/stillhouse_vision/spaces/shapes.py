"""CIFAR ResNets of any depth a stage and any width: width traded for depth at equal MACs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting
from stillhouse.search import Encoding
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.models.resnet import Shortcut
from stillhouse_vision.spaces.cost import cost_of
from stillhouse_vision.spaces.depths import ResNetDepths


@dataclass(frozen=True, kw_only=True)
class ResNetShapes:
    """{"blocks": [a, b, c], "width": w}: a `ResNetDepths` whose stem and stages have w, w, 2 w and
    4 w channels. Ours; to be used through `stillhouse.search.slices.Slice`.
    """

    choices: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    widths: tuple[int, ...] = (8, 10, 12, 14, 16, 20, 24, 28, 32)
    shortcut: Shortcut = "conv"
    classes: int
    images: ImageSpec = field(default_factory=ImageSpec)

    def __post_init__(self) -> None:
        if len(set(self.widths)) < max(2, len(self.widths)) or min(self.widths) < 1:
            raise BadSetting(
                f"widths must be two or more different numbers >= 1 (got {self.widths})"
            )
        self._depths(self.widths[0])  # checks the choices

    def __len__(self) -> int:
        return len(self._depths(self.widths[0])) * len(self.widths)

    def at(self, index: int) -> Encoding:
        """By number: the width changes fastest."""
        if not 0 <= index < len(self):
            raise IndexError(f"architecture {index} of {len(self)}")
        blocks, width = divmod(index, len(self.widths))
        return {**self._depths(self.widths[0]).at(blocks), "width": self.widths[width]}

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(len(self), (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        """Another depth in one stage, or another width: each of the four as often."""
        stages = len(encoding["blocks"])
        if int(torch.randint(stages + 1, (), generator=rng)) < stages:
            blocks = self._depths(encoding["width"]).mutate(encoding, rng)
            return {**blocks, "width": encoding["width"]}
        others = [width for width in self.widths if width != encoding["width"]]
        return {**encoding, "width": others[int(torch.randint(len(others), (), generator=rng))]}

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return cost_of(self.model(encoding), self.images)

    def model(self, encoding: Encoding) -> Model:
        return self._depths(encoding["width"]).model(encoding)

    def _depths(self, width: int) -> ResNetDepths:
        return ResNetDepths(
            choices=self.choices,
            widths=(width, width, 2 * width, 4 * width),
            shortcut=self.shortcut,
            classes=self.classes,
            images=self.images,
        )
