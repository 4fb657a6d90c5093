"""Contracts for training: functions as rows of tokens, in parts that share no text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.data import Columns, select
from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_contracts.excerpts import rows_of_tokens
from stillhouse_contracts.formats import labelled_functions
from stillhouse_contracts.labelled import Labelled
from stillhouse_contracts.splits import check_members, fold_numbers

PORTS = ("train", "public", "test", "all")
PARTS = 5  # a fifth for testing, a fifth as public contracts, the rest for training
SHOWN = 3  # conflicts that a note names


@dataclass(frozen=True, kw_only=True)
class ReadContracts:
    """A `make`: the port "source" (a form of `formats`) to ports train, public, test and all.

    Columns: tokens int64 [N, length], 0 behind a text's end; labels float32 [N, C], of `types`;
    novel float32 [N, 1], of the type `novel` that nobody is trained on but in the transfer (zeros
    where it is ""); group and contract int64 [N]: rows of one group have the same tokens, rows of
    one contract come from one file; and the texts file, function, with its line. "public" has no
    labels: contracts of which whoever trains the student knows nothing.

    Parts are drawn by group, types spread: no text is in two parts. Raises BadData for a type that
    no function has, or for which there are fewer distinct functions than `folds`: before anything
    is trained, and not only in the cross-validation.
    """

    types: tuple[str, ...]
    novel: str = ""
    length: int = 100
    folds: int = 0

    def __post_init__(self) -> None:
        if not self.types or len(set(self.types)) < len(self.types):
            raise BadSetting(f"types: name one or more, each once (got {', '.join(self.types)})")
        if self.novel in self.types:
            raise BadSetting(f"novel: '{self.novel}' is among the types; leave it out there")

    def __call__(
        self,
        inputs: Mapping[str, Path | Mapping[str, Any]],  # Any: arrays
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        found = labelled_functions(inputs["source"])
        columns = self.columns(found)
        labels, groups = columns["labels"], columns["group"]
        assert isinstance(labels, torch.Tensor)
        assert isinstance(groups, torch.Tensor)
        check_members(labels.numpy(), groups.numpy(), self.types, folds=self.folds)
        fold = fold_numbers(labels.numpy(), groups.numpy(), folds=PARTS, seed=work.seed)
        parts = {"train": fold >= 2, "public": fold == 1, "test": fold == 0, "all": fold >= 0}
        ports = {
            port: select(columns, torch.from_numpy(np.flatnonzero(rows)))
            for port, rows in parts.items()
        }
        hidden = ("labels", "novel")
        ports["public"] = {k: v for k, v in ports["public"].items() if k not in hidden}
        return ports

    def columns(self, found: Sequence[Labelled]) -> Columns:
        """All functions as rows; duplicates and conflicts are noted."""
        rows = rows_of_tokens([each.code for each in found], self.length)
        _, first, groups = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        labels = _labels(found, self.types)
        novel = _labels(found, (self.novel,)) if self.novel else np.zeros((len(found), 1))
        _, contracts = np.unique([each.contract for each in found], return_inverse=True)
        _note_copies(found, groups.reshape(-1), len(first), labels)
        return {
            "tokens": torch.from_numpy(rows),
            "labels": torch.from_numpy(labels),
            "novel": torch.from_numpy(novel.astype(np.float32)),
            "group": torch.from_numpy(groups.reshape(-1).astype(np.int64)),
            "contract": torch.from_numpy(contracts.astype(np.int64)),
            "line": torch.tensor([each.line for each in found]),
            "file": [each.file for each in found],
            "function": [each.function for each in found],
        }


def _labels(found: Sequence[Labelled], types: Sequence[str]) -> NDArray[np.float32]:
    labels = np.array([[kind in each.types for kind in types] for each in found], dtype=np.float32)
    for number, name in enumerate(types):
        if not labels[:, number].any():
            known = sorted({kind for each in found for kind in each.types})
            raise BadData(f"type '{name}': no function has it; the data have {', '.join(known)}")
    return labels


def conflicts(groups: NDArray[np.int64], labels: NDArray[np.float32]) -> list[int]:
    """The groups whose rows have different labels, in order."""
    order = np.argsort(groups, kind="stable")
    same = groups[order][1:] == groups[order][:-1]
    differs = (labels[order][1:] != labels[order][:-1]).any(1)
    return np.unique(groups[order][1:][same & differs]).tolist()


def _note_copies(
    found: Sequence[Labelled], groups: NDArray[np.int64], texts: int, labels: NDArray[np.float32]
) -> None:
    if texts < len(found):
        note(f"{len(found) - texts} of {len(found)} functions repeat the tokens of another")
    if several := conflicts(groups, labels):
        rows = int(np.isin(groups, several).sum())
        named = [found[int(np.flatnonzero(groups == group)[0])] for group in several[:SHOWN]]
        places = ", ".join(f"{each.file}:{each.line}" for each in named)
        note(f"{rows} functions of {len(several)} texts have conflicting labels: {places}, ...")
