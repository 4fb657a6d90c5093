"""Stillhouse domain plugin: language models."""

import importlib
from typing import TYPE_CHECKING, Any

from stillhouse.domain import Domain

if TYPE_CHECKING:
    from stillhouse_language.architecture import Architecture, kept_layers, macs, parameter_count
    from stillhouse_language.arte.irt import TwoParameter, fit_2pl
    from stillhouse_language.arte.objectives import dpo_loss
    from stillhouse_language.arte.preferences import preference_scores, quartile_pairs
    from stillhouse_language.causal.log_probs import sequence_log_probs
    from stillhouse_language.relations import relation_loss
    from stillhouse_language.subnets import extract, subnet

domain = Domain(
    name="language",
    summary="language models: small encoders and small generators from large ones",
    recipes={
        "arte": "stillhouse_language.recipes.arte:arte",
        "autodistil": "stillhouse_language.recipes.autodistil:autodistil",
    },
    predict="stillhouse_language.predict:predict",
)

# public name -> its module, imported when the name is first used: the domain itself stays light
_MODULE = {
    "TwoParameter": "arte.irt",
    "dpo_loss": "arte.objectives",
    "fit_2pl": "arte.irt",
    "preference_scores": "arte.preferences",
    "quartile_pairs": "arte.preferences",
    "sequence_log_probs": "causal.log_probs",
    "Architecture": "architecture",
    "extract": "subnets",
    "kept_layers": "architecture",
    "macs": "architecture",
    "parameter_count": "architecture",
    "relation_loss": "relations",
    "subnet": "subnets",
}

__all__ = [
    "Architecture", "TwoParameter", "domain", "dpo_loss", "extract", "fit_2pl", "kept_layers",
    "macs", "parameter_count", "preference_scores", "quartile_pairs", "relation_loss",
    "sequence_log_probs", "subnet",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse_language' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse_language.{_MODULE[name]}"), name)
