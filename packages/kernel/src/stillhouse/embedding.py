"""What a network sees in rows, computed once for all that is trained behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData
from stillhouse.recipe import Resource
from stillhouse.work import Work

FEATURES = "features"  # the column of stored embeddings
TOGETHER = 64  # rows that are computed at a time


@dataclass(frozen=True, kw_only=True)
class Embed:
    """A `make`: the rows of the port "data" with a column "features" [N, D], the output "embedding"
    of the network of the port "network" for their "images", to the port "embedded"; `half`: kept as
    16-bit floats. A killed stage goes on behind the last part.
    """

    half: bool = False
    resource: ClassVar[Resource] = "gpu"

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what each input's opener returns
        built: Built = inputs["network"]
        data: RowData = inputs["data"]
        network = built.module.to(work.device).eval()
        dtype = torch.float16 if self.half else torch.float32

        def compute(first: int, last: int, _: torch.Generator) -> Columns:
            images = data.rows(torch.arange(first, last))["images"].to(work.device)
            with torch.no_grad():
                parts = [network({"images": each})["embedding"] for each in images.split(TOGETHER)]
            return {FEATURES: torch.cat(parts).to(dtype).cpu()}

        found = list(work.parts(FEATURES, len(data), compute, of=self))
        features = torch.cat([columns[FEATURES] for columns in found])  # pyright: ignore[reportCallIssue, reportArgumentType]
        return {"embedded": {**data.select(torch.arange(len(data))), FEATURES: features}}
