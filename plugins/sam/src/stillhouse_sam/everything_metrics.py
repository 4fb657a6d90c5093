"""Everything in a photo: how much of the truth is found, and what that costs.

D: masks generated. K: true segments of a photo. Data are those of `ReadEverything`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_sam.annotated import Annotation, annotations, segments
from stillhouse_sam.confidence import confident
from stillhouse_sam.counts import Counts, counted
from stillhouse_sam.everything import EverythingSettings, best_ious
from stillhouse_sam.prompting import sam_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from segment_anything.modeling import Sam

MODES = ("grid", "hierarchical")
FOUND = (
    Score(name="everything_miou", better="higher", unit="%", label="Everything mIoU"),
    *(Score(name=name, better="neither") for name in ("masks", "decoder_calls", "decoder_prompts")),
)
TIMES = (
    Score(name="seconds", better="lower", unit="s"),
    Score(name="encoder_seconds", better="lower", unit="s", label="Encoder"),
    Score(name="decoder_seconds", better="lower", unit="s", label="Decoder"),
)


def photos_of(data: Data) -> "Iterator[tuple[NDArray[np.uint8], Annotation]]":
    """Images [H, W, 3] and what is known of them; raises BadData where the two disagree."""
    known = annotations(data)
    for image, rows in zip(known, data.batches(1, rng=None), strict=True):
        pixels = named(rows, "photos", what="column", where="batch")
        height, width = named(rows, "original_sizes", what="column", where="batch")[0].tolist()
        if [image["height"], image["width"]] != [height, width]:
            annotated = f"{image['height']} x {image['width']}"
            raise BadData(
                f"{image['name']}: {height} x {width} pixels, but annotated as {annotated}; "
                "make the data again"
            )
        yield pixels.reshape(height, width, 3).numpy(), image


@dataclass(kw_only=True)
class Tally:
    """What one mode found and cost over photos; seconds are those of whole photos."""

    photos: int = 0
    masks: int = 0
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    ious: "list[NDArray[np.float64]]" = field(default_factory=lambda: list["NDArray[np.float64]"]())

    def add(
        self, sam: "Sam", photo: "NDArray[np.uint8]", image: Annotation, *,
        settings: EverythingSettings, mode: str,
    ) -> None:  # fmt: skip
        """One more photo."""
        generator = settings.grid(sam) if mode == "grid" else settings.hierarchical(sam)
        start = time.perf_counter()
        with counted(sam) as counts:
            records = generator.generate(photo)
        self.seconds += time.perf_counter() - start
        self.photos, self.masks = self.photos + 1, self.masks + len(records)
        sums = {name: value + getattr(self.counts, name) for name, value in asdict(counts).items()}
        self.counts = Counts(**sums)
        self.ious.append(best_ious(records, [thing["rle"] for thing in segments(image)]))

    def miou(self) -> float:
        """Over the true segments of all photos."""
        whole = np.concatenate(self.ious) if self.ious else np.zeros(0)
        if len(whole) == 0:
            raise BadData("everything: the photos hold no true segment; label some")
        return float(whole.mean())

    def scores(self) -> dict[str, float]:
        """Those that are the same on every machine."""
        return {
            "everything_miou": self.miou(),
            "masks": self.masks / self.photos,
            "decoder_calls": self.counts.calls / self.photos,
            "decoder_prompts": self.counts.prompts / self.photos,
        }

    def times(self) -> dict[str, float]:
        """Seconds a photo."""
        return {
            "seconds": self.seconds / self.photos,
            "encoder_seconds": self.counts.encoder_seconds / self.photos,
            "decoder_seconds": self.counts.decoder_seconds / self.photos,
        }


@dataclass(frozen=True, kw_only=True)
class Everything(Metric):
    """everything_miou, the mean over the true segments of all photos of the best IoU among the
    masks generated (TinySAM, arXiv 2312.13789, everything mode); masks, decoder_calls and
    decoder_prompts, means a photo. Of a whole SAM, by its grid or in two rounds; high_confidence is
    that of the role `confidence`, where one is named.
    """

    settings: EverythingSettings
    hierarchical: bool
    role: str = "student"
    confidence: str | None = None

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        sam, tally = sam_of(models, self.role, where="everything"), Tally()
        settings = confident(self.settings, models, self.confidence)
        for photo, image in photos_of(data):
            mode = MODES[self.hierarchical]
            tally.add(sam, photo, image, settings=settings, mode=mode)
        return tally.scores()

    def scores(self) -> Sequence[Score]:
        return FOUND


@dataclass(frozen=True, kw_only=True)
class EverythingBoth(Metric):
    """A measure: the same SAM by its grid and in two rounds, photo by photo in turns (which goes
    first changes with each), so that whatever else slows the machine slows both.

    Of each, in the rows grid and hierarchical: the scores of `Everything`, and seconds,
    encoder_seconds, decoder_seconds (means a photo; the decoder's are the prompt encoder's and the
    mask decoder's, upsampling and filters are in seconds alone). seconds_ratio and
    decoder_seconds_ratio: grid / hierarchical; miou_lost: grid - hierarchical. `confidence` as in
    `Everything`.
    """

    settings: EverythingSettings
    role: str = "student"
    confidence: str | None = None

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[str | tuple[str, str], float]:
        sam = sam_of(models, self.role, where="everything")
        settings = confident(self.settings, models, self.confidence)
        tallies = {mode: Tally() for mode in MODES}
        for number, (photo, image) in enumerate(photos_of(data)):
            if number == 0:
                _warm(sam, photo, settings)
            for mode in MODES if number % 2 == 0 else reversed(MODES):
                tallies[mode].add(sam, photo, image, settings=settings, mode=mode)
        found = {mode: {**tally.scores(), **tally.times()} for mode, tally in tallies.items()}
        grid, rounds = (found[mode] for mode in MODES)
        return {
            **{(mode, name): value for mode in MODES for name, value in found[mode].items()},
            "seconds_ratio": grid["seconds"] / rounds["seconds"],
            "decoder_seconds_ratio": grid["decoder_seconds"] / rounds["decoder_seconds"],
            "miou_lost": grid["everything_miou"] - rounds["everything_miou"],
        }

    def scores(self) -> Sequence[Score]:
        return (
            *FOUND,
            *TIMES,
            Score(name="seconds_ratio", better="higher"),
            Score(name="decoder_seconds_ratio", better="higher"),
            Score(name="miou_lost", better="lower", unit="%", label="mIoU lost"),
        )


def _warm(sam: "Sam", photo: "NDArray[np.uint8]", settings: EverythingSettings) -> None:
    """One embedding and one batch of points: the first costs more than those after it."""
    predictor = settings.grid(sam).predictor
    predictor.set_image(photo)
    points = torch.zeros(settings.points_per_batch, 1, 2, device=predictor.device)
    predictor.predict_torch(points, torch.ones_like(points[..., 0]))
