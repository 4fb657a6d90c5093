"""Images with the class names that a dual encoder of several languages finds likeliest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_clip.figures import beside_bars
from stillhouse_clip.holding import label_column
from stillhouse_clip.languages import Aligned
from stillhouse_clip.objectives.distillation import unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class TopFiveNames:
    """`images` test images of the source that has class names, drawn by `seed`, each beside its
    five likeliest names in the first language and their probabilities; the true one green.
    """

    by: Aligned
    name: str = "top-five"
    images: int = 12
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        labels, names, rows = self.by.bank(models, 0, work)
        images = work.data[self.by.images]
        if not isinstance(images, RowData):
            raise BadData(f"data port '{self.by.images}': rows by place are needed")
        source = images.columns["source"]
        assert isinstance(source, torch.Tensor)
        where = torch.nonzero(
            (source == self.by.named) & torch.isin(label_column(images), labels)
        ).flatten()
        order = torch.randperm(len(where), generator=torch.Generator().manual_seed(self.seed))
        batch = images.rows(where[order[: self.images]])
        module = named(models, self.by.role, what="role", where="top five")
        with torch.no_grad():
            found = module({"images": batch["images"].to(work.device)})
        logits = (found["scale"] * (unit(found["embedding"]) @ unit(rows.to(work.device)).mT)).cpu()
        values, places = logits.float().softmax(1).topk(min(5, len(names)), dim=1)
        truths = [names[int((labels == label).nonzero())] for label in batch["labels"]]
        chosen = [[names[place] for place in row] for row in places.tolist()]
        return beside_bars(batch["images"], truths, chosen, values)
