"""What is made of a search: one of its candidates, cut out of its SuperLM."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import RowData
from stillhouse.errors import BadData
from stillhouse.objectives.inputs import named
from stillhouse.search.space import Encoding
from stillhouse.work import Work
from stillhouse_language.architecture import Architecture
from stillhouse_language.encoder import Encoder
from stillhouse_language.proxy import encoder_of, superlm_port
from stillhouse_language.spaces import Spaces, decoded
from stillhouse_language.subnets import extract

Rule = Literal["best", "largest", "random"]


@dataclass(frozen=True, kw_only=True)
class Choose:
    """A `convert`: the candidate of a search that a rule names, extracted from its SuperLM.

    The ports are "trials", the search's table of candidates within the budget, and the SuperLMs.
    "best": the highest score. "largest": the most of `cost`. "random": any but the best one, the
    `number`-th of an order that the stage's seed draws: several numbers are several subnets.
    """

    spaces: Spaces
    rule: Rule
    cost: str = "macs"
    number: int = 0

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        name, a = decoded(self.spaces, self.encoding(inputs["trials"], work))
        port = superlm_port(name)
        source: Built = named(inputs, port, what="input", where=f"choice of the {self.rule} subnet")
        save_encoder(out, extract(encoder_of(source, port), a), source)

    def encoding(self, trials: RowData, work: Work) -> Encoding:
        """That of the candidate; raises BadData for a table without candidates."""
        texts, scores = trials.columns["encoding"], trials.columns["score"]
        if not isinstance(texts, list) or not isinstance(scores, Tensor) or not texts:
            raise BadData("trials: no table of a search's candidates")
        best = int(scores.argmax())
        match self.rule:
            case "best":
                row = best
            case "largest":
                costs = named(trials.columns, self.cost, what="cost", where="largest subnet")
                assert isinstance(costs, Tensor)
                row = int(costs.argmax())
            case "random":
                order: list[int] = torch.randperm(len(texts), generator=work.rng).tolist()
                others = [i for i in order if i != best] or [best]
                row = others[self.number % len(others)]
        return json.loads(texts[row])


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A `convert`: a subnet of given shape, cut out of the encoder of the port "encoder"."""

    architecture: Architecture

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        source: Built = inputs["encoder"]
        save_encoder(out, extract(encoder_of(source, "encoder"), self.architecture), source)


def save_encoder(out: Path, module: Encoder, source: Built) -> None:
    """An encoder as a model, with the assets of what it was cut from."""
    kwargs = {**source.spec.kwargs, "architecture": module.architecture.record()}
    save_model(
        out, Built(spec=Model(build=Encoder, kwargs=kwargs), module=module, assets=source.assets)
    )
