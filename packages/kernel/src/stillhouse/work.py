"""Work: what a domain's own code is called with. Where it runs, by which random numbers, how it
says how far it is, and how a long computation goes on after a kill.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator

from stillhouse.assets import Assets
from stillhouse.checkpoint import Conditions
from stillhouse.data.data import Columns, Data
from stillhouse.data.shards import load_data, save_data
from stillhouse.digest import digest
from stillhouse.errors import BadRecipe, BadSetting, CorruptArtifact
from stillhouse.files import writing
from stillhouse.recipe import STAGE_NAME, Context, Event
from stillhouse.training import mix, named_seed

# rows from `first` to before `last`, by this generator
Compute = Callable[[int, int, Generator], Columns]
PARTS, DATA = "parts", "data"


def _outside() -> Context:
    return Context(stage="", out=Path(), checkpoints=Path(), caches=Path())


@dataclass(frozen=True, kw_only=True)
class Work:
    """One call of a `make`, `convert`, metric, figure, refresh or score of a search.

    `rng` begins at `seed` where `of` or `seeded` has made it. `batch` is how many rows a frozen
    network computes at a time. `kept` is the folder in which `parts` keeps what is done; None, as
    in a call outside a stage: nowhere. `ctx` is the stage's. `data` are the data of an evaluation
    by port, where it has several; `assets` those of its models by role and name.
    """

    seed: int = 0
    ctx: Context = field(default_factory=_outside)
    batch: int = 256
    kept: Path | None = None
    data: Mapping[str, Data] = field(default_factory=dict[str, Data], compare=False)
    assets: Mapping[str, Assets] = field(default_factory=dict[str, Assets], compare=False)
    rng: Generator = field(default_factory=Generator, compare=False)

    @classmethod
    def of(cls, ctx: Context, *seeds: int) -> "Work":
        """That of a stage, seeded by the numbers given."""
        return cls.seeded(mix(*seeds), ctx=ctx, kept=ctx.checkpoints / PARTS)

    @classmethod
    def seeded(cls, seed: int, *, ctx: Context | None = None, kept: Path | None = None) -> "Work":
        """One whose generator begins at `seed`; without a context, outside a stage on the CPU."""
        rng = Generator().manual_seed(seed)
        return cls(seed=seed, ctx=ctx or _outside(), kept=kept, rng=rng)

    def again(self) -> "Work":
        """The same from the start of its generator."""
        return replace(self, rng=Generator().manual_seed(self.seed))

    @property
    def device(self) -> str:
        """Where networks run: "cpu", "cuda", "cuda:1"."""
        return self.ctx.device

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Report that `done` of `total` are done; `text` says of what."""
        self.ctx.observe(Event(stage=self.ctx.stage, text=text, done=done, total=total))

    def parts(
        self, name: str, rows: int, compute: Compute, *, of: object, size: int | None = None
    ) -> Iterator[Columns]:
        """Columns for `rows` rows, part after part: `compute(first, last, rng)` gives those of the
        rows from `first` to before `last`, `size` of them (default: `batch`), fewer in the end.

        Each part is kept when it is done: a killed stage goes on behind the last one, and a second
        call with the same `name` in this stage reads what is there. `of` is what the rows
        depend on beside the stage's inputs, of what a recipe is made of: as a rule the frozen
        dataclass whose method `compute` is. A part's generator depends on the seed, the name and
        `first` alone: the same rows with and without a kill. Raises BadRecipe where a part has
        another number of rows.
        """
        size = self.batch if size is None else size
        if rows < 1 or size < 1:
            raise BadSetting(f"{name}: rows and size must be >= 1 (got {rows} and {size})")
        if not STAGE_NAME.fullmatch(name):
            raise BadRecipe(f"parts '{name}': a name has only letters, digits, '-' and '_'")
        folder = self._folder(name, {"of": of, "rows": rows, "size": size})
        begin = named_seed(self.seed, name)
        for first in range(0, rows, size):
            last = min(first + size, rows)
            place = folder / f"{first:09d}" if folder is not None else None
            columns = _kept(place)
            if columns is None:
                rng = Generator().manual_seed(mix(begin, first))
                columns = _checked(compute(first, last, rng), name, first, last)
                _keep(place, columns)
            self.progress(last, rows, name)
            yield columns

    def _folder(self, name: str, of: object) -> Path | None:
        if self.kept is None:
            return None
        here = dataclasses.asdict(Conditions.of(self.ctx))
        return self.kept / f"{name}-{digest({'of': of, 'conditions': here}, at=name)[:12]}"


def _kept(place: Path | None) -> Columns | None:
    if place is None or not place.is_dir():
        return None
    try:
        return load_data(place / DATA).columns
    except CorruptArtifact:
        return None  # it is computed again


def _keep(place: Path | None, columns: Columns) -> None:
    if place is not None:
        with writing(place) as aside:
            save_data(aside / DATA, columns)


def _checked(columns: Columns, name: str, first: int, last: int) -> Columns:
    lengths = {column: len(values) for column, values in columns.items()}
    if set(lengths.values()) != {last - first}:
        raise BadRecipe(f"{name}: rows {first} to {last} came as columns of {lengths} rows")
    # in the order in which a kept part gives them back: what is written of them depends on it
    return dict(sorted({"id": torch.arange(first, last), **columns}.items()))
