"""The training faces of two-teacher distillation: augmented copies with hard and soft landmarks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.data.data import Columns, Data
from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.training import Augment
from stillhouse.work import Work
from stillhouse_landmarks.augment import views_of
from stillhouse_landmarks.shape import ShapeModel, ShapeRole


@dataclass(frozen=True, kw_only=True)
class Copies:
    """An augmentation whose view 0 is the face as it is; the other views are those of `augment`."""

    augment: Augment

    def __call__(self, batch: Tensors) -> Tensors:
        return batch if int(batch["view"][0]) == 0 else self.augment(batch)


@dataclass(frozen=True, kw_only=True)
class SoftFaces:
    """A `make`: the first `views` views of each face of the port "data", to the port "train" with
    the columns images, landmarks and soft_landmarks.

    Soft landmarks are what the shape model of the port "shape" leaves of a view's own points. Views
    are stored once, as the paper augments before training: all teachers and students see the same
    images.
    """

    augment: Augment
    views: int = 4

    def __post_init__(self) -> None:
        if self.views < 1:
            raise BadSetting(f"views must be >= 1 (got {self.views})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: the opened ports
        *,
        work: Work,
    ) -> Mapping[str, Iterator[Columns]]:
        role = inputs["shape"].module
        assert isinstance(role, ShapeRole)
        return {"train": self._parts(inputs["data"], role.shape())}

    def _parts(self, data: Data, shape: ShapeModel) -> Iterator[Columns]:
        for seen in views_of(data, self.augment, self.views):
            landmarks = seen["landmarks"].float()
            yield {
                "images": seen["images"],
                "landmarks": landmarks,
                "soft_landmarks": shape.soften(landmarks),
            }
