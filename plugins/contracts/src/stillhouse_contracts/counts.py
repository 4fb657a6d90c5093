"""Logistic regression on token counts, by scikit-learn: a control without a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadSetting
from stillhouse.work import Work
from stillhouse_contracts.tokens import VOCABULARY


class TokenCounts(nn.Module):
    """batch["tokens"] [B, L] -> "logits" [B, C]: a linear map of log(1 + n) of each token's n in
    the text, which are the "features" [B, V].
    """

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(VOCABULARY), classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = log_counts(batch["tokens"])
        return {"logits": self.linear(features), "features": features}


def log_counts(tokens: Tensor) -> Tensor:
    """log(1 + n) of each token's n in the rows [B, L] -> [B, V]; padding counts nothing."""
    counts = torch.zeros(len(tokens), len(VOCABULARY))
    counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=counts.dtype))
    counts[:, 0] = 0
    return counts.log1p()


def token_counts(**kwargs: Any) -> nn.Module:  # Any: JSON values
    """A `TokenCounts`; `types` are the names of its classes, `length` that of its texts."""
    return TokenCounts(classes=len(kwargs["types"]))


@dataclass(frozen=True, kw_only=True)
class FitCounts:
    """A `convert`: the port "data" to a fitted `TokenCounts`. `strength` is scikit-learn's C, the
    inverse of the penalty on squared weights; `positive` the weight of functions that have a type.
    """

    types: tuple[str, ...]
    length: int
    strength: float = 1.0
    positive: float = 1.0

    def __post_init__(self) -> None:
        for name in ("strength", "positive"):
            if not getattr(self, name) > 0:
                raise BadSetting(f"{name} must be > 0 (got {getattr(self, name)})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: as opened
        out: Path,
        *,
        work: Work,
    ) -> None:
        data: TensorData = inputs["data"]
        tokens, labels = data.columns["tokens"], data.columns["labels"]
        assert isinstance(tokens, Tensor)
        assert isinstance(labels, Tensor)
        kwargs = {"types": list(self.types), "length": self.length}
        spec = Model(build=token_counts, kwargs=kwargs)
        module = fitted(tokens, labels, strength=self.strength, positive=self.positive)
        save_model(out, Built(spec=spec, module=module))


def fitted(
    tokens: Tensor, labels: Tensor, *, strength: float = 1.0, positive: float = 1.0
) -> TokenCounts:
    """The regression of a type each, on tokens [N, L] and labels [N, C]."""
    from sklearn.linear_model import LogisticRegression

    module = TokenCounts(classes=labels.shape[1]).eval()
    features = log_counts(tokens).numpy()
    for number in range(labels.shape[1]):
        truth: NDArray[np.float32] = labels[:, number].numpy()
        weight, bias = module.linear.weight.data, module.linear.bias.data
        if len(np.unique(truth)) == 1:  # one class alone: predicts it, all but surely
            share = (truth.sum() + 0.5) / (len(truth) + 1)
            weight[number], bias[number] = 0, float(np.log(share / (1 - share)))
            continue
        weights = {0: 1.0, 1: positive}
        machine = LogisticRegression(C=strength, class_weight=weights, max_iter=1000)
        found = machine.fit(features, truth)
        weight[number] = torch.from_numpy(found.coef_[0]).float()
        bias[number] = float(found.intercept_[0])
    return module
