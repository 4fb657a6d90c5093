"""What can be set of landmarks/two_teacher where few faces have points, or all have noisy ones."""

from pydantic import Field, field_validator, model_validator

from stillhouse.settings import Input, Settings

ALONE, SELF, ALL = "labels", "self-training", "-all"
LABELLED_ROWS = (ALONE, "plain", "paper")
REST_ROWS = (f"plain{ALL}", f"paper{ALL}", SELF)


class FewFaces(Settings):
    """Labels, their noise, rows and the pretrained teachers; steps are optimizer steps."""

    labels: int = Field(
        0, ge=0, description="labelled training faces, drawn anew for each seed; 0: all"
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="standard deviation of noise on the training faces' coordinates, of the crop's "
        "side, drawn anew for each seed",
    )
    rows: tuple[str, ...] = Field(
        (),
        description="with labels or noise: labels (alone), plain or paper on the labelled, plain-"
        "all or paper-all, self-training; none: all that can be",
    )
    unlabelled: int = Field(
        3, ge=1, le=100, description="unlabelled faces of a batch for each labelled one"
    )
    rates: tuple[float, ...] = Field(
        (1e-3, 4e-3, 1.6e-2),
        description="learning rates that each row chooses from; none: lr, and nothing is chosen",
    )
    choose_steps: int = Field(600, ge=1, description="of a training to choose by")
    pretrained: Input = Field(
        "", description="weights that others trained, for the teachers with labels or noise"
    )
    pretrained_name: str = Field("tf_efficientnet_lite0", description="timm's name of them")
    pretrained_level: int = Field(3, ge=0, description="block whose map teachers read, from 0")
    pretrained_side: int = Field(128, ge=8, le=4096, description="pixels crops are scaled to")
    pretrained_mean: tuple[float, float, float] = Field(
        (0.5, 0.5, 0.5), description="of the colours, as pretrained was trained"
    )
    pretrained_std: tuple[float, float, float] = Field(
        (0.5, 0.5, 0.5), description="of the colours, as pretrained was trained"
    )
    folds: int = Field(5, ge=2, description="of cross-fitting: a face's teacher has not seen it")
    fitted_copies: int = Field(4, ge=1, description="of each face, that teachers are fitted to")

    @field_validator("rows")
    @classmethod
    def _known_rows(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        known = (*LABELLED_ROWS, *REST_ROWS)
        if odd := [row for row in rows if row not in known]:
            raise ValueError(f"no row '{odd[0]}' (rows: {', '.join(known)})")
        if rows and (len(set(rows)) < len(rows) or ALONE not in rows or len(rows) < 2):
            raise ValueError(f"name each row once, '{ALONE}' and at least one more")
        return rows

    @field_validator("rates")
    @classmethod
    def _grid(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate <= 0 for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError("rates: numbers > 0, each once")
        return rates

    @model_validator(mode="after")
    def _few(self) -> "FewFaces":
        if min(self.pretrained_std) <= 0:
            raise ValueError(f"pretrained_std must be > 0 (got {min(self.pretrained_std)})")
        if self.few and not self.pretrained:
            raise ValueError(
                "labels and noise: teachers stand on a pretrained network; set pretrained to its "
                "weights (file:, hub: or package:) and pretrained_name to timm's name of it"
            )
        if self.few and not self.labels and (odd := [r for r in self.rows if r in REST_ROWS]):
            raise ValueError(f"rows: '{odd[0]}' needs faces without points; set labels")
        return self

    @property
    def few(self) -> bool:
        """Whether this is the experiment of few or noisy labels."""
        return bool(self.labels) or self.noise > 0

    @property
    def all_rows(self) -> tuple[str, ...]:
        """The rows that are run."""
        return self.rows or (*LABELLED_ROWS, *(REST_ROWS if self.labels else ()))
