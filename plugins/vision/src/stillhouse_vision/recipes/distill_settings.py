"""What can be set in vision/distill, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from stillhouse.errors import UnknownName
from stillhouse.objectives.catalogue import distillation_method
from stillhouse.recipe import Scale
from stillhouse_vision.own_data import Look
from stillhouse_vision.recipes.few_labels_settings import LITE0, FewLabels
from stillhouse_vision.recipes.teaching_settings import (
    CIFAR10_JPEG,
    CIFAR100,
    DIGITS,
)

# the objectives whose softmax `temperature` softens; the others' own temperature is another thing
WARM = ("kd", "dkd", "dist")


class Distill(FewLabels):
    """Settings of `vision/distill`; steps are optimizer steps, fractions are of a run."""

    objective: tuple[str, ...] = Field(
        ("kd",), description="distillation methods, one student each"
    )
    numbers: dict[str, float] = Field({}, description="an objective's numbers, as {dkd.beta: 2}")
    temperature: float = Field(4.0, gt=0, description=f"of {', '.join(WARM)}")
    student: str = Field("cifar-resnet20", description="the students' architecture")
    samples: int = Field(
        50_000, ge=2, description="training images, for objectives with a memory (crd)"
    )

    follows_data: ClassVar[tuple[str, ...]] = (*FewLabels.follows_data, "samples")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            **DIGITS,
            "student": "cnn4",
            "steps": 200,
            "samples": 400,
            "validation": 100,
            "choose_steps": 60,
        },
        "small": {
            **CIFAR10_JPEG,
            "objective": ("kd", "dkd"),
            "numbers": {"dkd.beta": 2.0},  # the DKD paper's for ResNet-56 -> ResNet-20
            "samples": 20_000,
            "pretrained": LITE0,
        },
        "paper": {
            **CIFAR100,
            "objective": ("kd", "dkd"),
            "student": "cifar-resnet8x4",
            "teacher_model": "cifar-resnet32x4",
            "seeds": 5,
        },
    }

    @classmethod
    def of_look(
        cls, look: Look, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """An image more makes no other variant, unless a memory must have a row for it."""
        rows = sum(look.rows.values()) if "crd" in values.get("objective", ()) else 0
        return {**super().of_look(look, values, given), "samples": max(2, rows)}

    @field_validator("objective")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError("name each objective once, and at least one")
        for name in names:
            distillation_method(name)
        return names

    @model_validator(mode="after")
    def _one_temperature(self) -> "Distill":
        given = [name for name in WARM if f"{name}.temperature" in self.numbers]
        if self.labels and self.temperatures and given:
            raise ValueError(
                f"numbers gives {given[0]} one temperature, temperatures several to choose from; "
                "leave one of the two (temperatures=[] chooses none)"
            )
        return self

    @model_validator(mode="after")
    def _known_numbers(self) -> "Distill":
        for key in self.numbers:
            name, _, number = key.partition(".")
            if number not in distillation_method(name).numbers:
                raise UnknownName(
                    "number", number, distillation_method(name).numbers, where=f"'{name}'"
                )
        return self
