"""The text tower alone of a model of two towers."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from stillhouse.artifact import Built, Model, spec_of
from stillhouse.errors import BadData
from stillhouse_clip.open_models import OpenTowers, open_towers
from stillhouse_clip.pretrained import joined_towers
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import TextTower, TwoTowers, two_towers

SIZES = ("vocabulary", "length", "dim", "width", "layers", "heads")


def text_tower(**sizes: int) -> nn.Module:
    """A `TextTower` with fresh weights."""
    return TextTower(**sizes)


def text_side(built: Built) -> Built:
    """The text tower with its tokenizer. Raises BadData for a model that has none."""
    kwargs: Mapping[str, Any] = built.spec.kwargs
    module = built.module
    assets = {ASSET: built.assets[ASSET]} if ASSET in built.assets else {}
    if isinstance(module, TwoTowers) and built.spec.build is two_towers:
        defaults = {"width": 64, "layers": 2, "heads": 4}
        sizes = {name: kwargs.get(name, defaults.get(name)) for name in SIZES}
        spec = Model(build=text_tower, kwargs=sizes)
        return Built(spec=spec, module=module.text.eval(), assets=assets)
    if isinstance(module, TwoTowers) and built.spec.build is joined_towers:
        return Built(spec=spec_of(kwargs["text"]), module=module.text.eval(), assets=assets)
    if isinstance(module, OpenTowers):
        spec = Model(build=open_towers, kwargs={**kwargs, "part": "text"})
        return Built(spec=spec, module=module.only_text(), assets=assets)
    raise BadData(f"{built.spec.build.__qualname__}: a model without a text tower of its own")
