"""What can be set in contracts/af_stip, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Settings
from stillhouse_contracts.folds import LEAST
from stillhouse_contracts.models import Backbone
from stillhouse_contracts.samples import NOVEL, TYPES
from stillhouse_contracts.splits import Split

Student = Literal[
    "supervised", "kd", "public", "noise", "perturbed", "generator", "textcnn", "bilstm", "logistic"
]
STUDENTS: tuple[Student, ...] = get_args(Student)
BASELINE: Student = "supervised"
NUMBERS = ("lr", "alpha", "temperature", "strength")  # that a row may set
Learner = Literal[
    "teacher",
    "supervised",
    "kd",
    "public",
    "noise",
    "perturbed",
    "generator",
    "textcnn",
    "bilstm",
    "logistic",
    "all-positive",
]
LEARNERS: tuple[Learner, ...] = get_args(Learner)


class AfStipSettings(Settings):
    """Settings of `contracts/af_stip`; steps are optimizer steps.

    `teacher` is your detector for the same types and length.
    """

    students: tuple[Student, ...] = Field(
        STUDENTS, description="rows of the report; supervised is the baseline"
    )
    method: Student = Field("noise", description="the row that the headline is about")
    exported: Student = Field("public", description="the student that is exported")
    types: tuple[str, ...] = Field(TYPES, description="of vulnerability, as the data name them")
    novel: str = Field(NOVEL, description="a type kept from all, for the transfer; empty: none")
    length: int = Field(100, ge=8, le=512, description="tokens of a function that are read")
    embedding: Literal["hashed", "word2vec"] = Field(
        "hashed",
        description="of tokens: fixed numbers, or Word2Vec and FastText of the teacher's data",
    )
    vectors: int = Field(64, ge=2, description="width of a token's vector")
    teacher_backbone: Backbone = Field("gru", description="none, gru, conv or transformer")
    teacher_width: int = Field(256, ge=8, description="of the teacher")
    teacher_blocks: int = Field(3, ge=0, description="adaptive fusion blocks of the teacher")
    teacher_slots: int = Field(64, ge=1, description="memory slots of a block of the teacher")
    teacher_heads: int = Field(8, ge=1, description="of a block of the teacher, before they expand")
    teacher_expand: int = Field(4, ge=1, description="how many times as wide its queries are")
    backbone: Backbone = Field("conv", description="the students': none, gru, conv, transformer")
    width: int = Field(64, ge=4, description="of the students")
    steps: int = Field(500, ge=1, description="of each student")
    teacher_steps: int = Field(800, ge=1, description="of the teacher")
    batch: int = Field(64, ge=2, description="functions of an optimizer step")
    lr: float = Field(5e-3, gt=0, description="highest learning rate of the students")
    teacher_lr: float = Field(1e-3, gt=0, description="highest learning rate of the teacher")
    numbers: dict[str, float] = Field(
        {},
        description="of single rows, in place of lr, alpha, temperature and strength: "
        "{kd.lr: 0.01}",
    )
    strength: float = Field(
        1.0, gt=0, description="of the logistic regression: the inverse of its penalty"
    )
    control_width: int = Field(64, ge=1, description="of TextCNN and BiLSTM")
    positive_weight: float = Field(
        1.0, gt=0, description="of functions that have a type, for all that learn from labels"
    )
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the teacher's soft answers")
    temperature: float = Field(4.0, gt=0, description="of both in the distillation loss")
    noise: Literal["unit", "matched"] = Field(
        "unit", description="N(0, 1), or with the embedding table's mean and deviation"
    )
    sigma: float = Field(0.5, ge=0, description="of the distorted contracts' noise")
    oversample: int = Field(4, ge=1, description="noise drawn for each sample that is kept")
    generator_width: int = Field(64, ge=1, description="of the generator of soft texts")
    generator_lr: float = Field(1e-3, gt=0, description="of the generator")
    one_hot: float = Field(1.0, ge=0, description="weight of the generator's one-hot term")
    statistics: float = Field(0.1, ge=0, description="of its BatchNorm statistics")
    balance: float = Field(5.0, ge=0, description="of its class balance")
    adversarial: float = Field(0.5, ge=0, description="of its adversarial term")
    replay: int = Field(1024, ge=0, description="texts of earlier steps that are kept")
    folds: int = Field(5, ge=0, description="of the cross-validation; 0: none")
    fold_seeds: int = Field(5, ge=1, description="draws of the folds")
    fold_learners: dict[Split, tuple[Learner, ...]] = Field(
        {"text": LEARNERS, "contract": LEARNERS, "random": LEARNERS},
        description="that are cross-validated, by the way to split",
    )
    shots: tuple[int, ...] = Field((8, 32, 128), description="labels of the new type")
    shot_seeds: int = Field(5, ge=1, description="draws of these labels")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_contracts.samples:contracts",
            "length": 64,
            "vectors": 32,
            "teacher_backbone": "conv",
            "teacher_width": 48,
            "teacher_blocks": 2,
            "teacher_slots": 16,
            "teacher_heads": 4,
            "teacher_expand": 1,
            "width": 32,
            "control_width": 32,
            "steps": 120,
            "teacher_steps": 120,
            "batch": 32,
            "teacher_lr": 5e-3,
            "lr": 1e-2,
            "oversample": 2,
            "generator_width": 16,
            "replay": 128,
            "folds": 3,
            "fold_seeds": 1,
            "fold_learners": {
                "text": ("supervised", "logistic", "all-positive"),
                "random": ("supervised", "logistic", "all-positive"),
            },
            "shots": (8, 32),
            "shot_seeds": 2,
        },
        "small": {
            "data": "data:smart-contracts",
            "types": (
                "reentrancy",
                "arithmetic",
                "front_running",
                "unchecked_low_level_calls",
            ),
            "novel": "time_manipulation",
            "seeds": 5,
            "length": 64,
            "vectors": 32,
            "teacher_backbone": "conv",
            "teacher_width": 48,
            "teacher_blocks": 1,
            "teacher_slots": 16,
            "teacher_heads": 4,
            "teacher_expand": 1,
            "teacher_lr": 7e-3,
            "teacher_steps": 500,
            "width": 16,
            "control_width": 32,
            "positive_weight": 5.0,
            "steps": 400,
            "batch": 32,
            "numbers": {
                "supervised.lr": 7e-3,
                "kd.lr": 7e-3,
                "kd.temperature": 1.0,
                "public.lr": 2e-2,
                "public.temperature": 1.0,
                "noise.lr": 2e-2,
                "noise.temperature": 4.0,
                "perturbed.lr": 2e-2,
                "perturbed.temperature": 1.0,
                "generator.lr": 7e-3,
                "generator.temperature": 1.0,
                "textcnn.lr": 3e-2,
                "bilstm.lr": 3e-2,
                "logistic.strength": 0.1,
            },
            "oversample": 2,
            "generator_width": 32,
            "fold_seeds": 1,
            "fold_learners": {
                "text": (
                    "teacher",
                    "supervised",
                    "kd",
                    "public",
                    "noise",
                    "textcnn",
                    "logistic",
                    "all-positive",
                ),
                "random": ("supervised", "textcnn", "logistic", "all-positive"),
                "contract": ("supervised", "textcnn", "logistic", "all-positive"),
            },
        },
        "paper": {
            "data": "file:contracts",
            "types": ("reentrancy", "timestamp", "overflow", "delegatecall"),
            "novel": "",
            "seeds": 5,
            "embedding": "word2vec",
            "vectors": 600,
            "steps": 10_000,
            "teacher_steps": 10_000,
        },
    }

    @model_validator(mode="after")
    def _whole(self) -> "AfStipSettings":
        if len(set(self.students)) < len(self.students) or not self.students:
            raise ValueError(f"students: name one or more, each once (got {self.students})")
        for what, name in (("method", self.method), ("exported", self.exported), ("", BASELINE)):
            if name not in self.students:
                raise ValueError(f"students: {what or 'the baseline'} '{name}' is not among them")
        if self.exported in ("bilstm",):
            raise ValueError("exported: a recurrent network has no ONNX form; choose another")
        if self.folds and self.folds < LEAST:
            raise ValueError(f"folds: {LEAST} or more, or 0 for none (got {self.folds})")
        for key, value in self.numbers.items():
            row, _, name = key.partition(".")
            if row not in STUDENTS or name not in NUMBERS:
                raise ValueError(
                    f"numbers: '{key}' is no <row>.<number> of the rows {', '.join(STUDENTS)} and "
                    f"the numbers {', '.join(NUMBERS)}"
                )
            if value < 0 or (name != "alpha" and value == 0) or (name == "alpha" and value > 1):
                raise ValueError(f"numbers: {key} must be > 0, alpha 0 to 1 (got {value:g})")
        return self
