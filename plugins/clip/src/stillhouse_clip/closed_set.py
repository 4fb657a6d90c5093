"""A closed set: the student's network as an ordinary classifier of the known classes.

It reads no text, so that it has no answer on other classes until it has seen images of them: the
closed-set baseline of VLM-OOD (Li et al. 2023, arXiv 2307.03135).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.work import Work


class ClosedSet(nn.Module):
    """A tower with a linear classifier on its embedding: images -> embedding [B, D], logits
    [B, K] of the known classes.
    """

    def __init__(self, tower: nn.Module, *, dim: int, known: int) -> None:
        super().__init__()
        self.tower, self.classifier, self.known = tower, nn.Linear(dim, known), known

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embedding = self.tower({"images": batch["images"]})["embedding"]
        return {"embedding": embedding, "logits": self.classifier(embedding)}


def closed_set(*, source: Mapping[str, Any], dim: int, known: int) -> nn.Module:
    """A `ClosedSet` with fresh weights of the tower that `source` builds."""
    return ClosedSet(spec_of(source).new(), dim=dim, known=known)


@dataclass(frozen=True, kw_only=True)
class FreshClosedSet:
    """A `convert`: a `ClosedSet` of the tower `tower`, `dim` wide, and the known classes of the
    port "classes", with fresh weights drawn by the stage's seed.
    """

    tower: Model
    dim: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        known = int(inputs["classes"].columns["known"].sum())
        kwargs = {"source": recorded(self.tower), "dim": self.dim, "known": known}
        spec = Model(build=closed_set, kwargs=kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            module = spec.new()
        save_model(out, Built(spec=spec, module=module))
