"""The image tower alone of a teacher that was joined of two networks: what students are held to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.work import Work
from stillhouse_clip.pretrained import Projected


def projected_tower(*, image: Mapping[str, Any], projected: Mapping[str, Any]) -> nn.Module:
    """A `Projected` of two recorded models."""
    return Projected(spec_of(image).new(), spec_of(projected).new())


@dataclass(frozen=True, kw_only=True)
class JoinImages:
    """A `convert`: the ports "image" and "projection" as an image tower."""

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        image, linear = inputs["image"], inputs["projection"]
        kwargs = {"image": recorded(image.spec), "projected": recorded(linear.spec)}
        spec = Model(build=projected_tower, kwargs=kwargs)
        save_model(out, Built(spec=spec, module=Projected(image.module, linear.module)))
