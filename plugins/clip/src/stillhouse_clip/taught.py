"""Data with the teacher's embeddings beside them, computed once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_clip.augment import ResizedCrop
from stillhouse_clip.banks import text_rows
from stillhouse_clip.recipes.own_teacher import text_column

BATCH = 64


def image_rows(
    model: Built, data: RowData, name: str, *, work: Work, of: object
) -> Iterator[Tensor]:
    """The image tower's embeddings of all rows, part after part; each is kept when it is done."""
    module = model.module.to(work.device)

    def compute(first: int, last: int, _rng: Generator) -> Columns:
        rows = data.rows(torch.arange(first, last))
        with torch.no_grad():
            found = module({"images": rows["images"].to(work.device)})
        return {"rows": found["embedding"].float().cpu()}

    for part in work.parts(name, len(data), compute, of=of, size=BATCH):
        rows = part["rows"]
        assert isinstance(rows, Tensor)
        yield rows


@dataclass(frozen=True, kw_only=True)
class WithTeacher:
    """A `make`: the port "data" with a column "teacher", the embedding of the port "teacher" of
    each image, to the port "data"; with `captions` also a column "caption", that of its caption.

    Raises BadData where captions are wanted and an image has none.
    """

    captions: bool = False
    truncate: bool = False

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what the ports' openers return
        data, model = inputs["data"], inputs["teacher"]
        found = torch.cat(list(image_rows(model, data, "images", work=work, of=self)))
        columns: dict[str, Any] = {**data.select(torch.arange(len(data))), "teacher": found}
        if self.captions:
            texts = text_column(data, "captions")
            if "" in texts:
                raise BadData(
                    f"image {texts.index('')} of the training data has no caption; complete "
                    "captions.txt, or leave the row 'captions' out"
                )
            each = list(dict.fromkeys(texts))
            rows = text_rows(model, each, work=work, truncate=self.truncate, of=self)
            place = {text: number for number, text in enumerate(each)}
            columns["caption"] = rows[torch.tensor([place[text] for text in texts])]
        return {"data": columns}


@dataclass(frozen=True, kw_only=True)
class Support:
    """A `make`: the teacher's embeddings of `views` views of each image of the port "data", by
    RandAugment(2, 9) and a random crop, to the port "support": embedding, labels.

    The published code's cache of 5 shots x 10 views for classification without training.
    """

    views: int = 10
    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if self.views < 1:
            raise BadSetting(f"views must be >= 1 (got {self.views})")

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what the ports' openers return
        data, module = inputs["data"], inputs["teacher"].module.to(work.device)

        def compute(first: int, last: int, _rng: Generator) -> Columns:
            number = torch.arange(first, last)
            rows = data.rows(number // self.views)
            images = self.changed(rows, number % self.views, work.seed)
            with torch.no_grad():
                found = module({"images": images.to(work.device)})["embedding"]
            return {"embedding": found.float().cpu(), "labels": rows["labels"]}

        count = len(data) * self.views
        parts = list(work.parts("support", count, compute, of=self, size=BATCH))
        return {
            "support": {
                name: torch.cat([part[name] for part in parts])  # pyright: ignore[reportArgumentType, reportCallIssue]
                for name in ("embedding", "labels")
            }
        }

    def changed(self, rows: Mapping[str, Tensor], view: Tensor, seed: int) -> Tensor:
        """The images as their views show them."""
        from torchvision.transforms import v2  # seconds; recipes are built without it

        seen = ResizedCrop(area=(0.35, 1.0), seed=seed)({**rows, "view": view})["images"]
        augment = v2.RandAugment(self.operations, self.magnitude)
        changed: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            pairs = zip(rows["id"].tolist(), view.tolist(), strict=True)
            for image, (number, turn) in zip(seen, pairs, strict=True):
                torch.default_generator.manual_seed(mix(seed, number, turn))
                changed.append(augment(image))
        return torch.stack(changed)
