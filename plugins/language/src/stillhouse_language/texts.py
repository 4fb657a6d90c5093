"""Makers of token rows: running text to train and hold out, and labelled tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData, select
from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting, MissingData, UnknownName
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_language.encoder import Encoder
from stillhouse_language.encoders import texts_of
from stillhouse_language.readers import KINDS, Row, first_cells, kind_of, read_rows, read_texts
from stillhouse_language.tokenizing import encoded, model_tokenizer, padded, padding_of, pieces

IGNORED = -100  # the target of a token that no loss counts
TESTS = ("dev", "valid", "validation", "test")  # files that hold what is tested on, first found
SENTENCES = (("sentence",), ("text",), ("sentence1", "sentence2"), ("premise", "hypothesis"),
             ("question", "sentence"), ("question1", "question2"))  # fmt: skip
LABELS = ("label", "labels")
COLA = ("source", "label", "mark", "sentence")  # GLUE's CoLA names no columns


@dataclass(frozen=True, kw_only=True)
class ReadCorpus:
    """A `make`: unlabelled text as rows of at most `length` tokens of the tokenizer of the port
    "model", in an order that the stage's seed draws: `held` rows in the port "held", up to `rows`
    others in "train". Rows of fewer than `shortest` tokens are left out: a step costs what its
    longest row does.

    The port "source" is a file, a folder or built-in text. `parts` names files below a folder, of
    tables with their column ("train.tsv:sentence"); without them all files are read.
    """

    length: int
    held: int
    rows: int
    parts: tuple[str, ...] = ()
    shortest: int = 0

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        model: Built = inputs["model"]
        tokenizer = model_tokenizer(model.assets, "corpus")
        check_length(self.length, model, where="corpus")
        cut = pieces(tokenizer, self._texts(inputs["source"]), length=self.length)
        found = [row for row in cut if len(row) >= self.shortest]
        if len(found) <= self.held:
            raise BadData(
                f"corpus: {len(found)} rows of {self.shortest} to {self.length} tokens are all "
                f"held out ({self.held}); give more text"
            )
        order: list[int] = torch.randperm(len(found), generator=work.rng).tolist()
        parts = {"held": order[: self.held], "train": order[self.held :][: self.rows]}
        left = len(found) - self.held - len(parts["train"])
        short = f", {len(cut) - len(found):,} shorter ones left out" if self.shortest else ""
        note(f"corpus: {len(found):,} rows{short}, {left:,} of them not used")
        return {
            port: padded(
                [found[i] for i in rows], length=self.length, padding=padding_of(tokenizer)
            )
            for port, rows in parts.items()
        }

    def _texts(self, source: Any) -> list[str]:  # Any: a Path, or arrays by name
        if not self.parts:
            return texts_of(source)
        if not isinstance(source, Path):
            raise BadSetting("corpus: names parts of a folder, and the data are built in")
        return [text for part in self.parts for text in _part(source, part)]


def _part(source: Path, part: str) -> Iterator[str]:
    name, _, column = part.partition(":")
    return read_texts(source / name, column=column or "text")


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """A `make`: a labelled task as rows of `length` tokens, ports "train" and "test": columns
    "tokens", "mask", "labels" (numbers) and "label" (names).

    The port "source" is a folder with train.* and dev.* (or valid, test) as GLUE's tasks have them,
    or built-in arrays "text", "label" and "test"; "model" has the tokenizer. Sentences are read
    from the columns sentence or text, of pairs sentence1 and sentence2, premise and hypothesis,
    question and sentence; classes are numbered in the order of their names.
    """

    name: str
    length: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        model: Built = inputs["model"]
        check_length(self.length, model, where=f"task '{self.name}'")
        tokenizer = model_tokenizer(model.assets, f"task '{self.name}'")
        parts = _rows_of(inputs["source"], self.name)
        names = _in_order({label for _, label in parts["train"]})
        found = dict[str, Columns]()
        for port, rows in parts.items():
            texts = [text if text[1] else text[0] for text, _ in rows]
            labels = [label for _, label in rows]
            if unknown := set(labels) - set(names):
                raise UnknownName("class", min(unknown), names, where=f"task '{self.name}': {port}")
            found[port] = {
                **encoded(tokenizer, texts, length=self.length),  # pyright: ignore[reportArgumentType]  of one kind
                "labels": torch.tensor([names.index(label) for label in labels]),
                "label": labels,
            }
        return found


@dataclass(frozen=True, kw_only=True)
class KeepApart:
    """A `make`: `rows` labelled rows of the port "data", as many of each class as may be, to the
    port "validation", on which settings are chosen, and the others to "pool"; drawn by the stage's
    seed. Raises BadData where none would be left.
    """

    rows: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]
        labels = data.columns["labels"]
        assert isinstance(labels, Tensor)
        if self.rows >= len(data):
            raise BadData(
                f"keep apart: {self.rows} rows are wanted, and the data have {len(data)}; take "
                f"fewer than {len(data)}"
            )
        taken = drawn_rows(labels, self.rows, rng=work.rng)
        rest = torch.ones(len(data), dtype=torch.bool)
        rest[taken] = False
        return {"validation": data.select(taken), "pool": data.select(rest.nonzero().flatten())}


def check_length(length: int, model: Built, *, where: str) -> None:
    """Raises BadSetting for rows longer than the model's context."""
    if isinstance(model.module, Encoder) and length > (most := model.module.architecture.positions):
        raise BadSetting(
            f"{where}: rows of {length} tokens, and the model reads {most}; set a smaller length"
        )


