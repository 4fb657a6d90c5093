"""What can be set in language/autodistil, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Settings
from stillhouse_language.architecture import Architecture
from stillhouse_language.recipes.autodistil_presets import PAPER_SCALE, SMALL, TINY
from stillhouse_language.spaces import Spaces, SubSpace

GRID = ("layers", "widths", "ratios", "heads")
WHOLE = "whole"  # the one sub-space of K = 1
TEACHER = "teacher"  # its row, beside those of ROWS
ROWS: Mapping[str, str] = {
    "labels": "labels alone",
    "chosen": "chosen by the search",
    "random": "random under the budget",
    "largest": "largest under the budget",
    "hand": "hand-made",
    "one": "K = 1, equal steps",
    "one-long": "K = 1, equal compute",
}
SHAPE = ("layers", "width", "inner", "heads")


class AutoDistil(Settings):
    """Settings of `language/autodistil`; steps are optimizer steps, costs are true counts."""

    architecture: dict[str, int] = Field(
        {},
        description="the teacher's: layers, width, inner, heads, head_width, vocabulary, "
        "positions, types",
    )
    tokenizer: str = Field(
        "", description="a tokenizer, as file:<folder>, where the teacher's folder has none"
    )
    corpus: tuple[str, ...] = Field(
        (), description="files below the data, of tables as file:column; empty: all of them"
    )
    rows: int = Field(20_000, ge=2, description="rows of text that are trained on")
    held: int = Field(256, ge=1, description="rows of text kept apart, to score subnets on")
    length: int = Field(128, ge=6, description="tokens of a row of text, and of the MACs' sample")
    shortest: int = Field(0, ge=0, description="rows of text of fewer tokens are left out")
    spaces: dict[str, dict[str, tuple[float, ...]]] = Field(
        {}, description="sub-spaces by name: layers, widths, ratios (inner over width), heads"
    )
    budget: dict[str, float] = Field(
        {}, description="most macs (of a sample of length tokens) or parameters of a student"
    )
    kind: Literal["mse_softmax", "mse_scores", "kl"] = Field(
        "mse_softmax", description="form of the relation loss"
    )
    draws: int = Field(2, ge=0, description="random subnets a step, beside largest and smallest")
    steps: int = Field(1000, ge=1, description="of each SuperLM")
    batch: int = Field(128, ge=1, description="rows of text a step")
    stored: bool = Field(
        False, description="compute the teacher's projections of all rows once, and keep them"
    )
    lr: float = Field(4e-5, gt=0, description="of the SuperLMs, falling to 0")
    weight_decay: float = Field(0.01, ge=0, description="of matrices")
    dropout: float = Field(0.1, ge=0, lt=1, description="of students in training")
    scored: int = Field(64, ge=1, description="held-out rows that a subnet is scored on")
    whole_trials: int = Field(
        256, ge=0, description="subnets scored in the one SuperLM of K = 1; 0: without these rows"
    )
    hand: dict[str, int] = Field(
        {}, description="the hand-made student: layers, width, inner, heads"
    )
    tasks: dict[str, str] = Field(
        {}, description="labelled tasks by name: file:, data: or builtin: of each"
    )
    task_length: int = Field(128, ge=6, description="tokens of a task's row")
    matthews: tuple[str, ...] = Field(
        (), description="those of the tasks that the table scores by Matthews' correlation"
    )
    few: int = Field(100, ge=2, description="labels of the first task that students are tuned on")
    many: int = Field(0, ge=0, description="labels of the table's other columns; 0: all")
    pool: Literal["mean", "first"] = Field(
        "mean", description="what the head reads: mean of the tokens, or BERT's pooled first"
    )
    tune_steps: int = Field(200, ge=1, description="of a fine-tuning with few labels")
    many_steps: int = Field(600, ge=1, description="of a fine-tuning with many")
    tune_batch: int = Field(32, ge=1, description="rows a step of fine-tuning")
    tune_lr: float = Field(2e-5, gt=0, description="of fine-tuning")
    fresh_lr: float = Field(5e-4, gt=0, description="of a student on labels alone")
    rates: tuple[float, ...] = Field(
        (),
        description="learning rates of fine-tuning that each row chooses from, by labelled rows "
        "kept apart; none: tune_lr and fresh_lr, and nothing is chosen",
    )
    validation: int = Field(
        256, ge=2, description="labelled training rows kept apart to choose rates on"
    )
    table_seeds: int = Field(2, ge=1, description="drawings of labels behind a cell of the table")
    ranked: int = Field(24, ge=3, description="subnets fine-tuned to see how the score ranks")
    ranked_steps: int = Field(200, ge=1, description="of these fine-tunings")
    ranked_labels: int = Field(500, ge=2, description="labels of these fine-tunings")
    ranked_seeds: int = Field(1, ge=1, description="fine-tunings of each of them")
    teacher_steps: int = Field(1, ge=1, description="of a teacher trained here, masked words")
    teacher_lr: float = Field(1e-3, gt=0, description="of a teacher trained here")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": TINY,
        "small": SMALL,
        "paper": PAPER_SCALE,
    }

    @field_validator("architecture", "hand")
    @classmethod
    def _known(cls, values: dict[str, int]) -> dict[str, int]:
        Architecture.of({**dict.fromkeys(SHAPE, 1), **values})
        if missing := set(SHAPE) - set(values):
            raise ValueError(f"'{min(missing)}' is missing")
        return values

    @field_validator("spaces")
    @classmethod
    def _grids(cls, values: dict[str, Any]) -> dict[str, Any]:  # Any: numbers by part
        for name, grid in values.items():
            if set(grid) != set(GRID):
                raise ValueError(f"'{name}' needs {', '.join(GRID)} (got {', '.join(grid)})")
            for part in ("layers", "widths", "heads"):
                for number in grid[part]:
                    if number != int(number):
                        raise ValueError(f"'{name}': {part} are whole numbers (got {number:g})")
        if not values or WHOLE in values:
            raise ValueError(f"name at least one sub-space, and none of them '{WHOLE}'")
        return values

    @field_validator("rates")
    @classmethod
    def _once_each(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(value <= 0 for value in values) or len(set(values)) < len(values):
            raise ValueError("rates: numbers > 0, each once")
        return values

    @model_validator(mode="after")
    def _fits(self) -> "AutoDistil":
        if not self.tasks or not self.spaces or not self.budget:
            raise ValueError("name at least one of tasks, spaces and budget each")
        most = self.full().positions
        if max(self.length, self.task_length) > most:
            raise ValueError(
                f"length={self.length}, task_length={self.task_length}: the teacher reads {most} "
                "tokens"
            )
        if self.scored > self.held:
            raise ValueError(f"scored={self.scored}: only held={self.held} rows are held out")
        if self.shortest > self.length:
            raise ValueError(f"shortest={self.shortest}: rows have at most length={self.length}")
        self.sub_spaces().check_budget(self.budget)
        self.by_hand()
        if self.ranked < 3 * len(self.spaces):
            raise ValueError(f"ranked={self.ranked}: at least 3 subnets a sub-space are ranked")
        return self

    def full(self) -> Architecture:
        """The teacher's architecture; with a pooler where the head reads it."""
        more = {"pooler": self.pool == "first", "full_heads": self.architecture["heads"]}
        return Architecture.of({**self.architecture, **more})

    def by_hand(self) -> Architecture:
        """The hand-made student's."""
        layers, width, inner, heads = (self.hand[name] for name in SHAPE)
        return self.full().cut(layers=layers, width=width, inner=inner, heads=heads)

    def sub_spaces(self) -> Spaces:
        """The sub-spaces of the settings, a SuperLM each."""
        spaces = {name: self._space(grid) for name, grid in self.spaces.items()}
        return Spaces(spaces=spaces, tokens=self.length)

    def whole_space(self) -> Spaces:
        """K = 1: all numbers of all sub-spaces, each with each, in one SuperLM."""
        grid = {
            part: tuple(sorted({n for each in self.spaces.values() for n in each[part]}))
            for part in GRID
        }
        return Spaces(spaces={WHOLE: self._space(grid)}, tokens=self.length)

    def _space(self, grid: Mapping[str, tuple[float, ...]]) -> SubSpace:
        return SubSpace(
            full=self.full(),
            layers=tuple(map(int, grid["layers"])),
            widths=tuple(map(int, grid["widths"])),
            ratios=grid["ratios"],
            heads=tuple(map(int, grid["heads"])),
        )
