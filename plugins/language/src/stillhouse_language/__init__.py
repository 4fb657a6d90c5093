"""Stillhouse domain plugin: language models."""

import importlib
from typing import TYPE_CHECKING, Any

from stillhouse.domain import Domain

if TYPE_CHECKING:
    from stillhouse_language.architecture import Architecture, kept_layers, macs, parameter_count
    from stillhouse_language.relations import relation_loss
    from stillhouse_language.subnets import extract, subnet

domain = Domain(
    name="language",
    summary="language models: small encoders and small generators from large ones",
    recipes={"autodistil": "stillhouse_language.recipes.autodistil:autodistil"},
    predict="stillhouse_language.predict:predict",
)

# public name -> its module, imported when the name is first used: the domain itself stays light
_MODULE = {
    "Architecture": "architecture",
    "extract": "subnets",
    "kept_layers": "architecture",
    "macs": "architecture",
    "parameter_count": "architecture",
    "relation_loss": "relations",
    "subnet": "subnets",
}

__all__ = [
    "Architecture", "domain", "extract", "kept_layers", "macs", "parameter_count", "relation_loss",
    "subnet",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse_language' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse_language.{_MODULE[name]}"), name)
