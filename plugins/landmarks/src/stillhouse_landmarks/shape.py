"""The active shape model: a linear model of how faces vary, and the soft landmarks it makes.

Fard & Mahoor 2022 (arXiv 2111.07047), after Cootes et al. 1995. S: faces. C: coordinates, twice the
points, x0, y0, x1, y1, ... in fractions of the crop. K: modes that are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import same_type
from stillhouse.objectives.objective import Tensors
from stillhouse.training import Augment
from stillhouse.work import Work

WIDTH = 3.0  # a mode is clipped at so many standard deviations, as Cootes et al.
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ShapeModel:
    """mean [C], the modes [K, C] (orthonormal rows) and each mode's variance [K]."""

    mean: Float[Tensor, " C"]
    modes: Float[Tensor, "K C"]
    variances: Float[Tensor, " K"]

    @classmethod
    def fit(cls, shapes: Float[Tensor, "S C"], variance: float = 0.95) -> "ShapeModel":
        """The principal components that explain the fraction `variance` of the shapes' variance.

        `variance` in (0, 1); 0.95 is a reconstruction from the authors' file names. No Procrustes
        alignment, as the authors' code has none: pose is among the modes. Fit it to training shapes
        only. Raises BadData for fewer than two shapes, shapes that are all alike, or NaN.
        """
        from sklearn.decomposition import PCA  # seconds; recipes are built without it

        if not 0 < variance < 1:
            raise BadSetting(f"variance must be > 0 and < 1 (got {variance})")
        if len(shapes) < 2:
            raise BadData(f"a shape model needs at least 2 shapes (got {len(shapes)})")
        if not bool(shapes.isfinite().all()):
            row = int((~shapes.isfinite().all(1)).nonzero()[0, 0])
            raise BadData(f"shape {row} is not finite")
        if bool((shapes == shapes[0]).all()):
            raise BadData(f"the {len(shapes)} shapes are all alike; a shape model needs variation")
        pca = PCA(n_components=variance, svd_solver="full").fit(shapes.double().numpy())
        parts = (pca.mean_, pca.components_, pca.explained_variance_)
        mean, modes, variances = (torch.from_numpy(part).float() for part in parts)
        return cls(mean=mean, modes=modes, variances=variances)

    def soften(self, shapes: Float[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        """Soft landmarks: b = V (s - mean), each b_i clipped to +-3 sqrt(variance_i), mean + b V.

        The detail that K modes cannot express is gone, and what is rare is drawn in. Raises BadData
        for another number of coordinates and for shapes of another type than the model's.
        """
        if shapes.shape[1] != len(self.mean):
            raise BadData(
                f"shapes of {shapes.shape[1]} coordinates for a shape model of {len(self.mean)}"
            )
        same_type("shape model", shapes=shapes, model=self.mean)
        limit = WIDTH * self.variances.sqrt()
        b = (shapes - self.mean) @ self.modes.T
        return self.mean + torch.minimum(torch.maximum(b, -limit), limit) @ self.modes


class ShapeRole(nn.Module):
    """A `ShapeModel` as a role that is never trained: the batch's "landmarks" [B, C] to its soft
    ones, under the same name.
    """

    mean: Tensor
    modes: Tensor
    variances: Tensor

    def __init__(self, *, coordinates: int, modes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(coordinates))
        self.register_buffer("modes", torch.zeros(modes, coordinates))
        self.register_buffer("variances", torch.zeros(modes))

    def shape(self) -> ShapeModel:
        """The model that these buffers hold."""
        return ShapeModel(mean=self.mean, modes=self.modes, variances=self.variances)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"landmarks": self.shape().soften(batch["landmarks"].to(self.mean.dtype))}


def shape_role(shape: ShapeModel) -> Built:
    """The role of a shape model, with the spec that a stage stores."""
    modes, coordinates = shape.modes.shape
    spec = Model(build=ShapeRole, kwargs={"coordinates": coordinates, "modes": modes})
    module = spec.new()
    module.load_state_dict({"mean": shape.mean, "modes": shape.modes, "variances": shape.variances})
    return Built(spec=spec, module=module.eval())


@dataclass(frozen=True, kw_only=True)
class FitShape:
    """A `convert`: the column "landmarks" of the input "data" to a `ShapeRole`.

    With `augment`, the shapes are those of `views` augmented views of each face, as the paper fits
    it to the augmented training set.
    """

    variance: float = 0.95
    augment: Augment | None = None
    views: int = 1

    def __post_init__(self) -> None:
        if self.views < 1:
            raise BadSetting(f"views must be >= 1 (got {self.views})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: the opened port "data"
        out: Path,
        *,
        work: Work,
    ) -> None:
        data = inputs["data"]
        if len(data) == 0:
            raise BadData("the training data hold no face to fit a shape model to")
        shapes = [shape for view in range(self.views) for shape in self._shapes(data, view)]
        save_model(out, shape_role(ShapeModel.fit(torch.cat(shapes), self.variance)))

    def _shapes(self, data: Data, view: int) -> list[Tensor]:
        found: list[Tensor] = []
        for batch in data.batches(BATCH, rng=None):
            seen = {**batch, "view": torch.full_like(batch["id"], view)}
            found.append((self.augment(seen) if self.augment else seen)["landmarks"].float())
        return found
