"""Banks of class texts: the rows that an image's embedding is held against.

C: classes, the K known ones first, then those never trained on. D: width of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.data.data import Columns
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_clip.labels import prompts_of
from stillhouse_clip.objectives.vlm_ood import TEMPERATURE, unit
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET, tokenized
from stillhouse_clip.towers import context_length

TEXTS = 64  # computed at a time, each kept


class Bank(nn.Module):
    """Rows of class texts: text [K, D] of the known classes, unseen [C - K, D], every [C, D]."""

    rows: Tensor

    def __init__(self, *, names: Sequence[str], dim: int, known: int) -> None:
        super().__init__()
        self.names, self.known = tuple(names), known
        self.register_buffer("rows", torch.zeros(len(names), dim))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows = self.rows
        return {"text": rows[: self.known], "unseen": rows[self.known :], "every": rows}


def bank(*, names: Sequence[str], dim: int, known: int) -> nn.Module:
    """An empty bank of these classes."""
    return Bank(names=names, dim=dim, known=known)


def text_rows(
    model: Built, texts: Sequence[str], *, work: Work, truncate: bool = False, of: object = ""
) -> Tensor:
    """The text tower's embedding of each text, of unit length, [N, D]; a part is kept when it is
    done. `model` has the asset "tokenizer". `of` is what the texts depend on. Raises BadData.
    """
    if ASSET not in model.assets:
        raise BadData(f"the model has no asset '{ASSET}', which its text tower reads texts by")
    module = model.module.to(work.device)
    found = tokenized(
        model.assets[ASSET],
        texts,
        length=context_length(model.module),
        truncate=truncate,
        where="class texts",
    )

    def compute(first: int, last: int, _rng: Generator) -> Columns:
        part = {name: value[first:last].to(work.device) for name, value in found.items()}
        with torch.no_grad():
            return {"rows": unit(module(part)["text"]).cpu()}

    parts = work.parts("texts", len(texts), compute, of=[list(texts), of], size=TEXTS)
    return torch.cat([part["rows"] for part in parts])  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True, kw_only=True)
class ClassBank:
    """A `convert`: the bank of the port "classes" by the text tower of the port "teacher"; with
    their descriptions where `enriched`.
    """

    enriched: bool
    truncate: bool = False

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        classes = inputs["classes"]
        names = text_column(classes, "name")
        described = text_column(classes, "description") if self.enriched else None
        texts = prompts_of(names, described)
        rows = text_rows(inputs["teacher"], texts, work=work, truncate=self.truncate, of=self)
        known = int(classes.columns["known"].sum())
        save_bank(out, names, rows, known=known)


def save_bank(out: Path, names: Sequence[str], rows: Tensor, *, known: int) -> None:
    """Write a bank as a model folder."""
    spec = Model(build=bank, kwargs={"names": list(names), "dim": rows.shape[1], "known": known})
    module = spec.new()
    module.load_state_dict({"rows": rows})
    save_model(out, Built(spec=spec, module=module))


class ZeroShot(nn.Module):
    """An image tower with a bank: images -> embedding [B, D], and logits [B, C], cosines /
    temperature.
    """

    def __init__(self, tower: nn.Module, classes: Bank, temperature: float) -> None:
        super().__init__()
        self.tower, self.bank, self.temperature = tower, classes, temperature

    @property
    def rows(self) -> Tensor:
        """The class texts, [C, D]."""
        return self.bank.rows

    @property
    def known(self) -> int:
        return self.bank.known

    @property
    def names(self) -> tuple[str, ...]:
        return self.bank.names

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embedding = self.tower({"images": batch["images"]})["embedding"]
        logits = unit(embedding) @ unit(self.rows).mT / self.temperature
        return {"embedding": embedding, "logits": logits}


def zero_shot(
    *, source: Mapping[str, Any], names: Sequence[str], dim: int, known: int, temperature: float
) -> nn.Module:
    """A `ZeroShot` of the tower that `source` builds, with an empty bank."""
    classes = Bank(names=names, dim=dim, known=known)
    return ZeroShot(spec_of(source).new(), classes, temperature)


@dataclass(frozen=True, kw_only=True)
class WithBank:
    """A `convert`: the tower of the port "student" with the bank of the port "bank"."""

    temperature: float = TEMPERATURE

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        student, classes = inputs["student"], inputs["bank"]
        save_model(out, with_bank(student, classes, temperature=self.temperature))


def with_bank(tower: Built, classes: Built, *, temperature: float = TEMPERATURE) -> Built:
    """The tower with this bank, in place of any that it has: no training is needed for new labels.
    Raises BadData where the widths differ.
    """
    tower = tower_of(tower)
    kwargs = dict(classes.spec.kwargs)
    rows = classes.module.get_buffer("rows")
    spec = Model(
        build=zero_shot,
        kwargs={**kwargs, "source": recorded(tower.spec), "temperature": temperature},
    )
    made = ZeroShot(tower.module, Bank(**kwargs), temperature)
    made.bank.load_state_dict({"rows": rows})
    return Built(spec=spec, module=made.eval(), assets=tower.assets)


def tower_of(built: Built) -> Built:
    """The tower alone of a model that may have a bank."""
    if isinstance(built.module, ZeroShot):
        spec = spec_of(built.spec.kwargs["source"])
        return Built(spec=spec, module=built.module.tower, assets=built.assets)
    return built


def new_bank(model: Built, labels: Sequence[str], *, work: Work) -> Built:
    """The bank of other labels, by a text tower: the classes are the labels, none of them known."""
    rows = text_rows(model, prompts_of(labels), work=work, truncate=True)
    kwargs = {"names": list(labels), "dim": rows.shape[1], "known": 0}
    spec = Model(build=bank, kwargs=kwargs)
    module = spec.new()
    module.load_state_dict({"rows": rows})
    return Built(spec=spec, module=module)
