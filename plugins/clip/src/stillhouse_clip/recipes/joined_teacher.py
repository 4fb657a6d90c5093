"""The stages of a teacher of two pretrained networks, joined by a map learned on pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.data.data import Columns, RowData, TensorData
from stillhouse.data.parquet import parquet_rows
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.stages import Convert, Make, Train
from stillhouse.work import Work
from stillhouse_clip.banks import text_rows
from stillhouse_clip.images import ImageSpec, pixels
from stillhouse_clip.labels import prompts_of
from stillhouse_clip.objectives import scaled_contrastive_loss
from stillhouse_clip.pretrained import Join, LoadImages, LoadText, projection
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.taught import image_rows

CAPTIONS = "captions_en"


@dataclass(frozen=True, kw_only=True)
class FeaturePairs:
    """A `make`: features of images and embeddings of their texts, to the port "train": features,
    text, labels (pairs of one label are each other's target).

    Images of the port "data", each with its class's plain and enriched text; and, where the port
    "photos" is given, a folder whose train.parquet has images and captions_en, each photo with each
    of its captions. The networks are those of the ports "image" and "text".
    """

    size: int  # of the photos

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what the ports' openers return
        data, classes, text = inputs["data"], inputs["classes"], inputs["text"]
        names, described = text_column(classes, "name"), text_column(classes, "description")
        texts = [*prompts_of(names), *prompts_of(names, described)]
        of_classes = text_rows(text, texts, work=work, truncate=True, of=[self, "classes"])
        features = torch.cat(
            list(image_rows(inputs["image"], data, "features", work=work, of=self))
        )
        labels = data.columns["labels"]
        plain, rich = of_classes[labels], of_classes[len(names) + labels]
        columns = [(features, plain, labels), (features, rich, labels)]
        if "photos" in inputs:
            columns.append(self._captioned(inputs, len(names), work))
        found = [torch.cat(column) for column in zip(*columns, strict=True)]
        return {"train": dict(zip(("features", "text", "labels"), found, strict=True))}

    def _captioned(
        self, inputs: Mapping[str, Any], first: int, work: Work
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        file = Path(inputs["photos"]) / "train.parquet"
        rows = list(parquet_rows(file, ("image", CAPTIONS)))
        if not rows:
            raise BadData(f"{file}: holds no photo")
        found = [pixels(row["image"]["bytes"], self.size, f"{file}: a photo") for row in rows]
        photos: RowData = TensorData({"images": torch.stack(found)})
        features = torch.cat(
            list(image_rows(inputs["image"], photos, "photos", work=work, of=self))
        )
        captions = [caption for row in rows for caption in row[CAPTIONS]]
        place = torch.tensor([i for i, row in enumerate(rows) for _ in row[CAPTIONS]])
        text = text_rows(inputs["text"], captions, work=work, truncate=True, of=[self, "captions"])
        return features[place], text, first + place


@dataclass(frozen=True, kw_only=True)
class Networks:
    """References to the pretrained networks, and how the image network is built."""

    image: str
    text: str
    config: str
    tokenizer: str
    model: str
    images: ImageSpec
    features: int
    dim: int


def joined_teacher(
    *, data: str, classes: str, photos: str, networks: Networks, steps: int, batch: int, lr: float
) -> Convert:
    """The stage whose model is the teacher."""
    image = Convert(
        name="image-network",
        convert=LoadImages(name=networks.model, images=networks.images),
        inputs={"weights": networks.image},
    )
    text = Convert(
        name="text-network",
        convert=LoadText(),
        inputs={
            "weights": networks.text,
            "config": networks.config,
            "tokenizer": networks.tokenizer,
        },
    )
    pairs = Make(
        name="feature-pairs",
        make=FeaturePairs(size=networks.images.size),
        inputs={
            "data": data,
            "classes": classes,
            "image": image["model"],
            "text": text["model"],
            **({"photos": photos} if photos else {}),
        },
        ports=("train",),
    )
    term = Term(
        scaled_contrastive_loss,
        *("projection.embedding", "batch.text", "projection.scale", "batch.labels"),
    )
    phase = Phase(
        trains=("projection",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs={"weight_decay": 0.1}),
        schedule=Cosine(warmup=0.05),
    )
    spec = Model(build=projection, kwargs={"features": networks.features, "dim": networks.dim})
    learned = Train(
        name="projection",
        objective=Composed(phases={"projection": phase}, losses={"pairs": Weighted(term=term)}),
        inputs={"data": pairs["train"]},
        fresh={"projection": spec},
        steps=steps,
        batch=batch,
    )
    return Convert(
        name="teacher",
        convert=Join(),
        inputs={
            "image": image["model"],
            "projection": learned["projection"],
            "text": text["model"],
        },
    )
