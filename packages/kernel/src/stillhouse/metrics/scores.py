"""What a score is: which way is better, its unit, and its name for people."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from stillhouse.errors import BadRecipe

Better = Literal["higher", "lower", "neither"]
FRACTION, COUNT = "%", "count"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score as its metric declares it.

    `unit`: "%" of a fraction (0.91 is written 91.00), "count" (272474 is 272 k), any other text as
    it follows the number ("ms", "MiB", "s", "dB"), "" for a plain number. Without a `label`,
    "teacher_agreement" is "Teacher agreement". A `cost` says what a model takes, not how well it
    does. `ends` are the scores that hold the ends of its interval, if any. Raises BadRecipe.
    """

    name: str
    better: Better
    unit: str = ""
    label: str = ""
    cost: bool = False
    ends: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.better not in get_args(Better):
            raise BadRecipe(
                f"score '{self.name}': better must be higher, lower or neither "
                f"(got {self.better!r})"
            )
        if not self.label:
            text = self.name.replace("_", " ")
            object.__setattr__(self, "label", text[:1].upper() + text[1:])

    @property
    def lower_is_better(self) -> bool:
        return self.better == "lower"

    @property
    def directed(self) -> bool:
        """Whether one value is better than another."""
        return self.better != "neither"

    @property
    def symbol(self) -> str:
        """What follows a number of this score; "" for a count or a plain number."""
        return "" if self.unit == COUNT else self.unit

    @property
    def points(self) -> str:
        """What follows a difference of two."""
        return "points" if self.unit == FRACTION else self.symbol


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the scores of a stage are. `cells` maps those of a table, as they are stored
    ("row/score"), to row and score.
    """

    scores: tuple[Score, ...] = ()
    cells: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)

    def record(self) -> dict[str, Any]:  # Any: JSON values
        """As JSON holds it."""
        return asdict(self)


def by_name(scores: Iterable[Score]) -> dict[str, Score]:
    """Scores by name, each once; raises BadRecipe where a name is declared in two ways."""
    found: dict[str, Score] = {}
    for score in scores:
        if found.setdefault(score.name, score) != score:
            raise BadRecipe(
                f"score '{score.name}' is declared in two ways: {found[score.name]} and {score}; "
                "rename one"
            )
    return found


Declaration = tuple[str, Score]  # who declares it, for a message


def check_once(declared: Iterable[Declaration], *, where: str) -> None:
    """Raises BadRecipe, naming both, where two declare a name in two ways."""
    first: dict[str, Declaration] = {}
    for owner, score in declared:
        known, before = first.setdefault(score.name, (owner, score))
        if before != score:
            names = [each.name for each in fields(Score)]
            apart = [name for name in names if getattr(before, name) != getattr(score, name)]
            one, other = (
                ", ".join(f"{name} {getattr(each, name)!r}" for name in apart)
                for each in (before, score)
            )
            raise BadRecipe(
                f"{where}: score '{score.name}' is declared in two ways: {one} by {known}, and "
                f"{other} by {owner}; rename one, or declare them alike"
            )
