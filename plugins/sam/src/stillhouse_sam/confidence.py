"""high_confidence of everything mode, calibrated on training photos, as an artifact of its own."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse_sam.annotated import annotations, segments
from stillhouse_sam.everything import EverythingSettings, calibrate_high_confidence
from stillhouse_sam.formats import decoded
from stillhouse_sam.models.network import SamNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray


class HighConfidence(nn.Module):
    """A logit and what it says of the training photos: the part of the pixels above it that are
    truth, and the part of all mask pixels that are above it. inf: none is sure enough.
    """

    value: Tensor
    precision: Tensor
    covered: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("value", "precision", "covered"):
            self.register_buffer(name, torch.zeros(()))


def high_confidence() -> nn.Module:
    """A `HighConfidence` to be filled."""
    return HighConfidence()


@dataclass(frozen=True, kw_only=True)
class CalibrateConfidence:
    """A `convert`: the `HighConfidence` of the SAM at port `role`, by the first `photos` pictures
    with masks of the port "data"; `precision` as in `calibrate_high_confidence`.
    """

    settings: EverythingSettings
    role: str = "student"
    photos: int = 20
    precision: float = 0.9

    def __post_init__(self) -> None:
        if self.photos < 1 or not 0 < self.precision <= 1:
            raise BadSetting(
                f"calibration: photos must be >= 1 and precision > 0 and <= 1 "
                f"(got {self.photos}, {self.precision})"
            )

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Data
        out: Path,
        *,
        rng: Generator,  # noqa: ARG002
    ) -> None:
        module = inputs[self.role].module
        if not isinstance(module, SamNetwork):
            raise BadData(f"{self.role}: a {type(module).__name__}, not a whole SAM")
        photos = list(_photos(inputs["data"], self.photos))
        found = calibrate_high_confidence(
            module.sam.eval(), photos, settings=self.settings, precision=self.precision
        )
        kept = HighConfidence()
        kept.value.fill_(found.high_confidence)
        kept.precision.fill_(found.precision)
        kept.covered.fill_(found.covered)
        save_model(out, Built(spec=Model(build=high_confidence), module=kept))


def _photos(data: Data, count: int) -> "Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]":
    """Pictures [h, w, 3] as they lie in their frames, and their true masks [K, h, w]."""
    for known, batch in zip(annotations(data), data.batches(1, rng=None), strict=True):
        if count == 0:
            return
        if things := segments(known):
            count -= 1
            height, width = (int(side) for side in batch["sizes"][0])
            picture = batch["images"][0, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
            masks = [_scaled(decoded(thing["rle"]), height, width) for thing in things]
            yield picture, np.stack(masks)


def _scaled(mask: "NDArray[np.bool_]", height: int, width: int) -> "NDArray[np.bool_]":
    from PIL import Image

    found = Image.fromarray(mask.astype(np.uint8) * 255)
    size = (width, height)
    return np.asarray(found.resize(size, Image.Resampling.BOX)) >= 128


def confident(settings: EverythingSettings, models: Models, role: str | None) -> EverythingSettings:
    """The settings with the logit of `role`, a `HighConfidence`; as they are where None."""
    if role is None:
        return settings
    module = named(models, role, what="role", where="everything")
    if not isinstance(module, HighConfidence):
        raise BadData(f"{role}: a {type(module).__name__}, not what CalibrateConfidence makes")
    return settings.with_confidence(float(module.value))


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """high_confidence of `role` (left out where it is inf: no logit was sure enough), and of the
    training photos precision and covered_rate, see `Calibration`.
    """

    role: str = "confidence"

    def __call__(self, models: Models, data: Data) -> Mapping[str, float]:  # noqa: ARG002
        module = named(models, self.role, what="role", where="confidence")
        assert isinstance(module, HighConfidence)
        value = float(module.value)
        known = {"high_confidence": value} if math.isfinite(value) else {}
        shares = {"precision": module.precision, "covered_rate": module.covered}
        return known | {name: float(share) for name, share in shares.items()}
