"""Stillhouse domain plugin: vulnerable functions of smart contracts (a reconstruction of AF-STip).

    from stillhouse_contracts import fragments, normalise

The names of `__all__` are imported when they are first used: the domain itself is light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stillhouse.domain import Domain

if TYPE_CHECKING:
    from stillhouse_contracts.attention import (
        AdaptiveFusion,
        double_normalise,
        external_attention,
    )
    from stillhouse_contracts.excerpts import group_of
    from stillhouse_contracts.solidity import Fragment, fragments
    from stillhouse_contracts.tokens import normalise

domain = Domain(
    name="contracts",
    summary="smart contracts: small detectors of vulnerable functions (AF-STip, reconstructed)",
    recipes={"af_stip": "stillhouse_contracts.recipes.af_stip:af_stip"},
    predict="stillhouse_contracts.predict:predict",
)

_MODULE = {
    "AdaptiveFusion": "attention",
    "double_normalise": "attention",
    "external_attention": "attention",
    "Fragment": "solidity",
    "fragments": "solidity",
    "group_of": "excerpts",
    "normalise": "tokens",
}

__all__ = [
    "AdaptiveFusion",
    "Fragment",
    "domain",
    "double_normalise",
    "external_attention",
    "fragments",
    "group_of",
    "normalise",
]


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse_contracts' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse_contracts.{_MODULE[name]}"), name)
