"""What can be set in vision/kd3, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Settings
from stillhouse.training import Precision
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.recipes.teaching_settings import CIFAR10

Variant = Literal["no-selection", "no-mix", "no-weighting", "teacher-selection"]
POOL_IMAGENET32 = 1_281_167


class KD3Settings(Settings):
    """What `vision/kd3` can be told; steps are optimizer steps, fractions are of a run."""

    web: str = Field(
        "", description="unlabelled pictures the students learn from, as data is given"
    )
    variants: tuple[Variant, ...] = Field(
        (), description="KD3 without one of its parts, a row each"
    )
    student: str = "resnet20x0.5"
    teacher_model: str = Field("resnet56", description="the teacher's architecture")
    steps: int = Field(1000, ge=1, description="of each student")
    teacher_steps: int = Field(936, ge=1, description="of a teacher trained here")
    tune_steps: int = Field(0, ge=0, description="fine-tuning of a given teacher on the target")
    batch: int = Field(128, ge=2)
    teacher_batch: int = Field(64, ge=1)
    lr: float = Field(0.05, gt=0)
    teacher_lr: float = Field(0.05, gt=0)
    tune_lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    milestones: tuple[float, ...] = Field(
        (), description="fractions at which lr falls to a tenth; none: cosine"
    )
    temperature: float = Field(4.0, gt=0, description="of the two rows of plain KD")
    confident: float = Field(
        0.5, gt=0, le=1, description="share of the web the teacher is surest of, for one KD row"
    )
    refreshes: int = Field(16, ge=1, description="KD3: how often instances are selected anew")
    mixing: tuple[float, float] = Field(
        (120 / 240, 160 / 240), description="milestones of the teacher's weight, of the refreshes"
    )
    cutoff: float = Field(0.95, gt=0, le=1, description="confidence asked of the commonest class")
    select_on: Literal["views", "pictures"] = Field(
        "views", description="select by augmented views or by the pictures themselves"
    )
    factor: int = Field(2, ge=1, description="by which the projector is narrower inside")
    mix_weight: float = Field(0.001, gt=0, description="of the contrast with mixed statistics")
    contrast_temperature: float = Field(0.3, gt=0)
    embedding: int = Field(128, ge=1, description="width of the contrasted embeddings")
    concentration: float = Field(
        0.1, gt=0, le=1, description="of the Beta that lambda is drawn from"
    )
    weight_temperature: float = Field(1.0, gt=0, description="divides the distance of the logits")
    weight_standardize: bool = Field(False, description="z-score the logits of that distance")
    teacher_contrast: bool = Field(False, description="also contrast the teacher, to no effect")
    augment: Literal["none", "crop", "crop-flip", "resized-crop"] = "crop-flip"
    padding: int = Field(4, ge=0, description="of the random crop, in pixels")
    views: int = Field(4, ge=1, description="augmented views of a picture")
    cache: bool = Field(True, description="store the teacher's logits and last maps")
    precision: Precision = "fp32"
    classes: int = Field(10, ge=2)
    size: int = Field(32, ge=1, description="side of the pictures in pixels")
    mean: tuple[float, ...] = ImageSpec().mean
    std: tuple[float, ...] = ImageSpec().std
    names: tuple[str, ...] = Field((), description="the classes' names")
    vocabulary: str = Field(
        "cifar10", description="key of the web's classes.json that names the target's class"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="part kept for testing where the data have none"
    )
    resize: bool = Field(False, description="fit target pictures of another size")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_vision.samples:digits",
            "web": "builtin:stillhouse_vision.glyphs:glyphs",
            "student": "cnn4",
            "teacher_model": "cnn16",
            "steps": 240,
            "teacher_steps": 300,
            "batch": 64,
            "teacher_batch": 32,
            "refreshes": 6,
            "embedding": 32,
            "augment": "crop",
            "padding": 1,
            "size": 8,
            "mean": (0.3,),
            "std": (0.37,),
            "names": tuple(str(digit) for digit in range(10)),
        },
        "small": {
            "data": "data:cifar10-subset",
            "web": "data:tiny-imagenet-sample",
            "teacher": "data:weights-small/cifar10-resnet/resnet56-4bfd9763.th",
            "tune_steps": 312,
            "names": CIFAR10,
        },
        "paper": {
            "data": "file:cifar10",
            "web": "file:imagenet32",
            "student": "resnet18",
            "teacher_model": "resnet34",
            "steps": 240 * (POOL_IMAGENET32 // 1024),
            "teacher_steps": 240 * (50_000 // 64),
            "batch": 1024,
            "refreshes": 240,
            "milestones": (150 / 240, 180 / 240, 210 / 240),
            "augment": "resized-crop",
            "views": 240,
            "cache": False,  # every epoch has views of its own
            "mean": (0.5071, 0.4867, 0.4408),
            "std": (0.2675, 0.2565, 0.2761),
            "names": CIFAR10,
            "seeds": 3,
        },
    }

    @model_validator(mode="after")
    def _whole(self) -> "KD3Settings":
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants: name each once (got {', '.join(self.variants)})")
        if any(not 0 < at < 1 for at in self.milestones):
            raise ValueError(
                f"milestones: fractions between 0 and 1 of the run (got {self.milestones})"
            )
        if min(self.mixing) <= 0:
            raise ValueError(f"mixing: fractions > 0 of the refreshes (got {self.mixing})")
        if self.names and len(self.names) != self.classes:
            raise ValueError(
                f"names: {len(self.names)} names for classes={self.classes}; give one a class"
            )
        if self.cache and (self.select_on == "pictures" or self.teacher_contrast):
            raise ValueError(
                "cache: only the teacher's outputs on views are stored; "
                "set cache=false for select_on=pictures or teacher_contrast=true"
            )
        return self

    @property
    def refresh_every(self) -> int:
        """Steps of an epoch of KD3: one selection."""
        return -(-self.steps // self.refreshes)
