"""Training batches from several data sets: mixed row by row, side by side, or from none."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from stillhouse.data.data import (
    ROWS,
    Plan,
    PlannedData,
    RowData,
    is_offsets,
    joined_offsets,
    rows_of,
)
from stillhouse.errors import BadData, BadSetting

# a batch's column: the number of the set that a row comes from, in the order of the mix
SOURCE = "source"
# a batch's column: how often the row's set was wholly read before, within the pass
REPEAT = "repeat"
MOST_PARTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Batches whose rows come from several sets by an exact ratio.

    `parts` maps a port to how many of each sum(parts) rows come from it: {"labelled": 1,
    "unlabelled": 3} gives a batch of 32 rows 8 labelled ones. After any number of rows a set is
    less than one row from its share, also where the batch is no multiple of the sum. A small set is
    read again, each time in a new order and as the next view; a pass over the data is as long as
    the set that takes longest needs.

    Each set has the same tensor columns, of the same type and size; `fill` gives the value of a
    column that a set lacks: {"labels": -1}. A batch says of each row its "source", the number of
    its set in the order of `parts`; ids are made distinct.
    """

    parts: Mapping[str, int]
    fill: Mapping[str, float] | None = None
    # that of `parts`: a digest sorts the keys of a mapping, and batches depend on their order
    order: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(self.parts))
        if len(self.parts) < 2 or any(type(n) is not int or n < 1 for n in self.parts.values()):
            raise BadSetting(
                f"mix: name two sets or more, each with a whole number >= 1 (got {self.parts})"
            )
        if sum(self.parts.values()) > MOST_PARTS:
            raise BadSetting(f"mix: the parts must sum to {MOST_PARTS} at most (got {self.parts})")

    @property
    def ports(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def open(self, data: Mapping[str, RowData]) -> "MixedData":
        return MixedData(data, self)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Batches of as many rows of each set, side by side: columns "<port>.<column>".

    A smaller set is read again, in a new order; a pass is over when the largest was wholly read.
    "id" is that of the first set.
    """

    ports: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.ports)) < max(2, len(self.ports)):
            raise BadSetting(f"beside: name two sets or more, each once (got {self.ports})")

    def open(self, data: Mapping[str, RowData]) -> "DataBeside":
        return DataBeside(data, self)


@dataclass(frozen=True, kw_only=True)
class NoData:
    """Batches that hold ids alone: the objective draws what it needs from its generator."""

    @property
    def ports(self) -> tuple[str, ...]:
        return ()


class MixedData(PlannedData):
    """The rows of a `Mix`; its length is that of a pass."""

    def __init__(self, data: Mapping[str, RowData], mix: Mix) -> None:
        self.sets, self.parts = [data[port] for port in mix.parts], list(mix.parts.values())
        for port, one in data.items():
            if len(one) == 0:
                raise BadData(f"mix: '{port}' holds no sample")
            for name in (SOURCE, REPEAT):
                if name in one.columns:
                    raise BadData(
                        f"mix: '{port}' has a column '{name}', which is that of a mix itself; "
                        "give it another name"
                    )
        self.fill = _filled(data, mix)
        self.pattern = _pattern(self.parts)
        ends = [int(_ids(data[port], port).max()) + 1 for port in mix.parts]
        self.first_ids = torch.tensor([0, *ends]).cumsum(0).tolist()

    def __len__(self) -> int:
        whole = sum(self.parts)
        passes = (-(-len(s) * whole // part) for s, part in zip(self.sets, self.parts, strict=True))
        return max(passes)

    @property
    def stored(self) -> bool:
        return any(one.stored for one in self.sets)

    def plan(self, size: int, *, rng: Generator | None) -> Iterator[Plan]:
        """One pass; without `rng` each row of each set once, set after set."""
        if rng is None:
            for number, one in enumerate(self.sets):
                for index in torch.arange(len(one)).split(size):
                    source = torch.full_like(index, number)
                    yield {ROWS: index, SOURCE: source, REPEAT: torch.zeros_like(index)}
            return
        orders = _orders(self.sets, rng)
        seen = [0] * len(self.sets)
        for first in range(0, len(self), size):
            places = torch.arange(first, min(first + size, len(self)))
            source = self.pattern[places % len(self.pattern)]
            index, repeat = torch.empty_like(source), torch.empty_like(source)
            for number, order in enumerate(orders):
                of = source == number
                if count := int(of.sum()):
                    index[of], repeat[of] = order.rows(seen[number], count)
                    seen[number] += count
            yield {ROWS: index, SOURCE: source, REPEAT: repeat}

    def share(self, plan: Plan, *, rank: int, nproc: int) -> Plan:
        """Every nproc-th row of each set: sets alternate in a batch."""
        rows = plan[SOURCE].argsort(stable=True)[rank::nproc].sort().values
        return {name: value[rows] for name, value in plan.items()}

    def read(self, plan: Plan) -> dict[str, Tensor]:
        source = plan[SOURCE]
        batches = [
            self._rows(number, {name: value[source == number] for name, value in plan.items()})
            for number in source.unique().tolist()
        ]
        # back from set after set to the order of the plan
        return rows_of(_joined(batches), source.argsort(stable=True).argsort())

    def _rows(self, number: int, plan: Plan) -> dict[str, Tensor]:
        batch = self.sets[number].read(plan)
        batch["id"] = batch["id"] + self.first_ids[number]
        for name, like in self.fill[number].items():
            batch[name] = like.expand(len(plan[ROWS]), *like.shape[1:])
        return {**batch, SOURCE: plan[SOURCE], REPEAT: plan[REPEAT]}


class DataBeside(PlannedData):
    """The rows of a `Beside`; its length is that of the largest set."""

    def __init__(self, data: Mapping[str, RowData], beside: Beside) -> None:
        self.sets = {port: data[port] for port in beside.ports}
        for port, one in self.sets.items():
            if len(one) == 0:
                raise BadData(f"beside: '{port}' holds no sample")

    def __len__(self) -> int:
        return max(len(one) for one in self.sets.values())

    @property
    def stored(self) -> bool:
        return any(one.stored for one in self.sets.values())

    def plan(self, size: int, *, rng: Generator | None) -> Iterator[Plan]:
        orders = _orders(list(self.sets.values()), rng)
        for first in range(0, len(self), size):
            count = min(size, len(self) - first)
            found = [order.rows(first, count) for order in orders]
            plan = {REPEAT: found[0][1]}
            yield plan | {p: index for p, (index, _) in zip(self.sets, found, strict=True)}

    def read(self, plan: Plan) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {REPEAT: plan[REPEAT]}
        for port, one in self.sets.items():
            rows = one.rows(plan[port])
            batch.setdefault("id", rows["id"])
            batch |= {f"{port}.{name}": value for name, value in rows.items()}
        return batch


class _Order:
    """The rows of one set, in one order after another; without a seed always as they stand."""

    def __init__(self, length: int, seed: int | None) -> None:
        self.length, self.seed = length, seed
        self.known: dict[int, Tensor] = {}

    def rows(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Places `first` to `first + count` of an endless reading: rows, and whole readings
        before each.
        """
        places = torch.arange(first, first + count)
        reading = places // self.length
        index = torch.empty_like(places)
        needed = reading.unique().tolist()
        self.known = {number: self._order(number) for number in needed}
        for number, order in self.known.items():
            mask = reading == number
            index[mask] = order[places[mask] % self.length]
        return index, reading

    def _order(self, number: int) -> Tensor:
        if number in self.known:
            return self.known[number]
        if self.seed is None:
            return torch.arange(self.length)
        rng = Generator().manual_seed(self.seed + number)
        return torch.randperm(self.length, generator=rng)


def _orders(sets: list[RowData], rng: Generator | None) -> list[_Order]:
    seeds = [None if rng is None else int(torch.randint(2**62, (), generator=rng)) for _ in sets]
    return [_Order(len(one), seed) for one, seed in zip(sets, seeds, strict=True)]


def _pattern(parts: list[int]) -> Tensor:
    """Which set each of sum(parts) rows comes from: always the one farthest behind its share."""
    whole, given, pattern = sum(parts), [0] * len(parts), list[int]()
    for row in range(1, whole + 1):
        behind = [row * part - whole * had for part, had in zip(parts, given, strict=True)]
        number = behind.index(max(behind))
        given[number] += 1
        pattern.append(number)
    return torch.tensor(pattern)


def _joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches one after the other, ragged columns included."""
    joined: dict[str, Tensor] = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if is_offsets(name, batches[0]):
            joined[name] = joined_offsets(values)
        else:
            joined[name] = torch.cat(values)
    return joined


def _ids(data: RowData, port: str) -> Tensor:
    ids = data.columns["id"]
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point():
        raise BadData(f"mix: column 'id' of '{port}' holds no whole numbers; name it otherwise")
    return ids


def _kinds(first: Mapping[str, Tensor]) -> dict[str, str]:
    """Type and size of a row of each column, of a batch of one row."""
    kinds: dict[str, str] = {}
    for name, values in first.items():
        if not is_offsets(name, first):
            ragged = "ragged " if f"{name}_offsets" in first else ""
            kinds[name] = f"{ragged}{str(values.dtype).removeprefix('torch.')} "
            kinds[name] += str(list(values.shape[1:]))
    return kinds


def _filled(data: Mapping[str, RowData], mix: Mix) -> list[dict[str, Tensor]]:
    """By set, one row [1, ...] of each column that it lacks; raises BadData where sets differ."""
    fill = mix.fill or {}
    firsts = {port: data[port].rows(torch.zeros(1, dtype=torch.int64)) for port in mix.parts}
    kinds = {port: _kinds(first) for port, first in firsts.items()}
    owners = {name: port for port in reversed(list(mix.parts)) for name in kinds[port]}
    rows: list[dict[str, Tensor]] = []
    for port in mix.parts:
        row: dict[str, Tensor] = {}
        for name, owner in owners.items():
            wanted = kinds[owner][name]
            if name in kinds[port]:
                if kinds[port][name] != wanted:
                    raise BadData(
                        f"mix: column '{name}' is {wanted} in '{owner}' and {kinds[port][name]} in "
                        f"'{port}'; read both alike"
                    )
                continue
            if name not in fill or f"{name}_offsets" in firsts[owner]:
                raise BadData(
                    f"mix: '{owner}' has a column '{name}' and '{port}' has none; leave it out of "
                    f"'{owner}', or say in `fill` what '{port}' gets"
                )
            row[name] = _filler(name, firsts[owner][name], fill[name])
        rows.append(row)
    if odd := sorted(set(fill) - set(owners)):
        raise BadData(f"mix: fill names '{odd[0]}', which no set has")
    return rows


def _filler(name: str, column: Tensor, value: float) -> Tensor:
    """One row [1, ...] of a column with the value in it; raises BadData where it cannot hold it."""
    row = torch.zeros_like(column[:1])
    if column.is_floating_point() or _whole_in(column.dtype, value):
        return row.fill_(value)
    kind = str(column.dtype).removeprefix("torch.")
    raise BadData(f"mix: fill gives '{name}' {value}, which a column of {kind} cannot hold")


def _whole_in(dtype: torch.dtype, value: float) -> bool:
    if dtype == torch.bool:
        return value in (0, 1)
    limits = torch.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
