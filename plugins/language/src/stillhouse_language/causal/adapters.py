"""Adapters trained on a base, joined with it into one model again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData
from stillhouse.objectives.groups import Only
from stillhouse.work import Work
from stillhouse_language.causal.model import AdaptedLM, CausalLM, adapted, causal_lm, merged

ADAPTERS = Only(patterns=("*.lora_*",))


@dataclass(frozen=True, kw_only=True)
class AddAdapters:
    """A `convert`: the model at port "base" with fresh LoRA adapters, which change nothing yet; the
    stage's seed draws their first factors.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("all-linear",)

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built: Built = inputs["base"]
        if not isinstance(built.module, CausalLM):
            raise BadData(f"adapters: {type(built.module).__name__} is no causal language model")
        spec = adapted(built.spec, rank=self.rank, alpha=self.alpha, targets=self.targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            module = spec.new()
        assert isinstance(module, AdaptedLM)
        state, names = built.module.state_dict(), module.base_names()
        module.load_state_dict({own: state[name] for own, name in names.items()}, strict=False)
        save_model(out, Built(spec=spec, module=module, assets=built.assets))


@dataclass(frozen=True, kw_only=True)
class MergeAdapters:
    """A `convert`: the adapted model at port "adapted" as a plain one of the same function. Raises
    BadData for a model without adapters.
    """

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built: Built = inputs["adapted"]
        if not isinstance(built.module, AdaptedLM):
            raise BadData(f"merge: {type(built.module).__name__} has no adapters")
        kwargs = {k: v for k, v in built.spec.kwargs.items() if k in ("config", "dtype")}
        module = merged(built.module)
        spec = Model(build=causal_lm, kwargs=kwargs)
        save_model(out, Built(spec=spec, module=module, assets=built.assets))
