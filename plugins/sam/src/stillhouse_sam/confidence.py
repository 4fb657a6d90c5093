"""high_confidence of everything mode, calibrated on training photos, as a separate artifact."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named, not_negative, positive
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_sam.annotated import annotations, segments
from stillhouse_sam.counts import counted
from stillhouse_sam.everything import EverythingSettings, best_ious, sure_logits
from stillhouse_sam.formats import decoded, encoded
from stillhouse_sam.models.network import SamNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from segment_anything.modeling import Sam


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A `high_confidence`; on the photos that chose it the mIoU of SAM's grid and of the two rounds
    (fractions), and the part of the grid's points that the two rounds did not decode.
    """

    high_confidence: float
    grid_miou: float
    hierarchical_miou: float
    skipped: float


# of the sure logits of round 1: which parts of them are tried as high_confidence
TRIED = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)


@torch.no_grad()
def calibrate_high_confidence(
    sam: "Sam",
    photos: "Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]",
    *,
    settings: EverythingSettings,
    lost: float = 0.01,
) -> Calibration:
    """The lowest logit tried with which two rounds lose at most `lost` of the grid's mIoU on
    TRAINING photos (ours: TinySAM gives 8.5, for SAM's own logits; a small SAM may never reach it).

    A photo is its image [H, W, 3] and its true segments [K, H, W]. Tried are quantiles (`TRIED`)
    of the positive logits of the masks that round 1 keeps, and at last inf, with which nothing is
    skipped. Raises BadData where a photo has no segment, or there is no photo.
    """
    if not photos or any(len(segments) == 0 for _, segments in photos):
        raise BadData("calibration: a photo without a true segment; leave it out")
    truths = [[encoded(mask) for mask in segments] for _, segments in photos]
    points = 0
    logits: list[Tensor] = []
    found: list[NDArray[np.float64]] = []
    for (image, _), truth in zip(photos, truths, strict=True):
        grid = settings.grid(sam)
        with counted(sam) as counts:
            found.append(best_ious(grid.generate(image), truth))
        points += counts.prompts
        logits += sure_logits(settings, sam, image)
    whole = float(np.concatenate(found).mean())
    for value in _tried(logits):
        prompts, miou = _two_rounds(sam, photos, truths, settings.with_confidence(value))
        if miou >= whole - lost:
            break
    else:
        value = math.inf
        prompts, miou = _two_rounds(sam, photos, truths, settings.with_confidence(value))
    return Calibration(
        high_confidence=value,
        grid_miou=whole,
        hierarchical_miou=miou,
        skipped=1 - prompts / points,
    )


def _two_rounds(
    sam: "Sam",
    photos: "Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]",
    truths: Sequence[Sequence[Any]],  # Any: COCO's run lengths
    settings: EverythingSettings,
) -> tuple[int, float]:
    """The number of prompts over all photos, and the mIoU."""
    generator = settings.hierarchical(sam)
    prompts, found = 0, list["NDArray[np.float64]"]()
    for (image, _), truth in zip(photos, truths, strict=True):
        found.append(best_ious(generator.generate(image), truth))
        prompts += generator.counts.prompts
    return prompts, float(np.concatenate(found).mean())


def _tried(logits: Sequence[Tensor]) -> list[float]:
    """Quantiles, ascending, each once."""
    if not any(map(len, logits)):
        return []
    every = torch.cat(list(logits)).double().numpy()
    return sorted({float(value) for value in np.quantile(every, TRIED)})


class HighConfidence(nn.Module):
    """What `calibrate_high_confidence` found."""

    def __init__(self) -> None:
        super().__init__()
        for field in fields(Calibration):
            self.register_buffer(field.name, torch.zeros((), dtype=torch.float64))

    def found(self) -> Calibration:
        """As it was kept."""
        return Calibration(
            **{field.name: float(self.get_buffer(field.name)) for field in fields(Calibration)}
        )


def high_confidence() -> nn.Module:
    """A `HighConfidence` to be filled."""
    return HighConfidence()


@dataclass(frozen=True, kw_only=True)
class CalibrateConfidence:
    """A `convert`: the `HighConfidence` of the SAM at port `role`, by the first `photos` images
    with masks of the port "data", as they lie in their frames; `lost` as in
    `calibrate_high_confidence`.
    """

    settings: EverythingSettings
    role: str = "student"
    photos: int = 10
    lost: float = 0.01

    def __post_init__(self) -> None:
        positive("photos", self.photos)
        not_negative("lost", self.lost)

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Data
        out: Path,
        *,
        work: Work,
    ) -> None:
        module = inputs[self.role].module
        if not isinstance(module, SamNetwork):
            raise BadData(f"{self.role}: a {type(module).__name__}, not a whole SAM")
        photos = list(_photos(inputs["data"], self.photos))
        found = calibrate_high_confidence(
            module.sam.eval(), photos, settings=self.settings, lost=self.lost
        )
        kept = HighConfidence()
        for name, value in asdict(found).items():
            kept.get_buffer(name).fill_(value)
        save_model(out, Built(spec=Model(build=high_confidence), module=kept))


def _photos(data: Data, count: int) -> "Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]":
    """Images [h, w, 3] as they lie in their frames, and their true masks [K, h, w]."""
    for known, batch in zip(annotations(data), data.batches(1, rng=None), strict=True):
        if count == 0:
            return
        if things := segments(known):
            count -= 1
            height, width = (int(side) for side in batch["sizes"][0])
            image = batch["images"][0, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
            masks = [_scaled(decoded(thing["rle"]), height, width) for thing in things]
            yield image, np.stack(masks)


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
    return settings.with_confidence(module.found().high_confidence)


@dataclass(frozen=True, kw_only=True)
class KeepEverything:
    """A `convert`: the SAM at port `role` with these settings of everything mode in its spec, for
    `predict`; high_confidence from the port "confidence", where there is one.
    """

    settings: EverythingSettings
    role: str = "student"

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built
        out: Path,
        *,
        work: Work,
    ) -> None:
        built = inputs[self.role]
        if not isinstance(built.module, SamNetwork):
            raise BadData(f"{self.role}: a {type(built.module).__name__}, not a whole SAM")
        models = {name: port.module for name, port in inputs.items()}
        role = "confidence" if "confidence" in inputs else None
        kept = confident(self.settings, models, role).record()
        spec = Model(build=built.spec.build, kwargs={**built.spec.kwargs, "everything": kept})
        save_model(out, replace(built, spec=spec))


@dataclass(frozen=True, kw_only=True)
class Confidence(Metric):
    """high_confidence of `role` (left out where it is inf: nothing is skipped), and of the training
    photos that chose it calibrated_miou_lost and calibrated_skipped_rate, see `Calibration`.
    """

    role: str = "confidence"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        module = named(models, self.role, what="role", where="confidence")
        assert isinstance(module, HighConfidence)
        found = module.found()
        value = found.high_confidence
        known = {"high_confidence": value} if math.isfinite(value) else {}
        return known | {
            "calibrated_miou_lost": found.grid_miou - found.hierarchical_miou,
            "calibrated_skipped_rate": found.skipped,
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="high_confidence", better="neither"),
            Score(name="calibrated_miou_lost", better="lower", unit="%"),
            Score(name="calibrated_skipped_rate", better="neither", unit="%"),
        )
