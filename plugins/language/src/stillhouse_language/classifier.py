"""An encoder with a task's head, and how one is made of a trained encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import RowData
from stillhouse.errors import BadData, ContractError
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_language.encoder import Encoder, Tensors

Pool = Literal["mean", "first"]


class Classifier(nn.Module):
    """Classes of a text, or of a pair of texts: "logits" [B, classes] and "pooled" [B, d].

    `pool`: "mean" of the last layer over the tokens, or BERT's pooled "first" token. `names` are
    those of the classes, in order. `dropout` is the encoder's and that before the head.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],  # Any: JSON values
        names: Sequence[str],
        pool: Pool = "mean",
        epsilon: float = 1e-12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pool, self.names = pool, tuple(names)
        self.bert = Encoder(architecture, epsilon, dropout)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.bert.architecture.width, len(self.names))
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        hidden = self.bert(batch)["hidden"]
        if self.pool == "mean":
            weights = batch["mask"].to(hidden.dtype)[..., None]
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
        else:
            pooled = self.bert.pooled(hidden)
        return {"logits": self.classifier(self.dropout(pooled)), "pooled": pooled}


@dataclass(frozen=True, kw_only=True)
class AddHead:
    """A `convert`: the encoder of the port "encoder" under a fresh head for the classes of the port
    "data" (`classes_of`). `fresh`: none of its weights are kept either. The stage's seed draws what
    is fresh.
    """

    pool: Pool = "mean"
    dropout: float = 0.1
    fresh: bool = False

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        source: Built = inputs["encoder"]
        spec, module = self.made(source.module, classes_of(inputs["data"]), seed=work.seed)
        save_model(out, Built(spec=spec, module=module, assets=source.assets))

    def made(
        self, encoder: nn.Module, names: Sequence[str], *, seed: int
    ) -> tuple[Model, Classifier]:
        """The classifier, fresh weights drawn by `seed`; raises ContractError for no Encoder."""
        if not isinstance(encoder, Encoder):
            raise ContractError(f"a head stands on an Encoder (got a {type(encoder).__name__})")
        kwargs = {
            "architecture": encoder.architecture.record(),
            "names": list(names),
            "pool": self.pool,
            "epsilon": encoder.embeddings.LayerNorm.eps,
            "dropout": self.dropout,
        }
        spec = Model(build=Classifier, kwargs=kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(mix(seed))
            module = spec.new()
        assert isinstance(module, Classifier)
        if not self.fresh:
            module.bert.load_state_dict(encoder.state_dict())
        return spec, module


def classes_of(data: RowData) -> list[str]:
    """The class names of labelled data in the order of their numbers, from the columns "label"
    (names) and "labels" (numbers); raises BadData for a class without a row.
    """
    names, numbers = data.columns.get("label"), data.columns.get("labels")
    if not isinstance(names, list) or not isinstance(numbers, Tensor):
        raise BadData("a task needs the columns 'label' and 'labels'")
    found = dict(zip(numbers.tolist(), names, strict=True))
    if sorted(found) != list(range(len(found))):
        raise BadData(f"classes {sorted(found)}: some have no row in the training data")
    return [found[number] for number in range(len(found))]
