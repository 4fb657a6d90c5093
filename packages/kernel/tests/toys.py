"""Toys of the kernel's tests: small networks, data and objectives, and the plugin of `site/`."""

import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.data.data import TensorData
from stillhouse.objectives.objective import Composed, Models, Optimizer, Phase, Tensors, Weighted
from stillhouse.recipe import Context
from stillhouse.training import Setup

SITE = Path(__file__).parent / "site"
sys.path.insert(0, str(SITE))
# its entry point stays out of sight: only the tests of `runs` put the folder on sys.path
from stillhouse_toy import (  # noqa: E402
    Adapted,
    Hidden,
    Net,
    Selfish,
    Shift,
    Tall,
    Tokenized,
    Towers,
    Unzip,
    Wide,
    Words,
    by_labels,
    by_teacher,
)

sys.path.remove(str(SITE))

__all__ = [
    "Adapted",
    "Hidden",
    "Net",
    "Selfish",
    "Shift",
    "Tall",
    "Tokenized",
    "Towers",
    "Unzip",
    "Wide",
    "Words",
    "by_labels",
    "by_teacher",
]


class Noise(nn.Module):
    """A generator of images from noise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3 * 8 * 8)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"images": self.body(batch["noise"]).view(-1, 3, 8, 8)}


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Two phases: the student follows the teacher on generated images, the generator drives them apart."""

    phases: Mapping[str, Phase]

    def terms(
        self,
        phase: str,
        models: Models,
        batch: Tensors,
        *,
        step: int,
        steps: int,
        rng: torch.Generator,
    ) -> Tensors:
        noise = torch.randn(len(batch["id"]), 6, generator=rng)
        images = models["generator"]({"noise": noise})
        gap = nn.functional.mse_loss(
            models["student"](images)["logits"], models["teacher"](images)["logits"]
        )
        return {"gap": gap if phase == "student" else -gap}


def toy_data(rows: int = 50, seed: int = 0) -> TensorData:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 8, 8, generator=rng)
    return TensorData({"images": images, "labels": torch.randint(0, 5, (rows,), generator=rng)})


def toy_models(dropout: float = 0.0) -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {"teacher": Net(12).eval(), "student": Net(4, dropout)}


def toy_phase(**changes: Any) -> Phase:
    optimizer = Optimizer(lr=0.1, kwargs={"momentum": 0.9, "weight_decay": 1e-3})
    return Phase(**{"trains": ("student",), "optimizer": optimizer, **changes})


def toy_objective(**changes: Any) -> Composed:
    losses = {
        "ce": Weighted(term=by_labels(), weight=0.5),
        "match": Weighted(term=by_teacher()),
    }
    return Composed(phases={"main": toy_phase(**changes)}, losses=losses)


def toy_context(folder: Path, **changes: Any) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "stage": "toy",
        "out": folder,
        "checkpoints": folder / "checkpoints",
        "caches": folder / "caches",
    }
    return Context(**{**given, **changes})


def toy_setup(**changes: Any) -> Setup:
    return Setup(**{"steps": 20, "batch": 8, "seed": 3, **changes})


def weights(models: MutableMapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{role}.{k}": v.clone() for role, m in models.items() for k, v in m.state_dict().items()
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
