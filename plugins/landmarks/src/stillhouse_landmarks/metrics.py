"""How far predicted points are from the true ones: NME, failure rate, CED curve and its area.

B: faces. P: points. Coordinates of prediction and truth share one unit, any. An NME is a fraction
(0.04 is what papers print as 4 %).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import full, named, pick, positive
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_landmarks.layouts import layout_of

LIMIT = 0.1  # an NME above it is a failure, and where the CED curve ends
Normalizer = Literal["corners", "pupils", "box_diagonal", "box_size"] | tuple[int, int]
NORMALIZERS = ("corners", "pupils", "box_diagonal", "box_size")


def nme(
    prediction: Float[Tensor, "B P 2"],
    truth: Float[Tensor, "B P 2"],
    *,
    normalizer: Normalizer = "corners",
) -> Float[Tensor, " B"]:
    """Normalised mean error of each face: mean over P of the Euclidean distance, divided by one
    distance within the truth.

    `normalizer`: corners, the outer eye corners (68 points: 36-45, 98: 60-72, 29: 8-9, from 0);
    pupils (98: 96-97, 29: 16-17, 68: the means of each eye's six points); two points by number; or
    of the box around the true points box_diagonal or box_size = sqrt(width * height). Published
    NMEs differ by it: arXiv 2111.07047 takes the pupils on WFLW. Raises BadData where the distance
    is 0 or a coordinate is not finite.
    """
    p, g = full(prediction), full(truth)
    for name, points in (("prediction", p), ("truth", g)):
        if not bool(points.isfinite().all()):
            row = int((~points.isfinite().flatten(1).all(1)).nonzero()[0, 0])
            raise BadData(f"NME: {name} of face {row} is not finite")
    scale = distance(g, normalizer)
    if not bool((scale > 0).all()):
        row = int((scale <= 0).nonzero()[0, 0])
        raise BadData(f"NME: the distance '{normalizer}' of face {row} is 0; give another one")
    return (p - g).norm(dim=-1).mean(dim=-1) / scale


def distance(truth: Float[Tensor, "B P 2"], normalizer: Normalizer) -> Float[Tensor, " B"]:
    """The distance that an NME is divided by, in the unit of `truth`."""
    points = truth.shape[1]
    if normalizer in ("box_diagonal", "box_size"):
        sides = truth.amax(dim=1) - truth.amin(dim=1)
        return sides.norm(dim=-1) if normalizer == "box_diagonal" else sides.prod(dim=-1).sqrt()
    if isinstance(normalizer, tuple):
        left, right = [(number,) for number in normalizer]
        if not all(0 <= number < points for number in normalizer):
            raise BadSetting(f"normalizer: points {normalizer} are not all in 0..{points - 1}")
    elif normalizer in NORMALIZERS:
        layout = layout_of(points, instead="as normalizer give two points, or box_diagonal")
        corners = layout.corners
        left, right = layout.pupils if normalizer == "pupils" else ((corners[0],), (corners[1],))
    else:
        known = ", ".join(NORMALIZERS)
        raise BadSetting(f"normalizer must be one of {known} or two points (got '{normalizer}')")
    return (truth[:, list(left)].mean(1) - truth[:, list(right)].mean(1)).norm(dim=-1)


def failure_rate(errors: Float[Tensor, " B"], *, limit: float = LIMIT) -> Float[Tensor, ""]:
    """The fraction of faces whose NME is above `limit`."""
    return (_checked(errors, limit) > limit).float().mean()


def auc(errors: Float[Tensor, " B"], *, limit: float = LIMIT) -> Float[Tensor, ""]:
    """Area under the CED curve on [0, limit], over `limit`: 1 when no face has an error.

    Exact: the curve is a staircase, so each face adds 1 - error / limit, or 0 beyond it. Differs
    from the evaluation code published with arXiv 2111.07047, which swaps the axes.
    """
    return (1 - _checked(errors, limit) / limit).clamp_min(0).mean()


def ced(
    errors: Float[Tensor, " B"], *, limit: float = LIMIT, steps: int = 200
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Cumulative error distribution at steps + 1 even thresholds from 0 to `limit`: thresholds, and
    the fraction of faces whose NME is at most that.
    """
    thresholds = torch.linspace(0, limit, steps + 1, dtype=errors.dtype)
    ordered = _checked(errors, limit).sort().values
    below = torch.searchsorted(ordered, thresholds, right=True)
    return thresholds, below.to(errors.dtype) / len(errors)


def _checked(errors: Tensor, limit: float) -> Tensor:
    positive("limit", limit)
    if len(errors) == 0:
        raise BadData("there is no error of any face")
    return errors


def as_points(landmarks: Float[Tensor, "B C"]) -> Float[Tensor, "B P 2"]:
    """Rows x0, y0, x1, y1, ... as points; C is 2 P."""
    return landmarks.unflatten(1, (-1, 2))


def face_errors(
    models: Models,
    data: Data,
    *,
    role: str = "student",
    normalizer: Normalizer = "corners",
    batch: int = 250,
) -> Float[Tensor, " N"]:
    """The NME of each face of `data`, in its order, by the output "landmarks" of `role`."""
    module = named(models, role, what="role", where="NME")
    if len(data) == 0:
        raise BadData("the evaluation data hold no face")
    # a model that runs outside torch has no parameters, and reads from the CPU
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def errors(rows: Tensors) -> Tensor:
        moved = {name: value.to(device) for name, value in rows.items()}
        predicted = pick({role: module(moved)}, role, "landmarks").float().cpu()
        truth = named(rows, "landmarks", what="column", where="batch")
        return nme(as_points(predicted), as_points(truth), normalizer=normalizer)

    return torch.cat(list(each_batch(data, errors, most=batch, device=device)))


@dataclass(frozen=True, kw_only=True)
class Landmarks(Metric):
    """Scores of `role`'s "landmarks" [B, 2P] against the batch's, all fractions: nme_error,
    failure_rate_error (NME above `limit`) and auc (of the CED up to `limit`).

    `batch` is only the most faces that are computed at a time.
    """

    role: str = "student"
    normalizer: Normalizer = "corners"
    limit: float = LIMIT
    batch: int = 250

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        with torch.no_grad():
            errors = face_errors(
                models, data, role=self.role, normalizer=self.normalizer, batch=self.batch
            )
        return {
            "nme_error": float(errors.mean()),
            "failure_rate_error": float(failure_rate(errors, limit=self.limit)),
            "auc": float(auc(errors, limit=self.limit)),
        }

    def scores(self) -> Sequence[Score]:
        return (
            nme_score("nme_error", "NME"),
            Score(name="failure_rate_error", better="lower", unit="%", label="Failure rate"),
            Score(name="auc", better="higher", label="AUC"),
        )


def nme_score(name: str, label: str) -> Score:
    """An NME, which papers print in percent."""
    return Score(name=name, better="lower", unit="%", label=label)
