"""What can be set in vision/kd3, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Input
from stillhouse_vision.recipes.teaching_settings import (
    CIFAR10,
    CIFAR10_JPEG,
    CIFAR100_MEAN,
    CIFAR100_STD,
    DIGITS,
    Teaching,
    check_grid,
)

Variant = Literal["no-selection", "no-mix", "no-weighting", "teacher-selection"]
POOL_IMAGENET32 = 1_281_167


class KD3Settings(Teaching):
    """Settings of `vision/kd3`; steps are optimizer steps, fractions are of a run."""

    web: Input = Field(
        "", description="unlabelled images the students learn from, as data is given"
    )
    variants: tuple[Variant, ...] = Field(
        (), description="KD3 without one of its parts, a row each"
    )
    student: str = Field("cifar-resnet20x0.5", description="the students' architecture")
    steps: int = Field(1000, ge=1, description="of each student")
    batch: int = Field(128, ge=2, description="images of an optimizer step")
    teacher_batch: int = Field(64, ge=1, description="of the teacher's own training")
    temperature: float = Field(4.0, gt=0, description="of the two rows of plain KD")
    confident: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the web the teacher is most confident about, for one KD row",
    )
    refreshes: int = Field(16, ge=1, description="KD3: how often instances are selected anew")
    mixing: tuple[float, float] = Field(
        (120 / 240, 160 / 240), description="milestones of the teacher's weight, of the refreshes"
    )
    cutoff: float = Field(0.95, gt=0, le=1, description="least confidence of the commonest class")
    select_on: Literal["views", "pictures"] = Field(
        "views", description="select by augmented views or by the images themselves"
    )
    factor: int = Field(2, ge=1, description="by which the projector is narrower inside")
    mix_weight: float = Field(0.001, gt=0, description="of the contrast with mixed statistics")
    contrast_temperature: float = Field(
        0.3, gt=0, description="of the contrast's softmax over the batch"
    )
    embedding: int = Field(128, ge=1, description="width of the contrasted embeddings")
    concentration: float = Field(
        0.1, gt=0, le=1, description="of the Beta that lambda is drawn from"
    )
    weight_temperature: float = Field(1.0, gt=0, description="divides the distance of the logits")
    weight_standardize: bool = Field(False, description="z-score the logits of that distance")
    teacher_contrast: bool = Field(False, description="also contrast the teacher, to no effect")
    rates: tuple[float, ...] = Field(
        (), description="learning rates that each row chooses from; none: lr, and nothing is chosen"
    )
    validation: int = Field(
        500, ge=1, description="labelled images of the target, apart, to choose rates on"
    )
    choose_steps: int = Field(250, ge=1, description="of a training to choose by")
    cache: bool = Field(True, description="store the teacher's logits and last maps")
    vocabulary: str = Field(
        "cifar10", description="key of the web's classes.json that names the target's class"
    )

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            **DIGITS,
            "web": "builtin:stillhouse_vision.glyphs:glyphs",
            "student": "cnn4",
            "teacher_model": "cnn16",
            "steps": 240,
            "batch": 64,
            "teacher_batch": 32,
            "refreshes": 6,
            "embedding": 32,
            "validation": 100,
        },
        "small": {
            **CIFAR10_JPEG,
            "web": "data:tiny-imagenet-sample",
            "rates": (0.05, 0.3, 1.0, 3.0),
        },
        "paper": {
            "data": "file:cifar10",
            "web": "file:imagenet32",
            "student": "cifar-resnet18",
            "teacher_model": "cifar-resnet34",
            "steps": 240 * (POOL_IMAGENET32 // 1024),
            "teacher_steps": 240 * (50_000 // 64),
            "batch": 1024,
            "refreshes": 240,
            "milestones": (150 / 240, 180 / 240, 210 / 240),
            "augment": "resized-crop",
            "views": 240,
            "cache": False,  # every epoch has views of its own
            "mean": CIFAR100_MEAN,  # of CIFAR, as the released code normalises its test images
            "std": CIFAR100_STD,
            "names": CIFAR10,
            "seeds": 3,
        },
    }

    @model_validator(mode="after")
    def _whole(self) -> "KD3Settings":
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants: name each once (got {', '.join(self.variants)})")
        check_grid("rates", self.rates)
        if min(self.mixing) <= 0:
            raise ValueError(f"mixing: fractions > 0 of the refreshes (got {self.mixing})")
        if self.cache and (self.select_on == "pictures" or self.teacher_contrast):
            raise ValueError(
                "cache: only the teacher's outputs on views are stored; "
                "set cache=false for select_on=images or teacher_contrast=true"
            )
        return self

    @property
    def refresh_every(self) -> int:
        """Steps of an epoch of KD3: one selection."""
        return -(-self.steps // self.refreshes)
