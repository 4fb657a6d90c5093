"""The search space of NAS-Bench-Macro (arXiv 2103.11922): 6,561 networks of eight blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting
from stillhouse.search import Encoding
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.models.macro import BLOCKS, LAYERS, check_blocks, macro_network
from stillhouse_vision.spaces.cost import changed, cost_of, digits


@dataclass(frozen=True, kw_only=True)
class NasBenchMacro:
    """{"blocks": [...]}: the blocks of the eight layers, the first one at the image."""

    width: int = 32
    tail: int = 1280
    classes: int
    images: ImageSpec = field(default_factory=ImageSpec)

    def __len__(self) -> int:
        return len(BLOCKS) ** sum(LAYERS)

    def at(self, index: int) -> Encoding:
        """By number: the last layer's block changes fastest, so that the benchmark's eight digits
        are the number to base 3.
        """
        return _encoding(digits(index, len(BLOCKS), sum(LAYERS)))

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(len(self), (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        """Another block in one layer."""
        place = int(torch.randint(sum(LAYERS), (), generator=rng))
        turn = int(torch.randint(len(BLOCKS) - 1, (), generator=rng))
        values = [BLOCKS.index(name) for name in encoding["blocks"]]
        return _encoding(changed(place, turn, values, len(BLOCKS)))

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return cost_of(self.model(encoding), self.images)

    def model(self, encoding: Encoding) -> Model:
        kwargs = {
            "blocks": list(encoding["blocks"]),
            "width": self.width,
            "tail": self.tail,
            "classes": self.classes,
            "images": self.images.json(),
        }
        return Model(build=macro_network, kwargs=kwargs)


def macro_text(blocks: Sequence[str]) -> str:
    """The benchmark's text of a network: a digit a layer, "02012100"."""
    check_blocks(blocks)
    return "".join(str(BLOCKS.index(name)) for name in blocks)


def parse_macro(text: str) -> tuple[str, ...]:
    """The eight blocks of the benchmark's text; raises BadSetting."""
    valid = "".join(str(number) for number in range(len(BLOCKS)))
    if len(text) != sum(LAYERS) or not set(text) <= set(valid):
        raise BadSetting(
            f"'{text}' is no network of the macro space: {sum(LAYERS)} digits of {valid}"
        )
    return tuple(BLOCKS[int(digit)] for digit in text)


def _encoding(values: list[int]) -> Encoding:
    return {"blocks": [BLOCKS[value] for value in values]}
