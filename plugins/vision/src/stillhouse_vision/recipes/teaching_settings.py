"""What can be set in every recipe of a teacher and its students; the data of the three scales."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.settings import Settings
from stillhouse.training import Precision
from stillhouse_vision.models import ImageSpec, full_name
from stillhouse_vision.own_data import Look, image_settings, look_at

Augmentation = Literal[
    "none", "crop", "crop-flip", "resized-crop", "trivial", "auto-cifar10", "color-jitter"
]
HELD_OUT = 0.2
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# the data of the scales tiny, small and paper (Any: field values)
DIGITS: Mapping[str, Any] = {
    "data": "builtin:stillhouse_vision.samples:digits",
    "teacher_model": "cnn32",
    "teacher_steps": 300,
    "batch": 32,
    "augment": "crop",
    "padding": 1,
    "size": 8,
    "mean": (0.3,),
    "std": (0.37,),
    "names": tuple(str(digit) for digit in range(10)),
}
CIFAR10_JPEG: Mapping[str, Any] = {
    "data": "data:cifar10-subset",
    "teacher": "data:weights-small/cifar10-resnet/resnet56-4bfd9763.th",
    "tune_steps": 312,
    "names": CIFAR10,
}
CIFAR100: Mapping[str, Any] = {
    "data": "file:cifar100",
    "steps": 240 * (50_000 // 64),
    "teacher_steps": 240 * (50_000 // 64),
    "milestones": (150 / 240, 180 / 240, 210 / 240),
    "views": 240,
    "cache": False,  # every epoch has views of its own
    "classes": 100,
    "mean": CIFAR100_MEAN,
    "std": CIFAR100_STD,
}


def check_grid(name: str, values: Sequence[float]) -> None:
    """Raises ValueError for values to choose from that are not > 0 or are there twice."""
    if len(set(values)) < len(values) or any(not value > 0 for value in values):
        raise ValueError(f"{name}: different numbers > 0 (got {values})")


class ImageSettings(Settings):
    """The images of a recipe: classes, side, normalisation, and what is kept for testing."""

    classes: int = Field(10, ge=2, le=1_000_000, description="number of classes")
    size: int = Field(32, ge=1, le=4096, description="side of the images in pixels")
    mean: tuple[float, ...] = Field(
        ImageSpec().mean, description="of the colours (0 to 1), subtracted first"
    )
    std: tuple[float, ...] = Field(ImageSpec().std, description="of the colours, divided by then")
    names: tuple[str, ...] = Field((), description="the classes' names")
    held_out: float = Field(
        HELD_OUT, gt=0, lt=1, description="part kept for testing where the data have none"
    )
    resize: bool = Field(False, description="fit images of another size")

    follows_data: ClassVar[tuple[str, ...]] = ("classes", "names", "size", "resize", "mean", "std")

    @classmethod
    def from_data(
        cls,
        source: Any,
        values: Mapping[str, Any],
        given: Mapping[str, Any],  # Any: as there
    ) -> Mapping[str, Any]:
        return cls.of_look(look_at(source), values, given)

    @classmethod
    def of_look(
        cls,
        look: Look,
        values: Mapping[str, Any],  # noqa: ARG003  Any: preset and given
        given: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What follows the data, of what was seen of them."""
        return image_settings(look, given)

    @model_validator(mode="after")
    def _named(self) -> "ImageSettings":
        if self.names and len(self.names) != self.classes:
            raise ValueError(
                f"names: {len(self.names)} names for classes={self.classes}; give one a class"
            )
        return self


class Teaching(ImageSettings):
    """Data, teacher and schedule; steps are optimizer steps, fractions are of a run."""

    teacher_model: str = Field("cifar-resnet56", description="the teacher's architecture")
    check_teacher: bool = Field(
        True, description="refuse a given teacher of other classes, or near chance on these data"
    )
    steps: int = Field(936, ge=1, description="of each student")
    teacher_steps: int = Field(936, ge=1, description="of a teacher trained here")
    tune_steps: int = Field(0, ge=0, description="fine-tuning of a given teacher on these data")
    batch: int = Field(64, ge=1, description="images of an optimizer step")
    lr: float = Field(0.05, gt=0, description="highest learning rate of the students")
    teacher_lr: float = Field(0.05, gt=0, description="of a teacher trained here")
    tune_lr: float = Field(0.01, gt=0, description="of the fine-tuning of a given teacher")
    weight_decay: float = Field(5e-4, ge=0, description="L2, as SGD adds it to the gradient")
    milestones: tuple[float, ...] = Field(
        (), description="fractions at which lr falls to a tenth; none: cosine"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction in which lr rises")
    augment: Augmentation = Field("crop-flip", description="of the training images")
    padding: int = Field(4, ge=0, le=4096, description="of the random crop, in pixels")
    views: int = Field(4, ge=1, description="augmented views of an image")
    cache: bool = Field(True, description="store the teacher's logits or embeddings")
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    follows_data: ClassVar[tuple[str, ...]] = (*ImageSettings.follows_data, "teacher", "tune_steps")

    @classmethod
    def of_look(
        cls, look: Look, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The preset's teacher is one of its own data: one is trained, unless `given`, and a given
        one is taken as it is.
        """
        return {**super().of_look(look, values, given), "teacher": "", "tune_steps": 0}

    @field_validator("teacher_model", "student", mode="after", check_fields=False)
    @classmethod
    def _full_name(cls, name: str) -> str:
        return full_name(name)

    @model_validator(mode="after")
    def _consistent(self) -> "Teaching":
        if any(not 0 < at < 1 for at in self.milestones):
            raise ValueError(
                f"milestones: fractions between 0 and 1 of the run (got {self.milestones})"
            )
        return self
