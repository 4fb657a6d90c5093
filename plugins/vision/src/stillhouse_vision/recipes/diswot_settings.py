"""What can be set in vision/diswot, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.objectives.relations import Form
from stillhouse.recipe import Scale
from stillhouse.settings import Input
from stillhouse_vision.nas_tables import ACCURACIES
from stillhouse_vision.own_data import Look, number
from stillhouse_vision.recipes.teaching_settings import (
    CIFAR10_JPEG,
    CIFAR100,
    DIGITS,
    HELD_OUT,
    Teaching,
)

SpaceName = Literal["depths", "shapes", "nasbench201", "macro"]


class DisWOT(Teaching):
    """Settings of `vision/diswot`; steps are optimizer steps, fractions are of a run."""

    space: SpaceName = Field("depths", description="architectures that are searched")
    depths: tuple[int, ...] = Field((1, 3, 5, 7), description="blocks a stage, in space depths")
    widths: tuple[int, ...] = Field(
        (16, 16, 32, 64), description="of the stem and the stages, in space depths"
    )
    budget: dict[str, float] = Field({}, description="most parameters, macs of a student")
    trials: int = Field(64, ge=1, description="candidates that are scored")
    inits: int = Field(4, ge=1, description="draws of the weights a score is the mean of")
    score_batch: int = Field(64, ge=2, description="images a score sees")
    references: int = Field(32, ge=2, description="candidates that set the scales of a z-score")
    combine: Literal["zscore", "sum"] = Field(
        "zscore", description="of the two parts of the score; sum: as released"
    )
    temperature: float = Field(4.0, gt=0, description="of the distillation")
    beta_s: float = Field(1.0, ge=0, description="weight of M_s in the last variant")
    beta_r: float = Field(3000.0, ge=0, description="weight of M_r in the last variant")
    form: Form = Field("code", description="of M_s and M_r: the released code's or the paper's")

    studies: bool = Field(True, description="rank trained networks by the score, time a search")
    calibration_depths: tuple[int, ...] = Field(
        (1, 2, 3), description="blocks a stage of the networks that are all trained"
    )
    calibration_widths: tuple[int, ...] = Field(
        (8, 8, 16, 32), description="of their stem and stages"
    )
    calibration_teacher: tuple[int, ...] = Field((5, 5, 5), description="its blocks a stage")
    calibration_size: int = Field(16, ge=1, description="side of their images in pixels")
    calibration_train: int = Field(5000, ge=1, description="images they are trained on")
    calibration_validation: int = Field(
        2000, ge=1, description="images of the training set that are held out to compare them"
    )
    calibration_steps: int = Field(624, ge=1, description="of each of them")
    calibration_teacher_steps: int = Field(1248, ge=1, description="of their teacher")
    resamples: int = Field(1000, ge=1, description="of the bootstrap of a correlation")
    nas: int = Field(
        0, ge=0, description="architectures of the NAS-Bench-201 table that are scored"
    )
    nas_table: Input = Field("data:nas-tables", description="folder of the NAS-Bench-201 tables")
    nas_batch: int = Field(32, ge=2, description="images their scores see")
    timed: int = Field(3, ge=1, description="candidates whose scoring and training are timed")
    timed_steps: int = Field(12, ge=2, description="of a training whose seconds a step are taken")

    follows_data: ClassVar[tuple[str, ...]] = (
        *Teaching.follows_data,
        "nas",
        "calibration_size",
        "calibration_train",
        "calibration_validation",
    )

    @classmethod
    def of_look(
        cls, look: Look, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Calibration on what there is, most of it for training; no cells of NAS-Bench-201, whose
        accuracies are of other data.
        """
        found = super().of_look(look, values, given)
        rows = look.training_rows(number(values, "held_out", HELD_OUT))
        size, train, validation = (
            int(number(values, key, cls.model_fields[key].default))
            for key in ("calibration_size", "calibration_train", "calibration_validation")
        )
        validation = min(validation, max(1, rows * 2 // 7))
        return {
            **found,
            "nas": 0,
            "calibration_size": min(size, int(number(given, "size", found["size"]))),
            "calibration_train": min(train, max(1, rows - validation)),
            "calibration_validation": validation,
        }

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            **DIGITS,
            "teacher_model": "cnn16",
            "teacher_steps": 100,
            "steps": 60,
            "depths": (1, 2),
            "widths": (4, 4, 8, 16),
            "budget": {"parameters": 10_000},
            "trials": 6,
            "inits": 2,
            "score_batch": 32,
            "references": 4,
            "calibration_depths": (1, 2),
            "calibration_widths": (2, 2, 4, 8),
            "calibration_teacher": (3, 3, 3),
            "calibration_size": 8,
            "calibration_train": 300,
            "calibration_validation": 100,
            "calibration_steps": 30,
            "calibration_teacher_steps": 60,
            "resamples": 10,
            "timed": 1,
            "timed_steps": 3,
        },
        "small": {
            **CIFAR10_JPEG,
            "steps": 312,
            "depths": (1, 2, 3, 4, 5, 6, 7),
            "budget": {"parameters": 280_000, "macs": 42e6},
            "nas": 48,
        },
        "paper": {
            **CIFAR100,
            "teacher_model": "cifar-resnet110",
            "budget": {"parameters": 376_000},  # half of the space fits
            "nas": 500,
            "seeds": 3,
        },
    }

    @model_validator(mode="after")
    def _has_table(self) -> "DisWOT":
        if self.nas and self.classes not in ACCURACIES:
            known = " or ".join(str(classes) for classes in ACCURACIES)
            raise ValueError(
                f"nas: the table's networks have {known} classes, not {self.classes}; set nas=0"
            )
        return self

    @model_validator(mode="after")
    def _whole(self) -> "DisWOT":
        if self.beta_s == 0 and self.beta_r == 0:
            raise ValueError("beta_s and beta_r are both 0: one of them must count")
        if len(self.calibration_teacher) != len(self.calibration_widths) - 1:
            raise ValueError(
                "calibration_teacher: one number a stage, calibration_widths one more for the stem "
                f"(got {len(self.calibration_teacher)} and {len(self.calibration_widths)})"
            )
        return self
