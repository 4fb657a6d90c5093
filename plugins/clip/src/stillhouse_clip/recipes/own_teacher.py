"""A small two-tower teacher that is trained here, on images and texts of their classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData
from stillhouse.objectives.groups import NoDecay
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.stages import Convert, Make, Train
from stillhouse.work import Work
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.objectives import scaled_contrastive_loss
from stillhouse_clip.tokens import ASSET, tokenized, trained_tokenizer
from stillhouse_clip.towers import two_towers


@dataclass(frozen=True, kw_only=True)
class FreshTowers:
    """A `convert`: two small towers with fresh weights, drawn by the stage's seed, and a tokenizer
    learned from the text columns `texts` of the port "classes".
    """

    image: str  # as `towers.image_tower` names it
    images: ImageSpec
    texts: tuple[str, ...]
    dim: int = 64
    vocabulary: int = 512
    length: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        columns = [text_column(inputs["classes"], name) for name in self.texts]
        tokenizer = trained_tokenizer((t for column in columns for t in column), self.vocabulary)
        kwargs = {
            "image": self.image,
            "images": self.images.json(),
            "dim": self.dim,
            "vocabulary": tokenizer.get_vocab_size(),
            "length": self.length,
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
        }
        spec = Model(build=two_towers, kwargs=kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(work.seed)
            module = spec.new()
        file = out.with_name(f".{ASSET}.json")
        tokenizer.save(str(file))
        try:
            save_model(out, Built(spec=spec, module=module, assets={ASSET: file}))
        finally:
            file.unlink()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A `make`: each image of the port "data" with one text of its class, tokens and mask, to the
    port "train"; which of the text columns `texts` of the port "classes" is drawn.

    The tokenizer is that of the port "towers". Labels are rows of the classes.
    """

    texts: tuple[str, ...]
    length: int
    copies: int = 1  # of each image, each with a text drawn for it

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]
        columns = [text_column(inputs["classes"], name) for name in self.texts]
        found = tokenized(
            inputs["towers"].assets[ASSET],
            [text for column in columns for text in column],
            length=self.length,
            where="texts of the classes",
        )
        index = torch.arange(len(data)).repeat(self.copies)
        rows = data.rows(index)
        drawn = torch.randint(len(columns), (len(index),), generator=work.rng)
        place = drawn * len(columns[0]) + rows["labels"]
        texts = {name: value[place] for name, value in found.items()}
        return {"train": {"images": rows["images"], "labels": rows["labels"], **texts}}


def text_column(data: RowData, name: str) -> list[str]:
    """A text column; raises BadData where the data have none of that name."""
    column = data.columns.get(name)
    if not isinstance(column, list):
        texts = [key for key, value in data.columns.items() if isinstance(value, list)]
        raise BadData(f"no text column '{name}'; there are {', '.join(texts) or 'none'}")
    return column


def own_teacher(
    *,
    data: str,
    classes: str,
    fresh: FreshTowers,
    steps: int,
    batch: int,
    lr: float,
    augment: Any = None,  # Any: a stillhouse.training.Augment
    name: str = "teacher",
) -> Train:
    """The stage that trains both towers by InfoNCE on images of `data` and texts of `classes`."""
    towers = Convert(name=f"{name}-towers", convert=fresh, inputs={"classes": classes})
    pairs = Make(
        name=f"{name}-pairs",
        make=Pairs(texts=fresh.texts, length=fresh.length, copies=2),
        inputs={"data": data, "classes": classes, "towers": towers["model"]},
        ports=("train",),
    )
    term = Term(
        scaled_contrastive_loss,
        *("teacher.embedding", "teacher.text", "teacher.scale", "batch.labels"),
    )
    phase = Phase(
        trains=("teacher",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs={"weight_decay": 0.05}),
        schedule=Cosine(warmup=0.05),
        clip_norm=1.0,
        grouping=NoDecay(also=("positions",)),
    )
    return Train(
        name=name,
        objective=Composed(phases={"teacher": phase}, losses={"pairs": Weighted(term=term)}),
        inputs={"data": pairs["train"], "teacher": towers["model"]},
        steps=steps,
        batch=batch,
        augment=augment,
    )