Example = tuple[tuple[str, str], str]  # a text or a pair (the second "" where there is none); label


def _rows_of(source: Any, name: str) -> dict[str, list[Example]]:  # Any: a Path, or arrays
    if isinstance(source, Path):
        return {
            "train": _file_rows(_file(source, ("train",), name), name),
            "test": _file_rows(_file(source, TESTS, name), name),
        }
    texts, labels, test = (source[column] for column in ("text", "label", "test"))
    found: dict[str, list[Example]] = {"train": [], "test": []}
    for text, label, held in zip(texts, labels, test, strict=True):
        found["test" if held else "train"].append(((str(text), ""), str(label)))
    return found


def _file(folder: Path, stems: Sequence[str], name: str) -> Path:
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    for stem in stems:
        for file in there:
            if file.name.partition(".")[0] == stem and kind_of(file) in KINDS:
                return file
    raise MissingData(
        f"task '{name}': {folder} has no {' or '.join(stems)} file (.tsv, .csv, .jsonl, .parquet)"
    )


def _file_rows(file: Path, name: str) -> list[Example]:
    found = [_example(row, file, number) for number, row in enumerate(_table(file), 1)]
    if not found:
        raise BadData(f"task '{name}': {file} holds no row")
    return found


def _table(file: Path) -> list[Row]:
    cells = first_cells(file)
    bare = len(cells) == len(COLA) and cells[1] in ("0", "1")
    return list(read_rows(file, heads=COLA if bare else ()))


def _example(row: Row, file: Path, number: int) -> Example:
    columns = next((c for c in reversed(SENTENCES) if set(c) <= set(row)), None)
    label = next((row[name] for name in LABELS if name in row), None)
    if columns is None or label is None:
        raise BadData(
            f"{file}: row {number} has {', '.join(row)}; a task needs sentence (or sentence1 and "
            "sentence2) and label"
        )
    first, second = ([str(row[c]) for c in columns] + [""])[:2]
    if not first.strip():
        raise BadData(f"{file}: row {number}: no text in '{columns[0]}'")
    return (first, second), str(label)


def _in_order(names: set[str]) -> list[str]:
    numbers = all(name.lstrip("-").isdigit() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


@dataclass(frozen=True, kw_only=True)
class MaskTokens:
    """An augmentation: BERT's masking (Devlin et al. 2019, arXiv 1810.04805, sec. 3.1) of `share`
    of a row's tokens, drawn by its id and view: 80 % become [MASK], 10 % any token, 10 % stay.
    "targets" [B, S] holds what stood there, -100 elsewhere. Tokens below `first` (special ones)
    stay.
    """

    mask: int
    vocabulary: int
    first: int
    share: float = 0.15

    def __call__(self, batch: Tensors) -> Tensors:
        tokens, targets = batch["tokens"].clone(), torch.full_like(batch["tokens"], IGNORED)
        for row, (number, view) in enumerate(
            zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)
        ):
            rng = torch.Generator().manual_seed(mix(number, view))
            tokens[row], targets[row] = self._masked(tokens[row], batch["mask"][row], rng)
        return {**batch, "tokens": tokens, "targets": targets}

    def _masked(self, ids: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        draws, kinds = (torch.rand(len(ids), generator=rng) for _ in range(2))
        others = torch.randint(self.first, self.vocabulary, ids.shape, generator=rng)
        may = mask.bool() & (ids >= self.first)
        chosen = may & (draws < self.share)
        if not bool(chosen.any()) and bool(may.any()):
            # a row without one would have no loss
            chosen = may & (draws == draws[may].min())
        replaced = torch.where(kinds < 0.8, self.mask, torch.where(kinds < 0.9, others, ids))
        return torch.where(chosen, replaced, ids), torch.where(chosen, ids, IGNORED)


def drawn(columns: Columns, count: int, *, by: Tensor, rng: torch.Generator) -> Columns:
    """`count` rows, as many of each class `by` as may be, drawn by `rng`; all where count is 0 or
    more than there are.
    """
    if count < 1 or count >= len(by):
        return columns
    return select(columns, drawn_rows(by, count, rng=rng))


def drawn_rows(by: Tensor, count: int, *, rng: torch.Generator) -> Tensor:
    """The places of `count` rows, as many of each class as may be, in their order."""
    order = torch.randperm(len(by), generator=rng)
    places = [order[by[order] == value] for value in by.unique()]
    # round-robin over the classes, so that a small class gives all that it has
    ranks = torch.cat([torch.arange(len(p)) * len(places) + i for i, p in enumerate(places)])
    return torch.cat(places)[ranks.argsort()][:count].sort().values
